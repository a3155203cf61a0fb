"""What a person sees of a run: one line that is redrawn, or in a log a line every ten seconds.

Reads only the run folder: everything shown is also recorded.
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

# tqdm and rich write thousands of lines into a log, or nothing; here a log gets one now and then.
LOG_SECONDS = 10.0
CLEAR = "\r\033[K"  # to the start of the line, and erase all of it
SHOWN = 4  # loss terms on the line, at most
COLUMNS = 80  # of a terminal of unknown width


class Screen:
    """Permanent lines and below them, on a terminal, one that is redrawn.

    A closed terminal or a pipe without a reader ends no run: the run folder has everything.
    """

    def __init__(self, out: TextIO) -> None:
        self._out, self.redraws, self._drawn, self._closed = out, out.isatty(), False, False

    def say(self, line: str) -> None:
        """Write a permanent line."""
        self._write(f"{CLEAR}{line}\n" if self._drawn else f"{line}\n")
        self._drawn = False

    def draw(self, line: str) -> None:
        """Write a line that the next one replaces; in a log, a line like others."""
        if not self.redraws:
            self.say(line)
            return
        # Cut, because a line that wraps cannot be redrawn: only its last row would be erased.
        self._write(f"{CLEAR}{line[: self.width]}")
        self._drawn = True

    def end(self) -> None:
        """Make the redrawn line permanent."""
        if self._drawn:
            self._write("\n")
        self._drawn = False

    @property
    def width(self) -> int:
        """Characters that fit in one line; unlimited in a log."""
        if not self.redraws:
            return sys.maxsize
        try:
            columns = os.get_terminal_size(self._out.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        return (columns or COLUMNS) - 1  # in the last column some terminals wrap already

    def _write(self, text: str) -> None:
        if not self._closed:
            try:
                self._out.write(text)
                self._out.flush()
            except OSError:
                self._closed = True


class Terminal:
    """Shows what is added to a run folder; `best` is a held-out metric.

    `sign` is -1 where more of it is better, else 1.
    """

    def __init__(
        self, folder: RunFolder, total_images: int, out: TextIO, best: str = "", sign: int = 1
    ) -> None:
        self._total, self._metric, self._sign = total_images, best, sign
        self._best = min(
            (sign * point[best] for point in folder.points() if best in point), default=math.inf
        )
        self._screen = Screen(out)
        self.say = self._screen.say
        # From the end: a resumed run does not show again what an earlier command has shown.
        self._messages, self._curves = (
            Tail(path, from_end=True) for path in (folder.messages, folder.curves)
        )
        self._last_line_at = float("-inf")  # the first point is shown at once, in a log, too
        self._held_out = ""  # the metric and its best value
        self._unshown: dict[str, Any] = {}
        self._phase, self._begun = "", False

    def starting(self, phase: str) -> None:
        """Show the phase of the start, until the curves have a first point."""
        if phase != self._phase and not self._begun:
            self._phase = phase
            self._screen.draw(phase)

    def refresh(self, last: bool = False) -> None:
        """Show what was added since the last call."""
        for line in self._messages.lines():
            self.say(line.decode())
        # Only the last new point is drawn, but each is looked at: few have held-out metrics.
        for line in self._curves.lines():
            self._unshown, self._begun = json.loads(line), True
            if (value := self._unshown.get(self._metric)) is not None:
                self._best = min(self._best, self._sign * value)
                best = self._sign * self._best
                self._held_out = f"{self._metric} {value:.4g}, best {best:.4g}"
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
    """One point in one line, most important parts first; parts that do not fit are left out."""
    images, speed = int(point["images"]), point["perf/images_per_second"]
    # By value, as the total of a loss with one term is that term: it is shown once.
    losses: dict[str, str] = {}
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
        # Nothing is shown behind a part that does not fit: what is shorter matters less.
        longer = f"{line} · {part}" if line else part
        if len(longer) > width:
            break
        line = longer
    return line


def page_hint(folder: Path) -> str:
    """The command that shows a run or a search as a page."""
    return (
        f"page         udl report {shlex.quote(str(folder))} --follow, while it runs; without"
        " --follow once"
    )


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Progress:
    """A progress line, such as of packing; called with (done, total)."""

    def __init__(self, what: str, out: TextIO, unit: str = "images") -> None:
        self._what, self._unit = what, unit
        self._screen = Screen(out)
        self._last_line_at = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        finished = done >= total
        # Called often: more than ten drawings a second would only take time.
        quiet = 0.1 if self._screen.redraws else LOG_SECONDS
        if not finished and time.monotonic() - self._last_line_at < quiet:
            return
        self._last_line_at = time.monotonic()
        show = self._screen.say if finished else self._screen.draw
        show(f"{self._what}: {done:,} of {total:,} {self._unit}")
