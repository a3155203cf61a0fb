"""Hangs of every sort in real processes: what is noticed, how soon, what is written, who is
ended.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from udl_dist.launch.watchdog import EXIT_CODE, Watchdog
from udl_dist.runs import heartbeat
from udl_dist.runs.run_folder import RunFolder

HANG_SECONDS = 2.0
RANK = """
import ctypes, sys, time
from udl_dist.runs.run_folder import RunFolder
from udl_dist.launch.watchdog import Watchdog
folder, rank, fate = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with Watchdog(RunFolder(folder), rank, 2.0) as watchdog:
    for images in range(0, 12 * int(sys.argv[4]), 12):
        watchdog.beat(images, "phase")
        time.sleep(0.05)
    print("still", flush=True)
    if fate == "loop":
        while True: pass
    if fate == "wait": time.sleep(60)
    if fate == "lock": ctypes.PyDLL(None).sleep(60)  # holds Python's lock: no thread of ours runs
"""


def rank(folder: Path, number: int, fate: str, steps: int = 6) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RANK, str(folder), str(number), fate, str(steps)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def still(process: subprocess.Popen[str]) -> float:
    assert process.stdout is not None
    assert process.stdout.readline() == "still\n"
    return time.monotonic()


def ended(process: subprocess.Popen[str], since: float) -> float:
    """Seconds until a process ended, at most 15."""
    process.wait(max(0.1, since + 15 - time.monotonic()))
    if process.stdout:
        process.stdout.close()
    return time.monotonic() - since


def test_a_loop_that_stands_still_is_ended_with_its_stacks(tmp_path: Path) -> None:
    fates = {"loop": EXIT_CODE, "wait": EXIT_CODE, "lock": 1}
    folders = {fate: tmp_path / fate for fate in fates}
    processes = {fate: rank(folder, 0, fate) for fate, folder in folders.items()}
    since = {fate: still(process) for fate, process in processes.items()}
    for fate, status in fates.items():
        seconds = ended(processes[fate], since[fate])
        assert processes[fate].returncode == status, fate
        assert HANG_SECONDS - 0.3 < seconds < HANG_SECONDS + 5
        assert "in <module>" in (folders[fate] / "stacks-0.txt").read_text()
    for folder in (folders["loop"], folders["wait"]):
        life = heartbeat.read_all(RunFolder(folder))[0]
        assert (life.images, life.place, life.hung) == (60, "phase", "code outside of this package")
        said = (folder / "messages.log").read_text()
        assert "rank 0 made no step for 2 s after 60 images" in said


def test_a_hanging_rank_has_all_others_write_their_stacks(tmp_path: Path) -> None:
    other = rank(tmp_path, 1, "none", steps=80)  # goes on for four seconds
    process = rank(tmp_path, 0, "loop")
    ended(process, still(process))
    ended(other, time.monotonic())
    assert other.returncode == 0
    assert "rank 1, process" in (tmp_path / "stacks-1.txt").read_text()


def test_a_stopped_process_is_ended_by_another_rank(tmp_path: Path) -> None:
    stopped = rank(tmp_path, 1, "wait", steps=1000)
    while (life := heartbeat.read_all(RunFolder(tmp_path)).get(1)) is None or life.images < 60:
        time.sleep(0.05)
    other = rank(tmp_path, 0, "none", steps=200)
    os.kill(stopped.pid, signal.SIGSTOP)
    seconds = ended(stopped, time.monotonic())
    assert stopped.returncode == -signal.SIGKILL
    assert HANG_SECONDS < seconds < HANG_SECONDS + 5
    assert (
        "was T (stopped), it could not write its stacks" in (tmp_path / "stacks-1.txt").read_text()
    )
    assert "rank 1 had no heartbeat after " in (tmp_path / "messages.log").read_text()
    other.kill()
    ended(other, time.monotonic())


def test_who_beats_is_left_alone_and_leaves_nothing(tmp_path: Path) -> None:
    process = rank(tmp_path, 0, "none", steps=60)  # three seconds, more than it may hang
    ended(process, time.monotonic())
    assert process.returncode == 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_first_step_may_take_longer(tmp_path: Path) -> None:
    process = rank(tmp_path, 0, "wait", steps=1)
    still(process)
    time.sleep(HANG_SECONDS + 1.5)
    assert process.poll() is None
    process.kill()
    ended(process, time.monotonic())


def test_ranks_of_a_launcher_that_is_gone_are_cleared_away(tmp_path: Path) -> None:
    orphan = rank(tmp_path, 0, "wait", steps=1)
    still(orphan)
    os.kill(orphan.pid, signal.SIGSTOP)
    heartbeat.clear(RunFolder(tmp_path))
    ended(orphan, time.monotonic())
    assert orphan.returncode == -signal.SIGKILL
    assert not (tmp_path / "ranks").exists()


def test_a_process_of_the_same_number_is_another(tmp_path: Path) -> None:
    with Watchdog(RunFolder(tmp_path), 0, 0) as watchdog:
        watchdog.beat(12, "data")
        (path,) = (tmp_path / "ranks").glob("*/000000")
        life = heartbeat.read_all(RunFolder(tmp_path))[0]
        assert life.here
        path.write_text(
            path.read_text().replace(
                f'"started": "{life.started}"', f'"started": "{"1" * len(life.started)}"'
            )
        )
        later = heartbeat.read_all(RunFolder(tmp_path))[0]
        assert not later.here
        later.kill()  # would end this very test
