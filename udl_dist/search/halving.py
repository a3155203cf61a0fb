"""Decides which trials of a bracket go on, once all of them have reached a rung.

Successive halving (Jamieson and Talwalkar 2016): the best part of the trials goes on to the next
rung. A trial that waits is paused, so no actor waits with it; nothing depends on timing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, groupby

from udl_dist.errors import UsageError
from udl_dist.search.config import SearchSettings
from udl_dist.search.scheduler import Decision


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
        found = self._decide(trial) if before is None else [Decision(trial, rung, before)]
        return list(found)

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
