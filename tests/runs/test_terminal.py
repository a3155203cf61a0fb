"""One line that redraws on a terminal, plain lines in a log; nothing that is not in the run
folder.
"""

import contextlib
import fcntl
import io
import os
import pty
import struct
import termios
from pathlib import Path

import pytest

from udl_dist.runs.run_folder import RunFolder
from udl_dist.runs.terminal import Progress, Terminal, clock, progress_line

POINT = {
    "train/loss": 98.1234,
    "train/kl": 20.5,
    "train/learning_rate": 1e-3,
    "perf/images_per_second": 5000.0,
    "perf/data_wait_share": 0.004,
}


class Screen(io.StringIO):
    """A terminal that keeps what was written."""

    def isatty(self) -> bool:
        return True


def test_the_line_says_first_what_matters_most() -> None:
    line = progress_line({"images": 25_000, **POINT}, 100_000, "val/kl 21, best 20.5")
    assert (
        line
        == "25 % · 5,000 img/s · ETA 0:00:15 · loss 98.12 · val/kl 21, best 20.5 · kl 20.5 · 25,000"
        " of 100,000 images · data wait 0.4 %"
    )
    assert clock(3725.4) == "1:02:05"


def test_a_loss_of_one_term_is_shown_once() -> None:
    point = {
        "images": 500,
        **POINT,
        "train/loss": 3.5,
        "train/reconstruction": 3.5,
        "train/kl": 0.25,
    }
    assert progress_line(point, 1000).startswith(
        "50 % · 5,000 img/s · ETA 0:00:00 · loss 3.5 · kl 0.25 · 500 of"
    )


@pytest.mark.parametrize("width", range(20, 140, 7))
def test_a_line_fits_and_no_part_of_it_is_cut(width: int) -> None:
    whole = progress_line({"images": 25_000, **POINT}, 100_000, "val/kl 21, best 20.5")
    line = progress_line({"images": 25_000, **POINT}, 100_000, "val/kl 21, best 20.5", width)
    assert len(line) <= width
    assert whole == line or whole.startswith(f"{line} · ")


def test_a_line_fits_the_window_that_it_is_written_to(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
    folder = RunFolder(tmp_path)
    with os.fdopen(theirs, "w") as screen:
        terminal = Terminal(folder, 100_000, screen)
        folder.add_point(25_000, POINT)
        terminal.refresh()
        drawn = os.read(ours, 1000).decode()
    os.close(ours)
    assert drawn == "\r\033[K25 % · 5,000 img/s · ETA 0:00:15 · loss 98.12"


def test_the_metric_that_chooses_the_best_is_shown_with_its_best_so_far(tmp_path: Path) -> None:
    folder, log = RunFolder(tmp_path), io.StringIO()
    for images, value in ((100, 0.5), (200, 0.25)):
        folder.add_point(images, {**POINT, "val/frechet_8x8": value, "val/contrast": 1.0})
    terminal = Terminal(folder, 1000, log, "val/frechet_8x8")  # of a run that is gone on with
    folder.add_point(300, {**POINT, "val/frechet_8x8": 0.75, "val/contrast": 1.0})
    folder.add_point(400, POINT)
    terminal.refresh()
    assert "val/frechet_8x8 0.75, best 0.25" in log.getvalue()
    assert "contrast" not in log.getvalue()


def test_each_phase_of_a_start_is_named_once_and_none_after_the_first_point(tmp_path: Path) -> None:
    folder, log = RunFolder(tmp_path), io.StringIO()
    terminal = Terminal(folder, 1000, log)
    for phase in ("starting Ray", "starting Ray", "starting 2 workers"):
        terminal.starting(phase)
    folder.add_point(100, POINT)
    terminal.refresh()
    terminal.starting("starting 1 workers")
    lines = log.getvalue().splitlines()
    assert lines[:2] == ["starting Ray", "starting 2 workers"]
    assert len(lines) == 3


def test_a_terminal_redraws_one_line_and_messages_stay_above_it(tmp_path: Path) -> None:
    folder, screen = RunFolder(tmp_path), Screen()
    terminal = Terminal(folder, 1000, screen)
    for images in (100, 200):
        folder.add_point(images, POINT)
        terminal.refresh()
    folder.say("resumed")
    terminal.refresh()
    drawn = screen.getvalue()
    assert drawn.count("\n") == 1, "only the message stays"
    assert drawn.count("\r\033[K") == 3
    assert drawn.rstrip().endswith("resumed")


def test_the_last_line_stays_on_a_terminal_and_is_ended(tmp_path: Path) -> None:
    folder, screen = RunFolder(tmp_path), Screen()
    terminal = Terminal(folder, 1000, screen)
    folder.add_point(1000, POINT)
    terminal.refresh()
    terminal.refresh(last=True)
    assert screen.getvalue().endswith("kl 20.5\n")
    assert screen.getvalue().count("\n") == 1


def test_a_log_gets_a_line_now_and_then_and_the_last_one_always(tmp_path: Path) -> None:
    folder, log = RunFolder(tmp_path), io.StringIO()
    terminal = Terminal(folder, 1000, log)
    for images in range(100, 1001, 100):
        folder.add_point(images, POINT)
        terminal.refresh()
    terminal.refresh(last=True)
    lines = log.getvalue().splitlines()
    assert [line.partition(" · ")[0] for line in lines] == ["10 %", "100 %"]
    assert "\033" not in log.getvalue()


def test_curves_that_were_rewound_are_followed_from_there(tmp_path: Path) -> None:
    folder, screen = RunFolder(tmp_path), Screen()
    for images in (100, 200, 300):
        folder.add_point(images, POINT)
    terminal = Terminal(folder, 1000, screen)
    folder.rewind(100)
    terminal.refresh()
    folder.add_point(200, POINT)
    terminal.refresh()
    assert "200 of 1,000" in screen.getvalue()  # it fits in 80 columns


def test_curves_that_were_rewound_and_grew_beyond_where_they_were_are_read_whole(
    tmp_path: Path,
) -> None:
    folder, log = RunFolder(tmp_path), io.StringIO()
    folder.add_point(100, POINT)
    folder.add_point(200, POINT)
    terminal = Terminal(folder, 1000, log, "val/kl")
    folder.rewind(100)
    folder.add_point(150, {**POINT, "val/kl": 3.25})  # longer: the old end lies within this line
    folder.add_point(250, POINT)
    terminal.refresh(last=True)
    assert "250 of 1,000" in log.getvalue() and "val/kl 3.25" in log.getvalue()


def test_progress_is_counted_on_one_line(tmp_path: Path) -> None:
    screen, log = Screen(), io.StringIO()
    for out in (screen, log):
        progress = Progress("packing", out)
        for done in range(0, 101, 10):
            progress(done, 100)
    assert screen.getvalue().count("\n") == 1
    assert log.getvalue() == "packing: 100 of 100 images\n"


def test_a_terminal_that_has_been_closed_ends_no_run(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as screen:
        terminal = Terminal(RunFolder(tmp_path), 1000, screen)
        os.close(ours)
        terminal.say("stopping")
        terminal.say("stopped")
        Progress("packing", screen)(10, 10)
        with contextlib.suppress(OSError):
            screen.close()
