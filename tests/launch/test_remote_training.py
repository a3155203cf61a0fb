"""Training from object storage under Ray: two workers, killed in mid-epoch, and the same weights in
the end.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.launch.test_driver import descendants
from tests.launch.test_worker import finished, manifest, wanted
from tests.storage.faulty import Faulty
from tests.storage.served import put, served
from tests.training import gloo
from tests.training.learn import packed
from udl_dist.runs.run_folder import RunFolder


@contextmanager
def of_web(folder: Path) -> Iterator[str]:
    """The shards of a folder on a web server, as a source with a signature."""
    files = {f"data/{path.name}": path.read_bytes() for path in folder.glob("*.tar")}
    with Faulty(files) as server:
        yield f"{server.address}/data/{{000000..{len(files) - 1:06d}}}.tar?signature=s3cr3t"


@contextmanager
def of_bucket(folder: Path) -> Iterator[str]:
    with served():
        yield put(folder, "training")


@pytest.mark.long
@pytest.mark.parametrize("placed", [of_bucket, of_web])
def test_a_run_from_object_storage_is_killed_and_resumed_to_the_same_weights(
    tmp_path: Path, placed: Callable[[Path], AbstractContextManager[str]]
) -> None:
    data = packed(tmp_path / "data", records=700)
    flags = {
        "run__workers": "2",
        "train__total_images": "9600",
        "evaluate__every_images": "1200",
        "data__order": "blocks",
        "data__block_bytes": "300",
        "data__cache": str(tmp_path / "cache"),
    }
    gloo.run(2, finished, wanted("ae", data / "train", tmp_path / "whole", **flags))
    with placed(data / "train") as source:
        job = tmp_path / "job.toml"
        # Read ahead in a thread of its own, as users do.
        written = wanted(
            "ae", Path("there"), tmp_path / "run", **flags, data__readers="1"
        ).to_toml()
        job.write_text(written.replace('source = "there"', f'source = "{source}"'))
        command = [sys.executable, "-m", "udl_dist", "train", str(job)]
        folder = RunFolder(tmp_path / "run")
        first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        deadline = time.monotonic() + 120
        while not any(point["images"] >= 2400 for point in folder.points()):
            assert first.poll() is None and time.monotonic() < deadline, first.communicate()[1]
            time.sleep(0.05)
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
        assert folder.points()[-1]["images"] < 9600, "the kill came too late to matter"
        while descendants(first.pid) and time.monotonic() < deadline:
            time.sleep(0.2)
        again = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert again.returncode == 0, again.stderr
    assert "resumed after" in folder.messages.read_text()
    assert manifest(tmp_path / "run", 9600) == manifest(tmp_path / "whole", 9600)
    images = [point["images"] for point in folder.points()]
    assert images == sorted(set(images))
    assert "s3cr3t" not in folder.messages.read_text() + folder.data.read_text() + again.stderr


@pytest.mark.long
def test_expired_credentials_end_a_run_with_a_checkpoint_and_renewed_ones_resume_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = packed(tmp_path / "data", records=700) / "train"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with Faulty(
        {f"bucket/train/{path.name}": path.read_bytes() for path in data.glob("*.tar")}
    ) as server:
        flags = {
            "run__workers": "1",
            "train__total_images": "9600",
            "run__checkpoint_images": "1200",
            "data__order": "blocks",
            "data__block_bytes": "300",
            "data__cache": str(tmp_path / "cache"),
        }
        job, folder = tmp_path / "job.toml", RunFolder(tmp_path / "run")
        written = wanted("ae", Path("there"), folder.path, **flags).to_toml()
        job.write_text(
            written.replace('source = "there"', f'source = "{server.uri("bucket/train")}"')
        )
        command = [sys.executable, "-m", "udl_dist", "train", str(job)]
        first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 240
        while not list(folder.path.glob("checkpoints/0*/manifest.json")):
            assert first.poll() is None and time.monotonic() < deadline, first.communicate()[1]
            time.sleep(0.02)
        server.always = "400"
        said = first.communicate()[1]
        assert first.returncode == 3, said
        assert len([line for line in said.splitlines() if line.startswith("udl: ")]) == 1
        assert "expired" in said.splitlines()[-1] and "Traceback" not in said
        assert list(folder.path.glob("checkpoints/0*/manifest.json")) and not folder.finished()
        server.always = ""
        again = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    assert "resumed after" in folder.messages.read_text()
