"""A run folder in object storage: the same weights from nodes that share nothing else, killed and
resumed.
"""

import itertools
import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.launch.test_worker import curves, finished, manifest, wanted
from tests.storage.served import put, served
from tests.training import gloo
from tests.training.learn import packed
from udl_dist.data.loader.opening import open_streams
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.settings import DataSettings
from udl_dist.errors import DataError, TrainingError, UsageError
from udl_dist.experiment import Experiment
from udl_dist.launch.worker import work
from udl_dist.runs.heartbeat import HeartbeatWriter, read_all
from udl_dist.runs.lease import Lease
from udl_dist.runs.remote import fetch_checkpoints, push_checkpoint, working
from udl_dist.runs.remote_launcher import Launcher
from udl_dist.runs.remote_node import Node
from udl_dist.runs.run_folder import RunFolder
from udl_dist.storage import objects
from udl_dist.storage.uris import is_remote
from udl_dist.training import checkpoint
from udl_dist.training.distributed import Ranks
from udl_dist.training.loop import Report

REMOTE = "s3://bucket/runs/remote"


@pytest.fixture(autouse=True)
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with served() as endpoint:
        yield endpoint
        for name in objects.listing(
            REMOTE
        ):  # the server keeps what it has as long as this process lives
            objects.remove(f"{REMOTE}/{name}")


def remote(method: str, source: Path, tmp_path: Path, **flags: str) -> Experiment:
    return wanted(method, source, tmp_path / "unused", run__folder=REMOTE, **flags)


