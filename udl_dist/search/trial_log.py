"""trials.jsonl, the truth of a search: a line for each trial that ended, appended and synced. Knows
no Ray, no torch.

A trial that is not in it has not ended: it goes on from the checkpoint in its folder.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from udl_dist.core import files
from udl_dist.errors import UsageError

State = Literal["complete", "stopped", "failed"]


@dataclass(frozen=True)
class Line:
    """How a trial ended: after so many images, its metric there (None if it has none), all figures,
    why it failed.

    `rungs` are [images, metric] of each rung it reached; `settings` its values on the axes, by
    dotted name.
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
    waited_seconds: float = 0.0  # of them at rungs, for what was decided there
    why: str = ""

    @property
    def values(self) -> list[float]:
        """The metric as a list, one for each objective; empty if there is none."""
        if self.metric is None:
            return []
        return list(self.metric) if isinstance(self.metric, list) else [self.metric]


class Journal:
    """The lines of one search; appending is all that is ever done to them."""

    def __init__(self, path: Path, strict: bool = True) -> None:
        self.path = path
        self.lines: dict[int, Line] = {}
        self.odd: list[int] = []  # lines that make no sense, which only whoever looks passes over
        for number, text in enumerate(files.whole_lines(path), 1):
            if line := _parsed(text):
                self.lines.setdefault(line.trial, line)
            elif strict:
                raise UsageError(
                    f"{self.path}, line {number} is no line of a search: give back the file as it"
                    " was, or search in another --run.folder"
                )
            else:
                self.odd.append(number)

    def add(self, line: Line) -> None:
        """Append and sync; raise OSError with nothing of the line left in the file."""
        if line.trial in self.lines:
            raise AssertionError(f"trial {line.trial} ended twice")
        files.append_lasting(self.path, json.dumps(asdict(line)))
        self.lines[line.trial] = line


def _parsed(text: bytes) -> Line | None:
    """A line, if it is one."""
    try:
        told = json.loads(text)
        # empty but for population-based training, in journals of releases that had it
        told.pop("more", None)
        line = Line(**told)
        values = line.values
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    whole = type(line.trial) is int and type(line.images) is int and type(line.settings) is dict
    return line if whole and all(type(value) in (int, float) for value in values) else None
