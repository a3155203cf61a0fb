"""A disk that refuses: points of the curves wait for it, checkpoints never run ahead of them, every
end has a name.
"""

import errno
import os
import resource
import signal
import sys
import threading
from pathlib import Path

import pytest

from tests.bench import disk as bench
from tests.launch.test_worker import curves, finished, manifest, wanted
from tests.training import gloo
from udl_dist.core import files
from udl_dist.errors import TrainingError
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training import async_writer, checkpoint


@pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine != "x86_64",
    reason="seccomp, by numbers of x86_64",
)
def test_a_disk_that_breaks_anywhere_in_a_run_loses_nothing(tmp_path: Path) -> None:
    """A part of tests.bench.disk: the same code, few calls."""
    with bench.small_disk(tmp_path / "disk") as mounted:
        suite = bench.Suite(tmp_path, tmp_path / "disk")
        for how, at in (
            ("EIO", 180),
            ("EROFS", 20),
            ("full a while" if mounted else "ENOSPC", 160),
        ):
            ended, wrong = suite.once(at, how)
            assert ended
            assert not wrong


def test_points_wait_for_room_and_come_in_order(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(wanted("ae", source, tmp_path / "whole"))
    real = RunFolder.add_point

    def refused(folder: RunFolder, images: int, figures: dict[str, float]) -> None:
        if 48 <= images <= 60 and len(asked) < 3:
            asked.append(images)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(folder, images, figures)

    asked: list[int] = []
    monkeypatch.setattr(RunFolder, "add_point", refused)
    finished(wanted("ae", source, tmp_path / "full"))
    assert asked == [48, 48, 48]
    said = (tmp_path / "full" / "messages.log").read_text()
    assert (
        "ALARM: the curves wait at the point after 48 images: No space left on device; training"
        " goes on" in said
    )
    assert (
        "ALARM: no checkpoint after 60 images: points of the curves before it are not written"
        in said
    )
    assert not checkpoint.path_of(tmp_path / "full" / "checkpoints", 60).exists()
    assert curves(tmp_path / "full") == curves(tmp_path / "whole")
    assert manifest(tmp_path / "full") == manifest(tmp_path / "whole")


def test_no_checkpoint_lasts_longer_than_its_points(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each rename of a checkpoint: the curves that a power cut would leave reach up to its
    images.
    """
    lasting: list[str] = []
    real_fsync, real_rename, run = os.fsync, Path.rename, RunFolder(tmp_path)

    def fsync(descriptor: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")) == run.curves:
            lasting[:] = run.curves.read_text().splitlines()
        real_fsync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        if target.name.isdecimal():
            held.append(any(f'"images": {int(target.name)},' in line for line in lasting))
        return real_rename(path, target)

    held: list[bool] = []
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    finished(wanted("ae", source, tmp_path))
    assert held == [True] * 4


def test_a_line_that_is_cut_short_leaves_nothing_for_the_next_to_be_glued_to(
    tmp_path: Path,
) -> None:
    (content,) = gloo.run(1, lines_within, tmp_path / "lines", 20)
    assert content == "a first line\nshort\n"


def lines_within(path: Path, most: int) -> str:
    """Three lines into a file that may have so many bytes: the second does not fit."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    files.append_line(path, "a first line")
    with pytest.raises(OSError, match="No space left"):
        files.append_line(path, "a line that is longer")
    files.append_line(path, "short")
    return path.read_text()


def test_a_last_checkpoint_that_a_slow_one_delayed_is_missed_by_name(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before it goes through in the end; that must not pass for the last one."""
    monkeypatch.setattr("udl_dist.launch.recorder.WAIT_SECONDS", 0.01)
    monkeypatch.setattr(async_writer, "WAIT_SECONDS", 0.01)
    real, may = checkpoint.save, threading.Event()

    def slow(folder: Path, images: int, *rest: object) -> Path:
        if images == 120:
            assert may.wait(30)
        return real(folder, images, *rest)  # type: ignore[arg-type]

    reported = RunFolder.say

    def say(folder: RunFolder, line: str) -> None:
        reported(folder, line)
        if "no checkpoint after 240 images" in line:
            may.set()

    monkeypatch.setattr(checkpoint, "save", slow)
    monkeypatch.setattr(RunFolder, "say", say)
    with pytest.raises(
        TrainingError, match="the last checkpoint could not be written .*the one before it is not"
    ):
        finished(wanted("ae", source, tmp_path, evaluate__every_images="120"))
    assert [int(path.name) for path in checkpoint.complete(tmp_path / "checkpoints")] == [120]


def test_only_what_a_disk_says_is_named_so(tmp_path: Path) -> None:
    expected = "Read-only file system: free space or repair the disk, then run again"
    with pytest.raises(TrainingError, match=expected), files.errors_named(tmp_path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    with pytest.raises(ConnectionResetError), files.errors_named(tmp_path):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_a_partial_folder_is_removed_only_when_its_process_is_gone(tmp_path: Path) -> None:
    dest = tmp_path / "out"
    with files.partial_folder(dest) as first, files.partial_folder(dest) as second:
        assert first.exists() and second.exists() and first != second
    assert not list(tmp_path.iterdir())
    for name in (".out.partial-1", ".out-2.partial-1"):
        os.mkdir(tmp_path / name)
    with files.partial_folder(dest):
        assert {path.name.split("-1")[0] for path in tmp_path.iterdir()} > {".out-2.partial"}
        assert not (tmp_path / ".out.partial-1").exists()


def test_a_line_that_a_kill_has_torn_is_cut_off_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log"
    files.append_lasting(path, "first")
    path.write_bytes(path.read_bytes() + b"secon")
    assert files.whole_lines(path) == [b"first"]
    files.append_lasting(path, "third")
    assert path.read_bytes() == b"first\nthird\n"
