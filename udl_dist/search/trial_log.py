"""trials.jsonl: one line for each trial that ended, appended and synced; and decisions.jsonl of a
trial: one line for each rung that was decided.

A trial without a line has not ended: it resumes from the checkpoint in its folder.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from udl_dist.core import files
from udl_dist.errors import UsageError
from udl_dist.runs.run_folder import RunFolder

# The only record of a search: the table, the plots and the winner follow from it, and so does what
# a resumed search does next.
LOG = "trials.jsonl"
CSV = "search.csv"  # the same for people
DECISIONS = "decisions.jsonl"

POLL_SECONDS = 0.001
SLOW_POLL_SECONDS = 0.05  # after 0.1 s, when the trial waits for other trials
# Well below the time limit of a collective (1,800 s by default): the other ranks wait in one for
# rank 0's answer, so it says "not yet" and the loop asks again.
PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended; the names of the fields are those in the file.

    `metric` is its value at the end (None if it failed), `figures` all held-out metrics, `rungs`
    [images, metric] of each rung it reached, `settings` its values on the axes by dotted name.
    """

    trial: int
    state: Literal["complete", "stopped", "failed"]
    images: int
    metric: float | list[float] | None
    settings: dict[str, Any]
    seed: int = 0
    rungs: list[list[float]] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    waited_seconds: float = 0.0  # part of `seconds`, at rungs
    why: str = ""  # it failed

    @property
    def values(self) -> list[float]:
        """The metric as a list, one for each objective; empty if there is none."""
        if self.metric is None:
            return []
        return list(self.metric) if isinstance(self.metric, list) else [self.metric]


class TrialLog:
    """The results of a search in the order of their ends; `invalid` are numbers of bad lines."""

    def __init__(self, path: Path, strict: bool = True) -> None:
        self.path = path
        self.results: dict[int, TrialResult] = {}
        self.invalid: list[int] = []
        for number, text in enumerate(files.whole_lines(path), 1):
            if result := _parsed(text):
                # Others were stopped by the first line, so a second must not replace it.
                self.results.setdefault(result.trial, result)  # the first line of a trial counts
            else:
                self.invalid.append(number)
        # Not skipped: without this result other trials would be stopped or drawn. A report, which
        # decides nothing, reads the rest (strict = False).
        if self.invalid and strict:
            raise UsageError(
                f"{path}, line {self.invalid[0]} is not a line of a search: restore the file, "
                "or search in another --run.folder"
            )

    def first(self, trials: int) -> list[TrialResult]:
        """Those of the first `trials` trials that have ended, by number."""
        return [result for trial, result in sorted(self.results.items()) if trial < trials]

    def add(self, result: TrialResult) -> None:
        """Append and sync; after an OSError nothing of the line is in the file."""
        assert result.trial not in self.results, f"trial {result.trial} ended twice"
        # On disk before it is in memory: decisions follow from `results`, and a power cut must not
        # take back a result that a decision was made from.
        files.append_lasting(self.path, json.dumps(asdict(result)))
        self.results[result.trial] = result


def _parsed(text: bytes) -> TrialResult | None:
    try:
        fields = json.loads(text)
        fields.pop("more", None)  # written by releases that had population-based training
        result = TrialResult(**fields)
        # By type(), since True is an int too. A NaN is never logged: its trial has failed.
        numbers = all(type(value) in (int, float) for value in result.values)
    # TypeError: unknown fields; AttributeError: no object; RecursionError: nested too deeply.
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    whole = type(result.trial) is int and type(result.images) is int
    return result if whole and numbers and type(result.settings) is dict else None


def write_csv(
    path: Path, metrics: Sequence[str], axes: Sequence[str], results: Sequence[TrialResult]
) -> None:
    """A row for each trial, a column for each objective, axis and held-out metric."""
    # Over all trials, sorted: columns do not depend on which trial ended first.
    held_out = sorted({name for result in results for name in result.figures})
    text = io.StringIO()
    # Python's default is \r\n, which shows in diffs.
    writer = csv.writer(text, lineterminator="\n")
    head = ["trial", "state", "images", *metrics, *axes, "seed", "seconds", *held_out, "why"]
    writer.writerow(head)
    for result in results:
        row: list[Any] = [result.trial, result.state, result.images]
        row += result.values or [""] * len(metrics)
        row += [result.settings.get(name, "") for name in axes]
        row += [result.seed, result.seconds]
        row += [result.figures.get(name, "") for name in held_out]
        writer.writerow([*row, result.why])
    files.write_whole(path, text.getvalue())


def short(value: Any) -> str:
    """A value for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Gate:
    """Makes a trial wait at a rung for its decision, which arrives by a file in its folder.

    `rungs` are in images, in whole steps of this trial. Only rank 0 reads the file. With `parks`
    it ends instead of waiting: the trial resumes from its checkpoint at the rung.
    """

    folder: str
    rungs: tuple[int, ...]
    parks: bool = False

    def __call__(self, images: int) -> bool | None:
        """Whether to go on: False once a stop is requested, None if no decision came in time."""
        passed = sum(rung <= images for rung in self.rungs)
        began = time.monotonic()
        # A "stop" at a lower rung is final, however many decisions are still missing.
        while len(answers := read_decisions(Path(self.folder))) < passed and all(answers):
            if self.parks or RunFolder(self.folder).stop_asked():
                return False
            # A signal must not have to wait for all earlier trials.
            waited = time.monotonic() - began
            if waited > PATIENCE_SECONDS:
                return None
            time.sleep(POLL_SECONDS if waited < 0.1 else SLOW_POLL_SECONDS)
        return all(answers[:passed])


def read_decisions(folder: Path) -> list[bool]:
    """For each rung that was decided, whether the trial goes on."""
    return [bool(json.loads(line)["goes_on"]) for line in files.whole_lines(folder / DECISIONS)]


def write_decision(folder: Path, rung: int, images: int, goes_on: bool) -> None:
    """Append the decision at a rung, once."""
    # The line number is the rung. A decision that is replayed for a resumed trial is there already.
    if len(read_decisions(folder)) == rung:
        # Not synced: after a power cut it is made again from curves and log, with one result.
        files.append_line(folder / DECISIONS, json.dumps({"images": images, "goes_on": goes_on}))
