"""The settings of trial n: a pure function of (seed, n), or, for optuna, of the outcomes of the
trials before it too.

So nothing has to be remembered, and a search that was killed goes on with the very settings it
would have had.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, Protocol

import numpy as np
import xxhash

from udl_dist.core.rng import chain, permuted
from udl_dist.errors import UsageError
from udl_dist.search.axes import Axis
from udl_dist.search.trial_log import Line


class Sampler(Protocol):
    """Gives the values of the n-th setting; `ahead`: how many of the last outcomes it does without
    (0: all).
    """

    ahead: int

    def values(self, number: int, outcomes: Mapping[int, list[Line]]) -> dict[str, Any]: ...


class Random:
    """Each axis drawn by itself, from a hash of seed, number and name: an axis more moves no
    other.
    """

    ahead = 0

    def __init__(self, axes: tuple[Axis, ...], seed: int) -> None:
        self._axes, self._seed = axes, seed

    def values(self, number: int, outcomes: Mapping[int, list[Line]]) -> dict[str, Any]:
        return {axis.name: axis.at(place(self._seed, number, axis.name)) for axis in self._axes}


class Grid:
    """Every joint value once, in an order drawn by the seed: in their own order, neighbours would
    race each other.
    """

    ahead = 0

    def __init__(self, axes: tuple[Axis, ...], seed: int) -> None:
        self._axes, self._seed = axes, seed
        self._values = [axis.grid() for axis in axes]
        self.size = prod(len(values) for values in self._values)

    def values(self, number: int, outcomes: Mapping[int, list[Line]]) -> dict[str, Any]:
        at = int(permuted(np.array([number], np.uint64), self.size, chain(self._seed, 0))[0])
        found: dict[str, Any] = {}
        for axis, values in zip(self._axes, self._values, strict=True):
            at, which = divmod(at, len(values))
            found[axis.name] = values[which]
        return found


def place(seed: int, number: int, name: str) -> float:
    """A number in [0, 1) that belongs to these three."""
    return chain(seed, number, xxhash.xxh3_64_intdigest(name.encode())) / 2**64


def settings_asked(sampler: Sampler, trials: int, seeds: int) -> int:
    """How many settings there are; raise UsageError where that is none, or more than a grid has."""
    if isinstance(sampler, Grid):
        settings = -(-trials // seeds) if trials else sampler.size
        if settings > sampler.size:
            raise UsageError(
                f"search.trials = {trials} is more than the grid has: {sampler.size * seeds}"
            )
        return settings
    if not trials:
        raise UsageError("search.trials is 0: say how many trials there are to be")
    if trials % seeds:
        raise UsageError(
            f"search.trials = {trials} cannot be shared by search.seeds = {seeds}: take a multiple"
        )
    return trials // seeds
