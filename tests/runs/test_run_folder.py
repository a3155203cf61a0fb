"""A run folder: one owner, one record of truth, a stop that is heard, the first refusal stored."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from udl_dist.errors import DataError, TrainingError, UsageError
from udl_dist.runs.run_folder import RunFolder

HOLD = (
    "import sys, time; from udl_dist.runs.run_folder import RunFolder\n"
    "with RunFolder(sys.argv[1]).held():\n    print('held', flush=True); time.sleep(60)"
)


def test_a_live_run_is_not_disturbed_and_a_dead_one_is_taken_over(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    expected = rf"is in use by process {other.pid} on .*: wait, stop it, or choose another"
    with pytest.raises(UsageError, match=expected), RunFolder(tmp_path).held():
        pass
    other.send_signal(signal.SIGKILL)
    other.communicate()
    with RunFolder(tmp_path).held():
        assert f"process {os.getpid()}" in (tmp_path / "lock").read_text()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    expected = "cannot write the run folder .*file/run: Not a directory"
    with pytest.raises(UsageError, match=expected), RunFolder(tmp_path / "file" / "run").held():
        pass


def test_a_stop_is_heard_and_does_not_outlive_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.held():
        assert not folder.stop_asked()
        folder.ask_stop()
        assert RunFolder(tmp_path).stop_asked()
    with folder.held():
        assert not folder.stop_asked()


def test_points_are_rewound_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for images in (10, 20, 30):
        folder.add_point(images, {"train/loss": images / 10})
    with folder.curves.open("a") as file:
        file.write('{"images": 40, "train/lo')
    assert [point["images"] for point in folder.points()] == [10, 20, 30]
    assert folder.rewind(20) == 30
    folder.add_point(30, {"train/loss": 3.0})
    assert folder.points() == [{"images": n, "train/loss": n / 10} for n in (10, 20, 30)]


def test_the_first_refusal_is_stored_and_its_echoes_are_not(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.held():
        assert folder.failure() is None
        folder.fail(DataError("shard 3 is damaged"))
        folder.fail(TrainingError("the other rank is gone"))
        assert folder.failure() == (3, "shard 3 is damaged")
    with folder.held():
        assert folder.failure() is None


def test_a_fresh_start_puts_everything_aside_but_what_was_put_aside_before(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.held():
        for turn in (1, 2):
            folder.add_point(turn, {"train/loss": 1.0})
            folder.checkpoints.mkdir()
            assert folder.set_aside() == tmp_path / f"before-{turn}"
        assert folder.set_aside() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before-1", "before-2", "lock"]
    assert sorted(path.name for path in (tmp_path / "before-2").iterdir()) == [
        "checkpoints",
        "curves.jsonl",
    ]


def test_messages_carry_the_time_of_day(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.say("resumed")
    assert re.fullmatch(r"\d\d:\d\d:\d\d resumed\n", folder.messages.read_text())
