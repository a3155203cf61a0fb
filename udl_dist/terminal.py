"""What a person sees of a run: one line that redraws on a terminal, a plain line every ten seconds in a log.

It reads the run folder and nothing else, so it shows what is kept.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, TextIO

from udl_dist.runs import RunFolder

LOG_SECONDS = 10.0
SHOWN = 4  # loss terms that fit on the line


class Terminal:
    """Follows one run folder from where it stands now."""

    def __init__(self, folder: RunFolder, total_images: int, out: TextIO) -> None:
        self._folder = folder
        self._total = total_images
        self._out = out
        self._redraws = out.isatty()
        self._read = {path: _end_of(path) for path in (folder.curves, folder.messages)}
        self._drawn = False
        self._last_line_at = float("-inf")
        self._held_out: dict[str, float] = {}
        self._unshown: dict[str, Any] = {}

    def say(self, line: str) -> None:
        """A line that stays."""
        self._out.write(f"\r\033[K{line}\n" if self._drawn else f"{line}\n")
        self._drawn = False
        self._out.flush()

    def refresh(self, last: bool = False) -> None:
        """Show what has come since the last call."""
        for line in self._new_lines("messages"):
            self.say(line)
        for line in self._new_lines("curves"):
            self._unshown = json.loads(line)
            self._held_out |= {name: value for name, value in self._unshown.items() if name.startswith("val/")}
        if self._unshown and (self._redraws or last or time.monotonic() - self._last_line_at >= LOG_SECONDS):
            self._show(self._unshown)

    def _show(self, point: dict[str, Any]) -> None:
        self._unshown = {}
        self._last_line_at = time.monotonic()
        line = progress_line(point, self._total, self._held_out)
        if self._redraws:
            width = shutil.get_terminal_size().columns
            self._out.write(f"\r\033[K{line[: width - 1]}")
            self._drawn = True
            self._out.flush()
        else:
            self.say(line)

    def _new_lines(self, which: str) -> list[str]:
        """The whole lines appended to a file since the last call; a rewound file is read again from its start."""
        path = self._folder.curves if which == "curves" else self._folder.messages
        if not path.exists():
            return []
        with path.open("rb") as file:
            number, read = self._read[path]
            if number != (now := os.fstat(file.fileno()).st_ino):
                number, read = now, 0
            file.seek(read)
            fresh = file.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._read[path] = number, read + len(whole)
        return whole.decode().splitlines()


def _end_of(path: Path) -> tuple[int, int]:
    """The inode and size of a file; zeros if there is none."""
    if not path.exists():
        return 0, 0
    status = path.stat()
    return status.st_ino, status.st_size


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
        self._out = out
        self._redraws = out.isatty()
        self._last_line_at = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        finished = done >= total
        quiet = 0.1 if self._redraws else LOG_SECONDS
        if not finished and time.monotonic() - self._last_line_at < quiet:
            return
        self._last_line_at = time.monotonic()
        line = f"{self._what}: {done:,} of {total:,} {self._unit}"
        self._out.write(f"\r\033[K{line}" + ("\n" if finished else "") if self._redraws else f"{line}\n")
        self._out.flush()
