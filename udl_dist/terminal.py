"""What a person sees of a run: one line that redraws on a terminal, a plain line every ten seconds in a log.

It reads the run folder and nothing else, so it shows what is kept.
"""

from __future__ import annotations

import json
import shutil
import time
from typing import Any, TextIO

from udl_dist.disk import Tail
from udl_dist.runs import RunFolder

LOG_SECONDS = 10.0
SHOWN = 4  # loss terms that fit on the line


class Screen:
    """Lines that stay, and on a terminal one below them that is drawn anew; in a log that one is a line like others.

    A terminal that has been closed, or a pipe whose reader has ended, ends no run: all of it is in the run folder too.
    """

    def __init__(self, out: TextIO) -> None:
        self._out, self.redraws, self._drawn, self._gone = out, out.isatty(), False, False

    def say(self, line: str) -> None:
        """A line that stays."""
        self._write(f"\r\033[K{line}\n" if self._drawn else f"{line}\n")
        self._drawn = False

    def draw(self, line: str) -> None:
        """A line that gives way to the next one."""
        if not self.redraws:
            self.say(line)
            return
        self._write(f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}")
        self._drawn = True

    def _write(self, text: str) -> None:
        if not self._gone:
            try:
                self._out.write(text)
                self._out.flush()
            except OSError:
                self._gone = True


class Terminal:
    """Follows one run folder from where it stands now."""

    def __init__(self, folder: RunFolder, total_images: int, out: TextIO) -> None:
        self._total = total_images
        self._screen = Screen(out)
        self.say = self._screen.say
        self._messages, self._curves = (Tail(path, from_end=True) for path in (folder.messages, folder.curves))
        self._last_line_at = float("-inf")
        self._held_out: dict[str, float] = {}
        self._unshown: dict[str, Any] = {}

    def refresh(self, last: bool = False) -> None:
        """Show what has come since the last call."""
        for line in self._messages.lines():
            self.say(line.decode())
        for line in self._curves.lines():
            self._unshown = json.loads(line)
            self._held_out |= {name: value for name, value in self._unshown.items() if name.startswith("val/")}
        if self._unshown and (self._screen.redraws or last or time.monotonic() - self._last_line_at >= LOG_SECONDS):
            self._screen.draw(progress_line(self._unshown, self._total, self._held_out))
            self._unshown = {}
            self._last_line_at = time.monotonic()


def progress_line(point: dict[str, float], total: int, held_out: dict[str, float]) -> str:
    """Images, share, speed, data wait, loss terms and time to go, in one line."""
    images, speed = int(point["images"]), point["perf/images_per_second"]
    terms = [
        (name, value) for name, value in point.items() if name.startswith("train/") and name != "train/learning_rate"
    ]
    parts = [
        f"{images:,} of {total:,} images {100 * images // total} %",
        f"{speed:,.0f} img/s",
        f"data wait {100 * point['perf/data_wait_share']:.1f} %",
        *(f"{name.removeprefix('train/')} {value:.4g}" for name, value in terms[:SHOWN]),
        *(f"{name} {value:.4g}" for name, value in list(held_out.items())[:2]),
        f"ETA {clock((total - images) / speed)}" if speed else "",
    ]
    return " · ".join(part for part in parts if part)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Progress:
    """Progress of something that is counted, such as packing: callable with (done, total)."""

    def __init__(self, what: str, out: TextIO, unit: str = "images") -> None:
        self._what, self._unit = what, unit
        self._screen = Screen(out)
        self._last_line_at = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        finished = done >= total
        quiet = 0.1 if self._screen.redraws else LOG_SECONDS
        if not finished and time.monotonic() - self._last_line_at < quiet:
            return
        self._last_line_at = time.monotonic()
        show = self._screen.say if finished else self._screen.draw
        show(f"{self._what}: {done:,} of {total:,} {self._unit}")