def brought(tmp_path: Path, name: str = "brought") -> Path:
    """All of the run as it lies in the storage, on a disk."""
    for path in objects.listing(REMOTE):
        (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
        objects.download(f"{REMOTE}/{path}", tmp_path / name / path)
    return tmp_path / name


def lost_at(experiment: Experiment, images: int) -> None:
    """Train until a checkpoint at `images`, then die with the disk lost."""

    def hear(report: Report) -> None:
        if report.images >= images and Ranks().is_main:
            while str(images) not in "".join(objects.listing(f"{REMOTE}/checkpoints")):
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(experiment, prepare(experiment.data), Ranks(), hear)


def test_a_run_goes_on_from_storage_when_its_node_is_lost(source: Path, tmp_path: Path) -> None:
    flags = {"run__keep_checkpoints": "2", "train__average_half_life": "100"}
    finished(wanted("vae", source, tmp_path / "whole", **flags))
    lost_at(remote("vae", source, tmp_path, **flags), 120)
    shutil.rmtree(tmp_path / "cache")  # the next node has nothing
    ended = finished(remote("vae", source, tmp_path, **flags))
    assert ended["images"] == 240
    there = brought(tmp_path)
    assert manifest(there) == manifest(tmp_path / "whole")
    assert curves(there) == curves(tmp_path / "whole")
    assert [path.name for path in checkpoint.complete(there / "checkpoints")] == [
        path.name for path in checkpoint.complete(tmp_path / "whole" / "checkpoints")
    ]
    assert {path.name for path in (there / "pictures").iterdir()} == {
        path.name for path in (tmp_path / "whole" / "pictures").iterdir()
    }
    for path in checkpoint.complete(there / "checkpoints"):
        checkpoint.verify(path)


def test_two_ranks_go_on_from_storage_and_write_one_run(source: Path, tmp_path: Path) -> None:
    flags = {"run__determinism": "elastic"}
    finished(wanted("ae", source, tmp_path / "whole", **flags))
    lost_at(remote("ae", source, tmp_path, **flags), 120)
    shutil.rmtree(tmp_path / "cache")
    gloo.run(2, finished, remote("ae", source, tmp_path, **flags))
    assert manifest(brought(tmp_path)) == manifest(tmp_path / "whole")


def test_a_checkpoint_that_was_not_carried_to_its_end_is_none(source: Path, tmp_path: Path) -> None:
    lost_at(remote("ae", source, tmp_path), 120)
    names = sorted(objects.listing(f"{REMOTE}/checkpoints"))
    newest = names[-1].split("/")[0]
    objects.remove(f"{REMOTE}/checkpoints/{newest}/manifest.json")
    folder = RunFolder(working(REMOTE, "node"))
    fetch_checkpoints(Node(REMOTE, folder, is_main=True))
    assert newest not in [path.name for path in checkpoint.complete(folder.checkpoints)]


def test_a_checkpoint_damaged_in_storage_is_passed_over_by_name(
    source: Path, tmp_path: Path
) -> None:
    experiment = remote("ae", source, tmp_path, run__keep_checkpoints="9")
    lost_at(experiment, 180)
    shutil.rmtree(tmp_path / "cache")
    uri = f"{REMOTE}/checkpoints/000000000180/networks.safetensors"
    content = bytearray(objects.read(uri))
    content[-1] ^= 1
    objects.write(uri, bytes(content))
    ended = finished(experiment)
    assert ended["images"] == 240
    said = RunFolder(working(REMOTE, "node")).messages.read_text()
    assert "passed over" in said
    assert "resumed after 120 images" in said


def test_a_bucket_that_is_gone_is_an_alarm_until_the_last_checkpoint(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = remote("ae", source, tmp_path)
    real = objects.upload

    def upload(path: Path, uri: str) -> None:
        real(path, uri.replace("s3://bucket/", "s3://no-such-bucket/"))

    monkeypatch.setattr(objects, "upload", upload)
    with pytest.raises(TrainingError, match="could not be written to"):
        finished(experiment)
    said = RunFolder(working(REMOTE, "node")).messages.read_text()
    assert said.count("ALARM: the run folder in object storage") == 1
    assert "ALARM: no checkpoint after 60 images" in said


def launcher() -> Launcher:
    folder = RunFolder(working(REMOTE, "launcher"))
    folder.path.mkdir(parents=True, exist_ok=True)
    return Launcher(REMOTE, folder)


def node(leads: bool = True) -> Node:
    folder = RunFolder(working(REMOTE, "node"))
    return Node(REMOTE, folder, leads)


def test_heartbeats_of_a_node_come_to_the_launcher() -> None:
    with launcher().syncing() as here:
        here.begin_group()
        with node().syncing() as there:
            heartbeats = [HeartbeatWriter(there.folder, rank) for rank in range(2)]
            for heartbeat in heartbeats:
                heartbeat.beat(24, "phase")
            there._copy()
            here.sync()
            lives = read_all(here.folder)
            assert {rank: life.images for rank, life in lives.items()} == {0: 24, 1: 24}
            assert not here.folder.messages.exists(), "no alarm"
            for writer in heartbeats:
                writer.close()


def test_what_a_node_says_comes_to_the_launcher_once_and_what_is_asked_to_the_node() -> None:
    with launcher().syncing() as here:
        here.begin_group()
        with node().syncing() as there:
            there.folder.say("first")
            there.folder.add_point(12, {"train/loss": 1.0})
            here.folder.ask_stop()
            here.sync()
            deadline = time.monotonic() + 10
            while not there.folder.stop_asked():
                assert time.monotonic() < deadline, "the node does not hear of the stop"
                time.sleep(0.1)
            there.folder.fail(TrainingError("a loss that is no number"))
        here.sync()
        here.sync()
        assert here.folder.messages.read_text().count("first") == 1
        assert here.folder.failure() == (4, "a loss that is no number")
        assert here.folder.points() == [{"images": 12, "train/loss": 1.0}]
        (here.folder.path / "stop").unlink()
        here.begin_group()
        with (
            node().syncing() as there
        ):  # the next group: nothing of the last one is said or asked again
            assert not there.folder.stop_asked()
            assert there.folder.failure() is None
            there.folder.say("second")
        here.sync()
        said = here.folder.messages.read_text()
        assert (said.count("first"), said.count("second")) == (1, 1)
    left = objects.listing(REMOTE)
    assert not [name for name in left if name.startswith((".live", ".ray"))]
    assert {"messages.log", "curves.jsonl"} <= set(left)


def test_a_fresh_start_puts_all_of_a_run_aside_in_storage(source: Path, tmp_path: Path) -> None:
    finished(remote("ae", source, tmp_path))
    before = {name for name in objects.listing(REMOTE) if not name.startswith(".live")}
    with launcher().syncing() as here:
        assert here.set_aside() == f"{REMOTE}/before-1"
        assert here.folder.points() == []
    assert {name.removeprefix("before-1/") for name in objects.listing(REMOTE)} - {
        "messages.log"
    } == before
    fetch_checkpoints(node())
    assert checkpoint.complete(RunFolder(working(REMOTE, "node")).checkpoints) == []


def test_empty_objects_that_stand_for_folders_do_no_harm(storage: str) -> None:
    objects.write(f"{REMOTE}/curves.jsonl", b'{"images": 12}\n')
    for name in ("", ".ray/", ".live/node/ranks/", "checkpoints/"):
        url = f"{storage}/bucket/runs/remote/{name}"
        urllib.request.urlopen(urllib.request.Request(url, b"", method="PUT")).close()
    assert "curves.jsonl" in objects.listing(REMOTE) and "" not in objects.listing(REMOTE)
    with launcher().syncing() as here:
        here.sync()
        assert here.folder.points() == [{"images": 12}]
        assert not here.folder.messages.exists(), "no alarm"
        assert here.set_aside() == f"{REMOTE}/before-1"
        assert objects.exists(f"{REMOTE}/before-1/curves.jsonl")


def test_a_run_that_another_machine_holds_is_refused_with_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("udl_dist.runs.lease.STALE_SECONDS", 3.0)
    folder = RunFolder(working(REMOTE, "launcher"))
    folder.path.mkdir(parents=True)
    lease = Lease(f"{REMOTE}/.live/lease.json", folder)
    lease.acquire()
    with pytest.raises(UsageError, match="in use by process"):
        Lease(f"{REMOTE}/.live/lease.json", folder).acquire()
    held = json.loads(objects.read(f"{REMOTE}/.live/lease.json"))
    gone = held | {"machine": "another", "owner": "process 7 on elsewhere"}
    objects.write(f"{REMOTE}/.live/lease.json", json.dumps(gone).encode())
    second = Lease(f"{REMOTE}/.live/lease.json", folder)
    second.acquire()  # the first was not renewed
    assert json.loads(objects.read(f"{REMOTE}/.live/lease.json"))["token"] != held["token"]
    monkeypatch.setattr("udl_dist.runs.lease.RENEW_SECONDS", 0.0)
    lease._next = 0.0
    assert not lease.renew()
    second.release()
    assert not objects.exists(f"{REMOTE}/.live/lease.json")


@pytest.mark.long
def test_the_command_is_killed_and_goes_on_from_another_machine(
    source: Path, tmp_path: Path
) -> None:
    flags = {"run__workers": "2", "train__total_images": "9600", "evaluate__every_images": "1200"}
    gloo.run(2, finished, wanted("ae", source, tmp_path / "whole", **flags))
    job = tmp_path / "job.toml"
    job.write_text(remote("ae", source, tmp_path, **flags).to_toml())
    command = [sys.executable, "-m", "udl_dist", "train", str(job)]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not any(
        "000002400/manifest.json" in name for name in objects.listing(f"{REMOTE}/checkpoints")
    ):
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()[1]
        time.sleep(0.1)
    first.kill()
    first.communicate()
    time.sleep(5)  # what it started ends with it
    shutil.rmtree(tmp_path / "cache")
    again = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert again.returncode == 0, again.stderr
    assert f"{REMOTE}: complete after 9,600 images" in again.stdout
    assert "resumed after" in again.stderr
    there = brought(tmp_path)
    assert manifest(there, 9600) == manifest(tmp_path / "whole", 9600)
    images = [point["images"] for point in RunFolder(there).points()]
    assert images == sorted(set(images))
    assert not [name for name in objects.listing(REMOTE) if name.startswith((".live", ".ray"))]
    third = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (third.returncode, "complete" in third.stdout) == (0, True), third.stderr


def test_the_points_before_a_checkpoint_are_in_storage_with_it(tmp_path: Path) -> None:
    writer = node()
    written = checkpoint.save(
        writer.folder.checkpoints, 12, {"networks": {"w": torch.zeros(3)}}, {}
    )
    writer.folder.add_point(12, {"train/loss": 1.0})
    push_checkpoint(writer, written, [written])
    assert json.loads(objects.read(f"{REMOTE}/curves.jsonl"))["images"] == 12


def test_storage_that_fails_at_any_call_of_a_save_leaves_whole_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = node()
    folder = writer.folder.checkpoints
    for images in (12, 24):
        checkpoint.save(folder, images, {"networks": {"w": torch.full((3,), float(images))}}, {})
    push_checkpoint(writer, checkpoint.path_of(folder, 12), checkpoint.complete(folder))
    calls = itertools.count()
    real = {name: getattr(objects, name) for name in ("upload", "remove")}

    def failing(name: str, last: int) -> None:
        def call(*arguments: Any) -> None:
            if next(calls) >= last:
                raise DataError("storage does not answer")
            real[name](*arguments)

        monkeypatch.setattr(objects, name, call)

    for last in range(12):
        calls = itertools.count()
        for name in real:
            failing(name, last)
        written = checkpoint.path_of(folder, 24)
        try:
            push_checkpoint(writer, written, [written])
            ended = True
        except OSError:
            ended = False
        for name, function in real.items():
            monkeypatch.setattr(objects, name, function)
        reader = Node(REMOTE, RunFolder(tmp_path / f"reader-{last}"), is_main=True)
        fetch_checkpoints(reader)
        found = checkpoint.complete(reader.folder.checkpoints)
        assert found, f"all is lost when storage fails at call {last}"
        for path in found:
            checkpoint.verify(path)
        if ended:
            assert [path.name for path in found] == [written.name]
            return
    raise AssertionError("a save takes more calls than were tried")


def test_a_node_with_another_disk_opens_what_the_launcher_has_indexed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = packed(tmp_path / "data")
    run = Launcher("s3://bucket/runs/indexed", RunFolder(tmp_path / "working"))
    source = put(data / "train", "unindexed")
    prepared = prepare(DataSettings(source=source, size=8, held_out=put(data / "val", "val")))
    assert not any(map(is_remote, (*prepared.train, *prepared.held_out)))
    there = run.shared(prepared)
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node"))
    stream, held_out = open_streams(there, 0)
    assert stream.records + (held_out.records if held_out else 0) == 70
    assert next(stream.batches(0, 4)).images.shape == (4, 1, 8, 8)
    assert run.shared(there) == there


def test_what_lies_on_a_disk_stays_there(tmp_path: Path) -> None:
    prepared = prepare(DataSettings(source=str(packed(tmp_path / "data")), size=8))
    assert (
        Launcher("s3://bucket/runs/none", RunFolder(tmp_path / "working")).shared(prepared)
        == prepared
    )
