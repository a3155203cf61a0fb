"""An axis of a search: a setting by its dotted name, and the values it may take. Knows no sampler
and no trial.

"method.latent_dim" = {choice = [2, 4, 8]}           "train.learning_rate" = {log = [1e-4, 1e-2]}
"method.beta" = {uniform = [0.5, 4], points = 8}     a grid takes so many points of a range
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from udl_dist.core.config_schema import flatten, nest
from udl_dist.errors import UsageError
from udl_dist.experiment import Experiment, from_dict, kinds, nearest

LATENT = "method.latent_dim"  # the axis that plots know by its name
KINDS = ("choice", "log", "uniform")
# Of the data only what leaves the held-out images as they are; nothing else than method and
# training is learned from.
DATA = ("data.flip", "data.random_crop", "data.limit", "data.weights")
OF_THE_SEARCH = {
    "method.name": "its trials are of one method: search each by itself",
    "train.seed": "each setting is run with search.seeds seeds",
    "train.epochs": "all trials have the same length: set search.budget_images",
    "train.total_images": "all trials have the same length: set search.budget_images",
}


@dataclass(frozen=True)
class Axis:
    """One setting and its values: those of a choice, or `low` to `high`, evenly in the logarithm if
    `log`.
    """

    name: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    points: int = 0

    def at(self, place: float) -> Any:
        """The value at a place in [0, 1): evenly many places for each."""
        if self.values:
            return self.values[min(int(place * len(self.values)), len(self.values) - 1)]
        if self.whole:  # each whole number has the room up to the next one
            below = self._between(self.low, self.high + 1, place)
            return min(int(below), int(self.high))
        return self._between(self.low, self.high, place)

    def index(self, value: Any) -> int:
        """Where a value stands among those of a choice; a list, as JSON gives it back, is meant as
        the tuple it was.
        """
        return self.values.index(tuple(value) if isinstance(value, list) else value)

    def grid(self) -> tuple[Any, ...]:
        """The values that a grid takes."""
        if self.values:
            return self.values
        if self.points < 2:
            raise UsageError(
                f"search.{self.name} is a range: a grid needs its points = 2 or more, or a choice"
            )
        places = (
            self._between(self.low, self.high, point / (self.points - 1))
            for point in range(self.points)
        )
        return tuple(dict.fromkeys(round(value) if self.whole else value for value in places))

    def ends(self) -> tuple[Any, ...]:
        """Values that must all be good if every value is to be good."""
        return self.values or (self.grid_end(self.low), self.grid_end(self.high))

    def grid_end(self, value: float) -> Any:
        return int(value) if self.whole else value

    def in_words(self) -> str:
        if self.values:
            return f"{self.name}: {', '.join(str(value) for value in self.values)}"
        return (
            f"{self.name}: {self.low:g} to {self.high:g}{', in the logarithm' if self.log else ''}"
        )

    def _between(self, low: float, high: float, part: float) -> float:
        value = low + part * (high - low)
        if self.log:
            value = math.exp(math.log(low) + part * (math.log(high) - math.log(low)))
        return min(max(value, low), high)  # not past an end by rounding


def parse(tables: Mapping[str, Any], experiment: Experiment) -> tuple[Axis, ...]:
    """The axes of a [search] table by dotted name, each checked by building the experiment of its
    values.
    """
    if not tables:
        raise UsageError(
            '[search] has no axis: add one, such as "train.learning_rate" = {log = [1e-4, 1e-2]}'
        )
    axes = tuple(_axis(name, table, experiment) for name, table in tables.items())
    for axis in axes:
        for value in axis.ends():
            with_values(experiment, {axis.name: value})
    return axes


def with_values(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """The experiment with other values of some settings; raise UsageError as any job file with them
    would.
    """
    return from_dict(nest(flatten(experiment.to_dict()) | dict(values)))


def _axis(name: str, table: Any, experiment: Experiment) -> Axis:
    known = kinds(experiment.method_name)
    if name not in known:
        raise UsageError(f"search.{name}: there is no such setting: {nearest(name, list(known))}")
    if name in OF_THE_SEARCH:
        raise UsageError(f"search.{name} is no axis: {OF_THE_SEARCH[name]}")
    if not name.startswith(("method.", "train.")) and name not in DATA:
        raise UsageError(f"search.{name} is no axis: trials that differ in it cannot be compared")
    if (
        not isinstance(table, Mapping)
        or len(found := [kind for kind in KINDS if kind in table]) != 1
    ):
        raise UsageError(
            f"search.{name} must be one of {{choice = [...]}}, {{log = [low, high]}} and "
            f"{{uniform = [low, high]}}, not {table!r}"
        )
    if more := set(table) - {*KINDS, "points"}:
        raise UsageError(
            f"search.{name}: what is {', '.join(sorted(more))}? There are {', '.join(KINDS)},"
            " points"
        )
    kind = found[0]
    return _choice(name, table) if kind == "choice" else _range(name, kind, table, known[name])


def _choice(name: str, table: Mapping[str, Any]) -> Axis:
    values = table["choice"]
    if not isinstance(values, list) or not values:
        raise UsageError(
            f"search.{name}: choice = {values!r} offers nothing: write a list of values"
        )
    if repeated := [
        value for value, same in itertools.groupby(sorted(map(str, values))) if len(list(same)) > 1
    ]:
        raise UsageError(f"search.{name}: choice has {repeated[0]} more than once")
    if "points" in table:
        raise UsageError(f"search.{name}: points belongs to a range: a choice has its values")
    return Axis(name, tuple(tuple(value) if isinstance(value, list) else value for value in values))


def _range(name: str, kind: str, table: Mapping[str, Any], of: Any) -> Axis:
    ends, points = table[kind], table.get("points", 0)
    if of not in (int, float):
        raise UsageError(f"search.{name} is no number: use {{choice = [...]}}")
    if not (
        isinstance(ends, Sequence)
        and len(ends) == 2
        and all(type(end) in (int, float) for end in ends)
    ):
        raise UsageError(f"search.{name}: {kind} must be two numbers [low, high], not {ends!r}")
    low, high = (float(end) for end in ends)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(
            f"search.{name}: {kind} = {ends!r}: the first must be less than the second"
        )
    if kind == "log" and low <= 0:
        raise UsageError(f"search.{name}: log = {ends!r}: a logarithm needs ends above 0")
    if of is int and any(type(end) is float for end in ends):
        raise UsageError(f"search.{name} is a whole number: {kind} = {ends!r} must have whole ends")
    if type(points) is not int or points < 0:
        raise UsageError(f"search.{name}: points must be a whole number, not {points!r}")
    return Axis(name, (), low, high, kind == "log", of is int, points)
