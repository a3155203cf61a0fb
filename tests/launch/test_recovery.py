"""The first error among its echoes, what repeats and what is counted: on what ranks really leave
behind.
"""

import subprocess
import sys
from pathlib import Path

from udl_dist.launch.recovery import first_cause, judge
from udl_dist.runs.run_folder import RunFolder

ECHO = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242")
DEAD = RuntimeError("The actor died unexpectedly before finishing this task.")
LEAVE = """
import os, sys
from udl_dist.runs.heartbeat import HeartbeatWriter
from udl_dist.runs.run_folder import RunFolder
folder, images, rank, stacks_from, hung = sys.argv[1:]
HeartbeatWriter(RunFolder(folder), int(rank), int(stacks_from)).beat(int(images), "phase", hung)
os._exit(0)
"""


def left(
    folder: Path, images: int = 120, rank: int = 1, stacks_from: int = 0, hung: str = ""
) -> RunFolder:
    """A run folder in which the process of a rank has died after so many images."""
    command = [
        sys.executable,
        "-c",
        LEAVE,
        str(folder),
        str(images),
        str(rank),
        str(stacks_from),
        hung,
    ]
    subprocess.run(command, check=True)
    return RunFolder(folder)


def test_an_error_of_ones_own_comes_before_echoes_and_deaths(tmp_path: Path) -> None:
    folder = left(tmp_path)
    cause = first_cause(
        folder, {0: ECHO, 1: ValueError("Traceback\n  lines\nValueError: seven is no colour")}
    )
    assert (cause.rank, cause.images, cause.why) == (1, 120, "ValueError: seven is no colour")


def test_a_death_comes_before_its_echoes_even_if_no_one_reported_it(tmp_path: Path) -> None:
    folder = left(tmp_path)
    for raised in ({0: ECHO}, {0: ECHO, 1: DEAD}):
        cause = first_cause(folder, raised)
        assert (cause.rank, cause.images) == (1, 120)
        assert cause.why == "its process died without a message (killed, or out of memory?)"


def test_a_group_that_was_ended_after_a_death_does_not_hide_who_died(tmp_path: Path) -> None:
    folder = left(tmp_path, rank=0)
    left(tmp_path, rank=1)
    assert first_cause(folder, {0: ECHO, 1: DEAD}).rank == 1
    assert first_cause(folder, {1: DEAD}).rank == 1


def test_a_crash_is_named_from_the_stacks_of_this_process_alone(tmp_path: Path) -> None:
    folder = left(tmp_path)
    (tmp_path / "stacks-1.txt").write_text("Fatal Python error: Segmentation fault\n\nThread …\n")
    assert first_cause(folder, {0: ECHO}).why == "Segmentation fault"
    left(tmp_path, stacks_from=(tmp_path / "stacks-1.txt").stat().st_size)
    assert first_cause(folder, {0: ECHO, 1: DEAD}).why.startswith("its process died")


def test_who_stands_in_its_own_code_hangs_and_not_who_waits_for_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for rank, place in enumerate(
        (
            "training/loop.py:186 _take",
            "data/loader/reader.py:99 read",
            "training/distributed.py:7 f",
        )
    ):
        left(tmp_path, 24, rank, hung=place)
    cause = first_cause(folder, dict.fromkeys(range(3), DEAD))
    assert (cause.rank, cause.why) == (
        1,
        "no step in time, it stood in data/loader/reader.py:99 read",
    )


def test_a_fault_that_repeats_after_the_same_images_stops_the_run(tmp_path: Path) -> None:
    folder, error = left(tmp_path), ValueError("ValueError: seven")
    judge(folder, {0: ECHO, 1: error}, 5)
    assert folder.failure() is None
    assert (
        "all workers start again from the newest checkpoint (1 of 5)" in folder.messages.read_text()
    )
    judge(folder, {0: ECHO, 1: error}, 5)
    code, message = folder.failure() or (0, "")
    assert code == 4
    assert message.startswith(
        "rank 1 failed after 120 images: ValueError: seven; it did so twice, after the same images"
    )


def test_faults_after_other_images_are_counted_up_to_the_limit(tmp_path: Path) -> None:
    for number in range(3):
        judge(left(tmp_path, 120 + number), {0: ECHO, 1: DEAD}, 2)
    code, message = RunFolder(tmp_path).failure() or (0, "")
    assert code == 4
    assert "the workers were started again 2 times already (run.max_failures)" in message
    assert "\n" not in message
