"""What a search wants the least (or the most) of, checked before anything starts: who is best.
Needs torch to check.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from udl_dist import methods
from udl_dist.errors import UsageError
from udl_dist.experiment import kinds
from udl_dist.search.config import Search
from udl_dist.search.trial_log import Line


class Objective:
    """The figures of a search by name, and the order in which they put trials."""

    def __init__(self, search: Search) -> None:
        self.names = search.settings.metric
        self._sign = 1.0 if search.settings.mode == "min" else -1.0

    @property
    def in_words(self) -> str:
        return " and ".join(self.names)

    def of(self, figures: Mapping[str, float], values: Mapping[str, Any]) -> list[float]:
        """The objectives of a trial; nan where one is missing."""
        both = {**values, **figures}
        return [float(both.get(name, math.nan)) for name in self.names]

    def told(self, metric: Sequence[float]) -> float | list[float]:
        return metric[0] if len(metric) == 1 else list(metric)

    def loss(self, metric: Sequence[float]) -> float:
        """The first objective as something that is best at its least."""
        return self._sign * metric[0]

    def losses(self, metric: Sequence[float]) -> list[float]:
        """All of them; `mode` is that of the first, the others are always best at their least."""
        return [self.loss(metric), *metric[1:]]

    def front(self, lines: Sequence[Line]) -> list[Line]:
        """The trials that no other is as good as in every objective and better in one."""
        every = {line.trial: self.losses(line.values) for line in lines if line.metric is not None}
        return [
            line
            for line in lines
            if line.trial in every
            and not any(_beats(other, every[line.trial]) for other in every.values())
        ]

    def ranked(self, lines: Sequence[Line]) -> list[Line]:
        """Complete trials first, then those that were stopped later; the best of each first, no
        failed one.
        """
        good = [line for line in lines if line.metric is not None]
        return sorted(
            good,
            key=lambda line: (
                line.state != "complete",
                -line.images if line.state != "complete" else 0,
                self.loss(line.values),
                line.trial,
            ),
        )


def check(search: Search) -> None:
    """Raise UsageError for an objective that nobody reports, or that does not compare across an
    axis.
    """
    from udl_dist.training.validation import refuse_unknown_metric

    found, base = search.settings, search.base
    method = methods.find(base.method_name)(base.method, base.data.shape)
    if base.run.best:
        refuse_unknown_metric("run.best", base.run.best, method)
    axes = {axis.name: axis for axis in search.axes}
    for name in found.metric:
        if name in axes:
            if kinds(search.base.method_name)[name] not in (int, float) or len(found.metric) == 1:
                raise UsageError(
                    f"search.metric: {name} is an axis: as a further objective it can be any of"
                    " numbers"
                )
            continue
        refuse_unknown_metric("search.metric", name, method)
        _refuse_unequal(name, search)
    if found.metric[0] in axes:
        raise UsageError(
            "search.metric: the first objective must be a figure, not the setting"
            f" {found.metric[0]}"
        )
    if len(found.metric) > 1 and found.scheduler != "none":
        raise UsageError(
            "search.metric has several objectives: at a rung no trial is plainly worse, set "
            "search.scheduler = none"
        )


def _refuse_unequal(name: str, search: Search) -> None:
    """A figure that means another thing for each value of an axis ranks nothing."""
    method = methods.find(search.base.method_name)
    across = method.incomparable.get(name.removeprefix("val/"))
    for axis in search.axes:
        if across and axis.name.removeprefix("method.") in across:
            raise UsageError(
                f"search.metric {name} does not compare across {axis.name}: its values are of"
                " another scale for each; take another metric, or leave the axis out"
            )


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
