"""What a search came to: a table for people, figures for machines, search.csv. Reads the journal
and run folders.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from udl_dist.core import files
from udl_dist.evaluation import io as written
from udl_dist.runs.run_folder import RunFolder
from udl_dist.search.config import Search
from udl_dist.search.objective import Objective
from udl_dist.search.publishing import MODEL, Handed
from udl_dist.search.trial_log import Line

SHOWN = 30  # trials in the table; all are in search.csv


@dataclass(frozen=True)
class Winner:
    """The best setting: the trial it was found by, its values, its mean metric over the seeds it
    had.
    """

    trial: int
    values: dict[str, Any]
    metric: float | list[float]


@dataclass(frozen=True)
class Ended:
    """How a search ended; `final`: mean, deviation and number of runs of the winner's figures."""

    search: Search
    lines: list[Line]
    trials: int
    budget: int
    winner: Winner | None
    final: dict[str, tuple[float, float, int]] = field(default_factory=dict)
    signal: int = 0
    handed: Handed = field(default_factory=Handed)

    @property
    def complete(self) -> bool:
        return len(self.lines) == self.trials

    @property
    def exit_code(self) -> int:
        if self.signal:
            return 128 + self.signal
        unfinished = self.final and self.search.settings.export and not self.handed.model
        return 4 if self.complete and (self.winner is None or unfinished) else 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "folder": str(self.search.folder),
            "complete": self.complete,
            "trials": self.trials,
            "ended": len(self.lines),
            "states": states(self.lines),
            "images": images(self.lines),
            "budget_images": self.budget,
            "metric": list(self.search.settings.metric),
            "best": (
                None
                if self.winner is None
                else {
                    "trial": self.winner.trial,
                    "metric": self.winner.metric,
                    "settings": self.winner.values,
                }
            ),
            "final": {
                name: {"mean": mean, "sd": deviation, "runs": runs}
                for name, (mean, deviation, runs) in self.final.items()
            },
            "front": [line.trial for line in Objective(self.search).front(self.lines)],
            **self.handed.as_dict(self.search.folder),
        }

    def lines_for_people(self) -> list[str]:
        found = [*table(self.search, self.lines), *self._summary()]
        if self.winner is None and self.complete:
            return [
                *found,
                f"no trial has a figure: why each failed is in {self.search.folder}/trials.jsonl",
            ]
        return [*found, *self._winner()]

    def status_lines(self) -> list[str]:
        """The same while it may still go on, with the trials at work."""
        working = at_work(self.search.folder, {line.trial for line in self.lines})
        told = [f"  trial {each['trial']}: {each['images']:,} images so far" for each in working]
        return [*self.lines_for_people(), *told]

    def _summary(self) -> list[str]:
        count = states(self.lines)
        used = images(self.lines)
        whole = self.budget * max(1, len(self.lines))
        told = ", ".join(f"{number} {state}" for state, number in count.items())
        state = "" if self.complete else "; the same command goes on"
        return [
            (
                f"{self.search.folder}: {len(self.lines)} of {self.trials} trials ended"
                f" ({told}){state}"
            ),
            f"  {used:,} images, {100 * used / whole:.0f} % of what they would be without stopping",
        ]

    def _winner(self) -> list[str]:
        if self.winner is None:
            return []
        told = ", ".join(f"{name} {short(value)}" for name, value in self.winner.values.items())
        lines = [f"  best: trial {self.winner.trial} ({told})"]
        for name, (mean, deviation, runs) in self.final.items():
            if name in self.search.settings.metric or len(self.final) == 1:
                lines.append(
                    f"  trained anew on the full budget: {name} {mean:.5g} ± {deviation:.2g}"
                    f" ({runs} runs)"
                )
        front = (
            Objective(self.search).front(self.lines) if len(self.search.settings.metric) > 1 else []
        )
        if front:
            lines.append(f"  nothing beats trials {', '.join(str(line.trial) for line in front)}")
        places = (
            "winner.toml",
            "search.csv",
            "trials.jsonl",
            "trials",
            "winner",
            "plots",
            written.NAME,
            MODEL,
        )
        there = [place for place in places if (self.search.folder / place).exists()]
        return [*lines, *self._handed(), f"  in it: {', '.join(there)}"]

    def _handed(self) -> list[str]:
        """The figures of the winner's runs, and its model."""
        told = (
            [f"  {line}" for line in written.table(self.handed.figures)]
            if self.handed.figures
            else []
        )
        model = self.search.folder / MODEL
        load = (
            [f'  its model: udl_dist.load("{model}"), from {self.handed.model}']
            if self.handed.model
            else []
        )
        return [*told, *(f"  {line}" for line in self.handed.left_out), *load]


