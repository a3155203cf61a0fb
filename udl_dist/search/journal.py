"""trials.jsonl, the truth of a search: a line for each trial that ended, appended and synced. Knows no Ray, no torch.

A trial that is not in it has not ended: it goes on from the checkpoint in its folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from udl_dist import disk
from udl_dist.errors import UsageError

State = Literal["complete", "stopped", "failed"]


@dataclass(frozen=True)
class Line:
    """How a trial ended: after so many images, its metric there (None if it has none), all figures, why it failed.

    `rungs` are [images, metric] of each rung it reached; `settings` its values on the axes, by dotted name.
    """

    trial: int
    state: State
    images: int
    metric: float | list[float] | None
    settings: dict[str, Any]
    seed: int = 0
    rungs: list[list[float]] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    why: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> list[float]:
        """The metric as a list, one for each objective; empty if there is none."""
        if self.metric is None:
            return []
        return list(self.metric) if isinstance(self.metric, list) else [self.metric]


class Journal:
    """The lines of one search; appending is all that is ever done to them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.torn = False  # the last line was cut off by a kill, and is forgotten
        self.lines: dict[int, Line] = {}
        for line in self._read():
            self.lines.setdefault(line.trial, line)

    def add(self, line: Line) -> None:
        """Append and sync; raise OSError with nothing of the line left in the file."""
        if line.trial in self.lines:
            raise AssertionError(f"trial {line.trial} ended twice")
        self.append(asdict(line))
        self.lines[line.trial] = line

    def append(self, values: Mapping[str, Any]) -> None:
        new = not self.path.exists()
        disk.append_line(self.path, json.dumps(values))
        disk.sync(self.path)
        if new:
            disk.sync(self.path.parent)

    def mend(self) -> None:
        """Cut off what a kill left of a last line, so that the next one is not glued to it; by whoever may write."""
        if self.torn:
            content = self.path.read_bytes()
            with self.path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
            self.torn = False

    def _read(self) -> Iterator[Line]:
        content = self.path.read_bytes() if self.path.exists() else b""
        whole, _, rest = content.rpartition(b"\n")
        self.torn = bool(rest)
        for number, text in enumerate(whole.splitlines(), 1):
            try:
                yield Line(**json.loads(text))
            except (ValueError, TypeError):
                raise UsageError(f"{self.path}, line {number} is no line of a search: give back the file as it was, "
                                 "or search in another --run.folder") from None  # fmt: skip
