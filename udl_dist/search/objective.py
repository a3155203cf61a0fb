"""The objective of a search, and the order that it gives to trials and settings; the winner."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import le
from typing import Any

from udl_dist import methods
from udl_dist.data.packing.prepare import survey
from udl_dist.errors import UsageError
from udl_dist.experiment import kinds
from udl_dist.search.config import Search
from udl_dist.search.trial_log import TrialResult


class Objective:
    """The metrics of a search by name, and the order they give to trials."""

    def __init__(self, search: Search) -> None:
        self.names = search.settings.metric
        self._sign = search.sign

    def of(self, metrics: Mapping[str, float], settings: Mapping[str, Any]) -> list[float]:
        """The objectives of a trial; nan where one is missing."""
        both = {**settings, **metrics}  # an objective may be a setting, such as the latent size
        # nan, not an error: the controller turns it into a failed trial with a reason.
        return [float(both.get(name, math.nan)) for name in self.names]

    def as_metric(self, values: Sequence[float]) -> float | list[float]:
        """As trials.jsonl has it: a number, or a list of several."""
        return values[0] if len(values) == 1 else list(values)

    def loss(self, values: Sequence[float]) -> float:
        """The first objective, the lower the better."""
        return self._sign * values[0]

    def losses(self, values: Sequence[float]) -> list[float]:
        """All of them; the first by its direction, settings and other metrics always minimised."""
        return [self.loss(values), *values[1:]]

    def front(self, results: Sequence[TrialResult]) -> list[TrialResult]:
        """The Pareto front: the trials that no other beats."""
        # Stopped trials too: with several objectives there are no rungs, so none is stopped.
        good = [result for result in results if result.metric is not None]
        losses = [self.losses(result.values) for result in good]
        # A trial is beaten by one that is as good in every objective, and not equal.
        return [
            result
            for result, own in zip(good, losses, strict=True)
            if not any(other != own and all(map(le, other, own)) for other in losses)
        ]

    def ranked(self, results: Sequence[TrialResult]) -> list[TrialResult]:
        """Complete trials, then stopped ones, those with more images first; the best first."""

        def rank(result: TrialResult) -> tuple[bool, int, float, int]:
            stopped = result.state != "complete"
            # Metrics of stopped trials are of different lengths: those with more images come first.
            # The number breaks ties, so that equal losses rank the same everywhere.
            return stopped, -result.images if stopped else 0, self.loss(result.values), result.trial

        return sorted((result for result in results if result.metric is not None), key=rank)


def mean_values(results: list[TrialResult]) -> list[float]:
    """Each objective's mean over the seeds of one setting."""
    columns = zip(*(result.values for result in results), strict=True)
    return [statistics.fmean(column) for column in columns]


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


def check_objective(search: Search) -> None:
    """Raise UsageError for an objective that is not reported, or not comparable across an axis."""
    from udl_dist.training.validation import refuse_unknown_metric

    names, base = search.settings.metric, search.base
    # Built, because its settings decide which metrics it reports.
    kind = methods.find(base.method_name)
    method = kind(base.method, base.data.shape, survey(base.data).classes)
    if base.run.best:
        refuse_unknown_metric("run.best", base.run.best, method)
    axes = [axis.name for axis in search.axes]
    if names[0] in axes:
        raise UsageError(
            f"search.metric: the first objective must be a metric; {names[0]} is an axis"
        )
    for name in names:
        if name not in axes:
            refuse_unknown_metric("search.metric", name, method)
            # Such as the ELBO across likelihoods: nats of a density against those of a probability.
            across = method.incomparable.get(name.removeprefix("val/")) or ()
            if changed := [axis for axis in axes if axis.removeprefix("method.") in across]:
                raise UsageError(
                    f"search.metric {name} does not compare across {changed[0]}: each value has "
                    "another scale; take another metric, or leave the axis out"
                )
        elif kinds(base.method_name)[name] not in (int, float):
            raise UsageError(f"search.metric: {name} is an axis, but not one of numbers")
    # A rung stops all but the best, and trials of a Pareto front have no order.
    if len(names) > 1 and search.settings.scheduler != "none":
        raise UsageError(
            "search.metric has several objectives, which no rung can rank: set "
            "search.scheduler = none"
        )
