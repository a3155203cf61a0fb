"""The best settings of a search, by the mean over their seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from udl_dist.search.config import Search
from udl_dist.search.objective import Objective
from udl_dist.search.samplers import mean_values
from udl_dist.search.trial_log import TrialResult


@dataclass(frozen=True)
class Winner:
    """The best setting: the first trial that had it, its values, its mean metric over seeds."""

    trial: int
    values: dict[str, Any]
    metric: float | list[float]


@dataclass(frozen=True)
class Spread:
    """A metric over runs; `sd` is that of a sample, 0 of one run."""

    mean: float
    sd: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        sd = statistics.stdev(values) if len(values) > 1 else 0.0
        return cls(statistics.fmean(values), sd, len(values))


def settings_ranked(search: Search, results: Sequence[TrialResult]) -> list[list[TrialResult]]:
    """The trials of each setting, one for each seed; the best mean over its seeds first.

    Settings that are not complete on all seeds come last, those with the most images first.
    """
    seeds, objective = search.settings.seeds, Objective(search)
    by_setting: dict[int, list[TrialResult]] = {}
    for result in results:
        if result.metric is not None:
            # A failed seed is missing here, so its setting counts as unfinished below.
            by_setting.setdefault(result.trial // seeds, []).append(result)

    def rank(setting: int) -> tuple[bool, int, float, int]:
        own = by_setting[setting]
        unfinished = not is_complete(own, seeds)
        # A stopped trial's metric is of fewer images: only those of equal images compare.
        images = min(result.images for result in own) if unfinished else 0
        return unfinished, -images, objective.loss(mean_values(own)), setting

    return [by_setting[setting] for setting in sorted(by_setting, key=rank)]


def is_complete(own: Sequence[TrialResult], seeds: int) -> bool:
    """Whether a setting is complete on all its seeds."""
    return [result.state for result in own] == ["complete"] * seeds


def find_winner(search: Search, results: Sequence[TrialResult]) -> Winner | None:
    """The setting of the best mean over its seeds, or the best of those that are not complete."""
    return next(iter(best_settings(search, results, 1)), None)


def best_settings(search: Search, results: Sequence[TrialResult], count: int) -> list[Winner]:
    """The best settings, as many as are complete; at least one, if a trial has a metric."""
    objective, ranked = Objective(search), settings_ranked(search, results)
    complete = [own for own in ranked if is_complete(own, search.settings.seeds)]
    return [
        Winner(own[0].trial, own[0].settings, objective.as_metric(mean_values(own)))
        for own in (complete or ranked[:1])[:count]
    ]
