"""How much of what the metric does an axis explains by itself: variance between groups of its
values over all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from udl_dist.search.axes import Axis
from udl_dist.search.config import Search
from udl_dist.search.objective import Objective
from udl_dist.search.trial_log import Line

GROUPS = 4  # of the values of a range, with as many trials each
LEAST = 8  # trials, below which nothing is said


def importance(search: Search, lines: Sequence[Line]) -> dict[str, float]:
    """By axis, the greatest first, the share η² of the variance of the ranks of trials at the first
    rung they all had.

    Ranks, so that one diverged trial is not all there is; groups of a few trials explain something
    by chance, which is taken off (ω²). Interactions are nobody's.
    """
    ranked = np.array([_first(search, line) for line in lines]).argsort().argsort().astype(float)
    if len(lines) < LEAST or not ranked.var():
        return {}
    shares = {axis.name: _share(_groups(axis, lines), ranked) for axis in search.axes}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def numbers(axis: Axis, lines: Sequence[Line]) -> list[float] | None:
    """The values of trials on an axis of numbers; None for one of names."""
    values = [line.settings[axis.name] for line in lines]
    return (
        [float(value) for value in values]
        if all(type(value) in (int, float) for value in values)
        else None
    )


def _first(search: Search, line: Line) -> float:
    return Objective(search).loss([line.rungs[0][1]] if line.rungs else line.values)


def _groups(axis: Axis, lines: Sequence[Line]) -> list[int]:
    """Which group each trial belongs to: a value of a choice, or a quarter of a range."""
    values = numbers(axis, lines)
    if axis.values or values is None:
        kinds = [str(line.settings[axis.name]) for line in lines]
        return [sorted(set(kinds)).index(kind) for kind in kinds]
    order = np.asarray(values).argsort().argsort()
    return [int(place * GROUPS / len(lines)) for place in order]


def _share(groups: list[int], ranked: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    kinds, count = sorted(set(groups)), len(ranked)
    if len(kinds) < 2 or count <= len(kinds):
        return 0.0
    parts = [ranked[np.asarray(groups) == kind] for kind in kinds]
    between = sum(len(part) * (part.mean() - ranked.mean()) ** 2 for part in parts)
    within = sum(((part - part.mean()) ** 2).sum() for part in parts) / (count - len(kinds))
    total = ((ranked - ranked.mean()) ** 2).sum()
    return float(max(0.0, (between - (len(kinds) - 1) * within) / (total + within)))
