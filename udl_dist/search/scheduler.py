"""Decides which trials stop at which rung, as if they had run one after the other.

A decision depends only on results of trials with smaller numbers at the same rung: an early trial
waits at the rung for those that have not reached it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from udl_dist.core import files
from udl_dist.errors import UsageError
from udl_dist.runs.run_folder import RunFolder
from udl_dist.search.config import SearchSettings

# With the default reduction: after a 64th, a 16th and a quarter of the budget.
ASHA_RUNGS = 3  # unless search.least_images sets the first one
# Halving: with the first rung at a 16th of the budget, searches among 24 recorded VAEs and AEs lost
# 2 and 5 % on average, with one at an eighth nothing (docs/benchmarks.md).
HALVING_FIRST = 8
# At each tenth of the budget.
MEDIAN_RUNGS = 9
MEDIAN_TRIALS = 3  # the fewest for a median, as in Ray Tune

POLL_SECONDS = 0.001
SLOW_POLL_SECONDS = 0.05  # after 0.1 s, when the trial waits for other trials
# Well below the time limit of a collective (1,800 s by default): the other ranks wait in one for
# rank 0's answer, so it says "not yet" and the loop asks again.
PATIENCE_SECONDS = 20.0
DECISIONS = "decisions.jsonl"

# Whether a trial stops, by its losses at each rung up to this one, and those of earlier trials.
StopRule = Callable[[Sequence[float], Sequence[Sequence[float]]], bool]


def asha_stops(own: Sequence[float], earlier: Sequence[Sequence[float]], reduction: int) -> bool:
    """Asynchronous successive halving (Li et al. 2020): stop outside the best 1/reduction."""
    # A diverged trial has nan, with which np.percentile would be nan for all who come later.
    rewards = [-losses[-1] for losses in earlier if not math.isnan(losses[-1])]
    if not rewards:
        return False
    # The quantile of negated losses, as Ray Tune computes it: its rounding decides ties.
    # A nan of its own compares as False, so it goes on, and fails at its end.
    return bool(-own[-1] < np.percentile(rewards, (1 - 1 / reduction) * 100))


def median_stops(own: Sequence[float], earlier: Sequence[Sequence[float]]) -> bool:
    """Vizier's median rule (Golovin et al. 2017): stop if the best is above the median mean."""
    # Means over all rungs up to this one; a diverged trial has none.
    means = [mean for mean in map(np.mean, earlier) if np.isfinite(mean)]
    # `not <=` instead of `>`: a trial whose losses are nan is stopped.
    return len(means) >= MEDIAN_TRIALS and not min(own) <= np.median(means)


def stop_rule(settings: SearchSettings) -> StopRule:
    """The rule of search.scheduler; it is never asked where there are no rungs."""
    if settings.scheduler == "median":
        return median_stops
    return partial(asha_stops, reduction=settings.reduction)


def rungs(settings: SearchSettings, budget: int, batches: Sequence[int] = ()) -> tuple[int, ...]:
    """The images at which trials may stop; none without a scheduler.

    No two lie within one step of any of the batch sizes, and none within the last step.
    """
    geometric, least = settings.scheduler in ("asha", "halving"), settings.least_images
    if settings.scheduler == "none":
        return ()
    if settings.scheduler == "halving" and not least:
        least = max(1, budget // HALVING_FIRST)
    if settings.least_images >= budget:
        raise UsageError(
            f"search.least_images = {least} leaves no rung below the budget of {budget} images: "
            "lower it"
        )
    if least:
        found = [least]
        # Strictly below the budget: at its end a trial is complete, and there is nothing to decide.
        factor, term = (settings.reduction, 0) if geometric else (1, least)
        while (images := found[-1] * factor + term) < budget:
            found.append(images)
    else:
        parts = [part / (MEDIAN_RUNGS + 1) for part in range(1, MEDIAN_RUNGS + 1)]
        if geometric:
            parts = [settings.reduction**-power for power in range(ASHA_RUNGS, 0, -1)]
        found = list(dict.fromkeys(max(1, int(budget * part)) for part in parts))
    return _apart(found, budget, batches)


def _apart(found: Iterable[int], budget: int, batches: Sequence[int]) -> tuple[int, ...]:
    for batch in batches:
        by_step: dict[int, int] = {}  # the first rung within each step
        for images in found:
            # Two rungs within one step are reached at once: one is enough.
            by_step.setdefault(-(-images // batch), images)
        found = [images for step, images in by_step.items() if step < -(-budget // batch)]
    return tuple(found)


@dataclass(frozen=True)
class Decision:
    trial: int
    rung: int
    goes_on: bool


class Scheduler:
    """Gets results and ends in any order; decides in the order of trials at each rung."""

    def __init__(self, count: int, stops: StopRule) -> None:
        self._stops = stops
        self._losses: list[dict[int, float]] = [{} for _ in range(count)]  # of trials, by rung
        self._next = [0] * count  # the first undecided trial at each rung
        self._gone: set[int] = set()  # trials that reach no further rung
        self.decided: dict[tuple[int, int], bool] = {}

    def arrive(self, trial: int, rung: int, loss: float) -> list[Decision]:
        """Add a result and decide what is possible; a repeated result changes nothing."""
        self._losses[rung].setdefault(trial, loss)
        before = self.decided.get((trial, rung))
        return list(self._decide()) if before is None else [Decision(trial, rung, before)]

    def end(self, trial: int) -> list[Decision]:
        """A trial has ended: decide what is possible now."""
        self._gone.add(trial)
        return list(self._decide())

    def _decide(self) -> Iterator[Decision]:
        # From the lowest rung: a trial that stops there is not waited for at those above.
        for rung, losses in enumerate(self._losses):
            while (trial := self._next[rung]) in losses or trial in self._gone:
                self._next[rung] += 1
                if trial in losses:
                    goes_on = self._goes_on(trial, rung)
                    self.decided[trial, rung] = goes_on
                    # Its process may run on for a step; higher rungs need not wait for it.
                    if not goes_on:
                        self._gone.add(trial)
                    yield Decision(trial, rung, goes_on)

    def _goes_on(self, trial: int, rung: int) -> bool:
        passed = self._losses[: rung + 1]
        # Smaller numbers only: their results are known whatever the timing (see `_decide`).
        earlier = sorted(other for other in self._losses[rung] if other < trial)
        losses = [[at_rung[other] for at_rung in passed] for other in earlier]
        return not self._stops([at_rung[trial] for at_rung in passed], losses)


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
