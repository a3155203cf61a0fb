"""What a person sees of a run: one line that redraws on a terminal, a plain line every ten seconds
in a log.

It reads the run folder and nothing else, so it shows what is kept.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from udl_dist.core.files import Tail
from udl_dist.runs.run_folder import RunFolder

LOG_SECONDS = 10.0
SHOWN = 4  # loss terms on the line, at most
COLUMNS = 80  # of a terminal that does not tell its width


class Screen:
    """Lines that stay, and on a terminal one below them that is drawn anew; in a log that one is a
    line like others.

    A terminal that has been closed, or a pipe whose reader has ended, ends no run: all of it is in
    the run folder too.
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
        self._write(f"\r\033[K{line[: self.width]}")
        self._drawn = True

    def end(self) -> None:
        """What was drawn last stays, and whoever writes next begins a line."""
        if self._drawn:
            self._write("\n")
        self._drawn = False

    @property
    def width(self) -> int:
        """Letters that fit in one line; of a log as many as there are."""
        if not self.redraws:
            return sys.maxsize
        try:
            columns = os.get_terminal_size(self._out.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        return (columns or COLUMNS) - 1

    def _write(self, text: str) -> None:
        if not self._gone:
            try:
                self._out.write(text)
                self._out.flush()
            except OSError:
                self._gone = True


class Terminal:
    """Follows one run folder from where it stands now; `best` is the held-out metric whose least
    value is best.
    """

    def __init__(self, folder: RunFolder, total_images: int, out: TextIO, best: str = "") -> None:
        self._total, self._metric = total_images, best
        self._best = min(
            (point[best] for point in folder.points() if best in point), default=math.inf
        )
        self._screen = Screen(out)
        self.say = self._screen.say
        self._messages, self._curves = (
            Tail(path, from_end=True) for path in (folder.messages, folder.curves)
        )
        self._last_line_at = float("-inf")
        self._held_out = ""  # the metric and its best so far
        self._unshown: dict[str, Any] = {}
        self._phase, self._begun = "", False

    def starting(self, phase: str) -> None:
        """Show what the start of a run is at, until it has a first point of its curves."""
        if phase != self._phase and not self._begun:
            self._phase = phase
            self._screen.draw(phase)

    def refresh(self, last: bool = False) -> None:
        """Show what has come since the last call."""
        for line in self._messages.lines():
            self.say(line.decode())
        for line in self._curves.lines():
            self._unshown, self._begun = json.loads(line), True
            if (value := self._unshown.get(self._metric)) is not None:
                self._best = min(self._best, value)
                self._held_out = f"{self._metric} {value:.4g}, best {self._best:.4g}"
        if self._unshown and (
            self._screen.redraws or last or time.monotonic() - self._last_line_at >= LOG_SECONDS
        ):
            self._screen.draw(
                progress_line(self._unshown, self._total, self._held_out, self._screen.width)
            )
            self._unshown = {}
            self._last_line_at = time.monotonic()
        if last:
            self._screen.end()


def progress_line(
    point: Mapping[str, float], total: int, held_out: str = "", width: int = sys.maxsize
) -> str:
    """What matters most first; what does not fit in `width` is left out as a whole, the last parts
    first.
    """
    images, speed = int(point["images"]), point["perf/images_per_second"]
    losses: dict[str, str] = {}  # by value: a loss of one term is that term
    for name, value in point.items():
        if name.startswith("train/") and name != "train/learning_rate":
            losses.setdefault(f"{value:.4g}", f"{name.removeprefix('train/')} {value:.4g}")
    first, *others = [*losses.values(), ""][: SHOWN + 1]
    parts = [
        f"{100 * images // total} %",
        f"{speed:,.0f} img/s",
        f"ETA {clock((total - images) / speed)}" if speed else "",
        first,
        held_out,
        *others,
        f"{images:,} of {total:,} images",
        f"data wait {100 * point['perf/data_wait_share']:.1f} %",
    ]
    line = ""
    for part in filter(None, parts):
        longer = f"{line} · {part}" if line else part
        if len(longer) > width:
            break
        line = longer
    return line


def page_hint(folder: Path) -> str:
    """Where to look while a run or a search is at work."""
    return (
        f"page         udl report {shlex.quote(str(folder))} --follow, while it is at work; without"
        " --follow once"
    )


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