def winner(search: Search, lines: Sequence[Line]) -> Winner | None:
    """The setting of the best mean over its seeds; one whose trials were all complete before any
    other.
    """
    objective, by_setting = Objective(search), dict[int, list[Line]]()
    for line in lines:
        by_setting.setdefault(line.trial // search.settings.seeds, []).append(line)
    whole = {
        which: each
        for which, each in by_setting.items()
        if len(each) == search.settings.seeds and all(line.state == "complete" for line in each)
    }
    some = whole or {
        which: good
        for which, each in by_setting.items()
        if (good := [line for line in each if line.metric is not None])
    }
    if not some:
        return None
    images = max(min(line.images for line in each) for each in some.values())
    means = {
        which: [
            statistics.fmean(column) for column in zip(*(line.values for line in each), strict=True)
        ]
        for which, each in some.items()
        if whole or min(line.images for line in each) == images
    }
    best = min(means, key=lambda which: (objective.loss(means[which]), which))
    first = some[best][0]
    return Winner(first.trial, first.settings, objective.told(means[best]))


def table(search: Search, lines: Sequence[Line]) -> list[str]:
    """The best trials, then those that were stopped, then those that failed, a line each."""
    ranked = Objective(search).ranked(lines)
    failed = [line for line in lines if line.metric is None]
    names = [axis.name for axis in search.axes]
    head = [
        "trial",
        "state",
        "images",
        *search.settings.metric,
        *names,
        *(["seed"] * (search.settings.seeds > 1)),
    ]
    rows = [
        [
            str(line.trial),
            line.state,
            f"{line.images:,}",
            *([short(value) for value in line.values] or ["–"] * len(search.settings.metric)),
            *(short(line.settings.get(name)) for name in names),
            *([str(line.seed)] * (search.settings.seeds > 1)),
            *([line.why[:60]] if line.why else []),
        ]
        for line in [*ranked, *failed][:SHOWN]
    ]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    shown = [
        "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=False))
        + ("  " + row[len(head)] if len(row) > len(head) else "")
        for row in [head, *rows]
    ]
    more = len(lines) - SHOWN
    return shown + ([f"… and {more} more in search.csv"] if more > 0 else [])


def write_csv(search: Search, lines: Sequence[Line]) -> None:
    """search.csv: a row a trial, a column for each axis and each held-out figure."""
    names = [axis.name for axis in search.axes]
    figures = sorted({name for line in lines for name in line.figures})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "trial",
            "state",
            "images",
            *search.settings.metric,
            *names,
            "seed",
            "seconds",
            *figures,
            "why",
        ]
    )
    for line in sorted(lines, key=lambda line: line.trial):
        values: list[Any] = [*line.values] or [""] * len(search.settings.metric)
        writer.writerow(
            [
                line.trial,
                line.state,
                line.images,
                *values,
                *(line.settings.get(name, "") for name in names),
                line.seed,
                line.seconds,
                *(line.figures.get(name, "") for name in figures),
                line.why,
            ]
        )
    files.write_whole(search.folder / "search.csv", text.getvalue())


def states(lines: Sequence[Line]) -> dict[str, int]:
    return {
        state: number
        for state in ("complete", "stopped", "failed")
        if (number := sum(line.state == state for line in lines))
    }


def images(lines: Sequence[Line]) -> int:
    return sum(line.images for line in lines)


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def at_work(folder: Path, ended: set[int]) -> list[dict[str, Any]]:
    """The trials that have begun and not ended: number, images of the last point, held-out figures
    of the last look.
    """
    found = []
    for path in sorted((folder / "trials").glob("*")):
        if path.name.isdecimal() and int(path.name) not in ended:
            points = RunFolder(path).points()
            held_out = [point for point in points if any(name.startswith("val/") for name in point)]
            figures = {
                name: value
                for name, value in (held_out[-1] if held_out else {}).items()
                if "val/" in name
            }
            images = int(points[-1]["images"]) if points else 0
            found.append({"trial": int(path.name), "images": images, "figures": figures})
    return found
