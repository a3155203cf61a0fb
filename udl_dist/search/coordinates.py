"""Where trials stand in a plot: their metrics and settings as numbers. Knows nothing that draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from udl_dist.search.axes import Axis
from udl_dist.search.config import Search
from udl_dist.search.importance import numbers
from udl_dist.search.objective import Objective
from udl_dist.search.trial_log import Line


def shown(lines: Sequence[Line]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([line.values[0] for line in lines], float)


def losses(search: Search, lines: Sequence[Line]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([Objective(search).loss(line.values) for line in lines], float)


def places(axis: Axis, lines: Sequence[Line]) -> Sequence[float]:
    """Where the values of an axis are drawn: numbers where they are, others side by side."""
    found = numbers(axis, lines)
    return found if found is not None else [axis.index(line.settings[axis.name]) for line in lines]


def unit(axis: Axis, lines: Sequence[Line]) -> Any:
    """The same between 0 and 1."""
    there = np.asarray(places(axis, lines), float)
    ends = np.asarray(
        places(axis, [Line(0, "complete", 0, None, {axis.name: end}) for end in axis.ends()]), float
    )
    if min(ends.min(), there.min()) > 0 and ends.max() / ends.min() > 10:
        there, ends = np.log(there), np.log(ends)
    return (there - ends.min()) / max(1e-12, ends.max() - ends.min())


def scaled(values: Any) -> Any:
    return (values - values.min()) / max(1e-12, values.max() - values.min())


def logarithm(values: Any) -> Any:
    return np.log(values) if values.min() > 0 else values
