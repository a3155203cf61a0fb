"""Decides which trials stop at which rung, whatever the order in which results arrive.

ASHA and the median rule decide as if trials had run one after the other: only results of trials
with smaller numbers count, and an early trial waits at the rung for those that have not reached it.

Successive halving (Jamieson and Talwalkar 2016) decides once all trials of a bracket have reached a
rung: the best part goes on. A trial that waits is paused, so no actor waits with it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby

import numpy as np

from udl_dist.errors import UsageError
from udl_dist.search.config import SearchSettings

# With the default reduction: after a 64th, a 16th and a quarter of the budget.
ASHA_RUNGS = 3  # unless search.least_images sets the first one
# Halving: with the first rung at a 16th of the budget, searches among 24 recorded VAEs and AEs lost
# 2 and 5 % on average, with one at an eighth nothing (docs/benchmarks.md).
HALVING_FIRST = 8
# At each tenth of the budget.
MEDIAN_RUNGS = 9
MEDIAN_TRIALS = 3  # the fewest for a median, as in Ray Tune

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


def brackets(settings: SearchSettings, trials: int, had: tuple[int, ...] = ()) -> tuple[int, ...]:
    """The trials of each bracket; by default all in one.

    `had` are those that the search was started with: trials were compared in them, so trials that
    are asked for later are compared among themselves.
    """
    more = (trials - sum(had),) if trials > sum(had) else ()
    sizes = settings.brackets or (*had, *more)
    if sizes[: len(had)] != had or sum(had) > trials:
        raise UsageError(
            f"the trials of this search are compared in search.brackets = {list(had)}: "
            "search.trials may grow, and other brackets follow these; or search in another "
            "--run.folder"
        )
    if min(sizes) < 1:
        raise UsageError(
            f"search.brackets = {list(sizes)} has a bracket without a trial: leave it out"
        )
    if sum(sizes) != trials:
        raise UsageError(
            f"search.brackets = {list(sizes)} has {sum(sizes)} trials, but the search has {trials}:"
            " leave it out, or let it add up"
        )
    # A setting with a seed in another bracket would have no mean to be ranked by.
    if any(size % settings.seeds for size in sizes):
        raise UsageError(
            f"search.brackets = {list(sizes)} splits the search.seeds = {settings.seeds} of a"
            " setting: take multiples of it"
        )
    return sizes


def best_part(losses: Mapping[int, float], reduction: int, seeds: int = 1) -> set[int]:
    """The trials that go on: those of the best 1/reduction of the settings, rounded up.

    `losses` is by trial; consecutive trials are the `seeds` of one setting, which has their mean.
    A loss that is no number never goes on; of equal settings the one with the smaller number does.
    """
    # A setting that lacks a seed (it failed) cannot win, so it comes last.
    found: list[tuple[bool, float, tuple[int, ...]]] = []
    for _, own in groupby(sorted(losses), key=lambda trial: trial // seeds):
        trials = tuple(own)
        loss = statistics.fmean(losses[trial] for trial in trials)
        found.append((len(trials) < seeds, loss, trials))
    going_on = sorted(each for each in found if not math.isnan(each[1]))
    return {trial for _, _, own in going_on[: -(-len(found) // reduction)] for trial in own}


def sizes(trials: int, rungs: int, reduction: int, seeds: int = 1) -> list[int]:
    """How many trials of a bracket start towards each rung, and towards the end."""
    settings = accumulate(range(rungs), lambda left, _: -(-left // reduction), initial=trials)
    if seeds == 1:
        return list(settings)
    return [each * seeds for each in sizes(trials // seeds, rungs, reduction)]


class Halving:
    """Gets results and ends in any order; decides a rung when no trial of the bracket is missing.

    `sizes` are those of the brackets: trials have consecutive numbers.
    """

    def __init__(self, rungs: int, sizes: Sequence[int], reduction: int, seeds: int) -> None:
        self._reduction, self._seeds = reduction, seeds
        starts = [0, *accumulate(sizes)]
        self._brackets = [
            range(start, start + size) for start, size in zip(starts, sizes, strict=False)
        ]
        self._losses: list[dict[int, float]] = [{} for _ in range(rungs)]  # of trials, by rung
        self._gone: set[int] = set()  # trials that reach no further rung
        self.decided: dict[tuple[int, int], bool] = {}

    def bracket(self, trial: int) -> range:
        """The trials of the bracket of a trial."""
        return next(bracket for bracket in self._brackets if trial in bracket)

    def arrive(self, trial: int, rung: int, loss: float) -> list[Decision]:
        """Add a result and decide what is possible; a repeated result changes nothing."""
        self._losses[rung].setdefault(trial, loss)
        before = self.decided.get((trial, rung))
        return list(self._decide(trial)) if before is None else [Decision(trial, rung, before)]

    def end(self, trial: int) -> list[Decision]:
        """A trial has ended: decide what is possible now."""
        self._gone.add(trial)
        return list(self._decide(trial))

    def _decide(self, trial: int) -> Iterator[Decision]:
        left = set(self.bracket(trial))
        for rung, losses in enumerate(self._losses):
            # A trial that failed on its way is not waited for; one that failed later counts here.
            if left - losses.keys() - self._gone:
                return
            there = {each: losses[each] for each in left & losses.keys()}
            best = best_part(there, self._reduction, self._seeds)
            for each in sorted(there):
                if (each, rung) not in self.decided:
                    self.decided[each, rung] = each in best
                    yield Decision(each, rung, each in best)
            left = best
