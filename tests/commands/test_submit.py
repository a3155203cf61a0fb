"""A closed cluster of this machine, and jobs on it, by the commands that a person types: all of it
takes minutes.
"""

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.local import temporary, up
from tests.commands.test_job import JOBS
from tests.test_cli import refused
from tests.test_cli import udl_subprocess as udl
from udl_dist.commands import connection

pytestmark = pytest.mark.long


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with up(tmp_path_factory.mktemp("state")) as address:
        yield address


def job(folder: Path, *more: str) -> list[str]:
    quiet = ["--track.mode", "off", "--train.report_images", "1000"]
    return [str(JOBS / "ae_digits.toml"), "--run.folder", str(folder), *quiet, *more]


def until(met: object, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not met():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_token_and_folder_are_ours_alone() -> None:
    assert connection.state().stat().st_mode & 0o777 == 0o700
    assert (connection.state() / "token").stat().st_mode & 0o777 == 0o600
    assert len((connection.state() / "token").read_text()) == 64  # 256 bits in hexadecimal


def test_a_job_is_followed_to_its_end_and_is_complete_when_it_is_submitted_again(
    tmp_path: Path,
) -> None:
    asked = job(tmp_path / "run", "--train.epochs", "2")
    done = udl("submit", *asked, "--follow")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "complete after" in done.stdout
    assert "Running entrypoint" not in done.stdout
    assert "the package and the job" in done.stderr
    again = udl("submit", *asked, "--follow", "--json")
    assert json.loads(again.stdout)["status"] == "SUCCEEDED"
    assert json.loads(again.stdout)["id"].endswith("-2")


def test_a_run_that_is_trained_is_evaluated_there(tmp_path: Path) -> None:
    asked = job(tmp_path / "run", "--train.epochs", "1")
    assert udl("submit", *asked, "--follow").returncode == 0
    wanted = [str(tmp_path / "run"), "--families", "reconstruction", "--images", "200"]
    done = udl("submit", *wanted, "--follow")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^mse +0\.\d+", done.stdout, re.MULTILINE)
    stored = json.loads((tmp_path / "run" / "evaluation.json").read_text())["figures"]
    assert stored["mse"]["protocol"]["n"] == 200
    assert udl("status", *wanted).stdout.endswith("  succeeded, exit code 0\n")


def test_the_exit_code_is_the_runs(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    done = udl(
        "submit", *job(tmp_path / "run", "--data.source", str(tmp_path / "none")), "--follow"
    )
    assert done.returncode in (2, 3), done.stderr
    assert str(tmp_path / "none") in done.stdout


def test_what_a_check_finds_is_reported_in_one_line_and_nothing_is_sent(tmp_path: Path) -> None:
    before = udl("status", "--json").stdout
    for flags, why in (
        (("--data.source", "/nowhere"), "data /nowhere on the head: does not exist there"),
        (("--run.workers", "9"), "run.workers = 9 needs 9 CPU cores, the cluster has 2 CPU cores"),
        (("--run.device", "cuda"), "GPUs, the cluster has 2 CPU cores and 0 GPUs"),
        (("--track.key_file", "/nowhere/key"), "W&B key /nowhere/key on the head"),
        (("--run.folder", "/proc/run"), "folder /proc/run on the head"),
    ):
        refused(udl("submit", *job(tmp_path / "run", *flags)), 5, "nothing is sent: ", why)
    assert udl("status", "--json").stdout == before


def test_a_stopped_job_leaves_a_checkpoint_and_goes_on_when_submitted_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    asked = job(folder, "--train.epochs", "3000")
    first = json.loads(udl("submit", *asked, "--json").stdout)
    assert first["fresh"]
    until((folder / "curves.jsonl").exists)
    second = json.loads(udl("submit", *asked, "--json").stdout)
    assert (second["id"], second["fresh"], second["status"]) == (first["id"], False, "RUNNING")
    assert json.loads(udl("stop", *asked, "--json").stdout) == {
        "id": first["id"],
        "status": "STOPPED",
        "exit_code": 143,
    }
    assert list((folder / "checkpoints").iterdir())
    assert "stopped; the same command goes on" in udl("logs", first["id"]).stdout
    refused(udl("stop", first["id"]), 2, "has ended already: stopped")
    refused(
        udl("stop", "udl-unknown-0123456789ab"),
        2,
        "no job udl-unknown-0123456789ab on this cluster",
    )
    udl("submit", *asked)
    messages = folder / "messages.log"
    until(lambda: messages.exists() and "resumed after" in messages.read_text())
    assert udl("status", *asked).stdout == f"{first['id']}-2  running\n"
    udl("stop", *asked)


def test_doctor_asks_each_node(tmp_path: Path) -> None:
    done = udl("doctor", *job(tmp_path / "run"), "--json")
    checks = json.loads(done.stdout)["checks"]
    assert done.returncode == 0, checks
    assert {check["what"] for check in checks} >= {
        "address",
        "token",
        "ray",
        "workers",
        "folder",
        "data",
        "clock",
    }
    assert f"{tmp_path / 'run'} on all 3 nodes" in [check["found"] for check in checks]
    assert not (tmp_path / "run").exists()
    done = udl("doctor", *job(tmp_path / "run", "--run.workers", "9"))
    assert done.returncode == 5
    assert (
        "BAD  workers    do not fit: run.workers = 9 needs 9 CPU cores, the cluster has 2 CPU cores"
        in done.stdout
    )


def test_the_token_is_nowhere_but_in_its_file(tmp_path: Path) -> None:
    """Searched: what was printed, Ray's logs, the run, every command line and environment on this
    machine.
    """
    token = (connection.state() / "token").read_bytes()
    done = udl("submit", *job(tmp_path / "run", "--train.epochs", "1"), "--follow")
    assert token.decode() not in done.stdout + done.stderr
    logs = [connection.state() / "log", *temporary().rglob("*"), *(tmp_path / "run").rglob("*")]
    processes = [
        entry / name for entry in Path("/proc").glob("[0-9]*") for name in ("cmdline", "environ")
    ]
    searched = 0
    for file in (*logs, *processes):
        try:
            if file.is_file() and not file.is_socket():
                assert token not in file.read_bytes(), file
                searched += 1
        except OSError:
            continue  # it has just ended, or is somebody else's
    assert searched > 100
    assert os.environ.get("RAY_AUTH_TOKEN") is None
