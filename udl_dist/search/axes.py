"""An axis of a search: a setting by its dotted name, and its possible values.

"method.latent_dim" = {choice = [2, 4, 8]}           "train.learning_rate" = {log = [1e-4, 1e-2]}
"method.beta" = {uniform = [0.5, 4], points = 8}     a grid takes that many points of a range
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from udl_dist.core.config_schema import flatten, nest
from udl_dist.errors import UsageError
from udl_dist.experiment import Experiment, from_dict, kinds, nearest

LATENT = "method.latent_dim"  # plotted before other axes
KINDS = ("choice", "log", "uniform")
# Only settings of the data that leave the held-out images unchanged: others could not be compared.
DATA = ("data.flip", "data.random_crop", "data.limit", "data.weights")
SET_BY_THE_SEARCH = {
    "method.name": "its trials use one method, so run one search for each",
    "train.seed": "each setting is run with search.seeds seeds",
    "train.epochs": "all trials have the same length: set search.budget_images",
    "train.total_images": "all trials have the same length: set search.budget_images",
}


@dataclass(frozen=True)
class Axis:
    """One setting and its values: a choice, or `low` to `high`, logarithmic if `log`."""

    name: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    points: int = 0

    def value_at(self, fraction: float) -> Any:
        """The value at a fraction in [0, 1]: each value has an equal share."""
        # 1 too: a hash just below 2**64 becomes 1.0 as a float.
        if self.values:
            return self.values[min(int(fraction * len(self.values)), len(self.values) - 1)]
        # Rounding would give both ends half the chance of the others.
        if self.whole:  # each whole number has the interval up to the next one
            return min(int(self._between(self.low, self.high + 1, fraction)), int(self.high))
        return self._between(self.low, self.high, fraction)

    def index(self, value: Any) -> int:
        """The position of a value in a choice; JSON gives a tuple back as a list."""
        return self.values.index(tuple(value) if isinstance(value, list) else value)

    def grid(self) -> tuple[Any, ...]:
        """The values that a grid takes."""
        if self.values:
            return self.values
        if self.points < 2:
            raise UsageError(
                f"search.{self.name} is a range: a grid needs its points = 2 or more, or a choice"
            )
        fractions = (point / (self.points - 1) for point in range(self.points))
        # Evenly spaced, in the logarithm for `log`, both ends included.
        values = (self._between(self.low, self.high, fraction) for fraction in fractions)
        return tuple(dict.fromkeys(round(value) if self.whole else value for value in values))

    def ends(self) -> tuple[Any, ...]:
        """The values to check: if they are valid, every value is."""
        kind = int if self.whole else float
        return self.values or (kind(self.low), kind(self.high))

    def in_words(self) -> str:
        if self.values:
            return f"{self.name}: {', '.join(str(value) for value in self.values)}"
        scale = ", in the logarithm" if self.log else ""
        return f"{self.name}: {self.low:g} to {self.high:g}{scale}"

    def _between(self, low: float, high: float, fraction: float) -> float:
        value = low + fraction * (high - low)
        if self.log:
            value = math.exp(math.log(low) + fraction * (math.log(high) - math.log(low)))
        return min(max(value, low), high)  # rounding must not pass an end


def parse(tables: Mapping[str, Any], experiment: Experiment) -> tuple[Axis, ...]:
    """The axes of a [search] table, each checked by building an experiment with its values."""
    if not tables:
        raise UsageError(
            '[search] has no axis: add one, such as "train.learning_rate" = {log = [1e-4, 1e-2]}'
        )
    axes = tuple(_axis(name, table, experiment) for name, table in tables.items())
    for axis in axes:
        # Each axis alone: an experiment checks its own settings, not the space they span.
        for value in axis.ends():
            with_values(experiment, {axis.name: value})
    return axes


def with_values(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """The experiment with other values; raise UsageError as for a job file with them."""
    # Through plain values, so that bounds and cross-checks hold as for a job file.
    return from_dict(nest(flatten(experiment.to_dict()) | dict(values)))


def _axis(name: str, table: Any, experiment: Experiment) -> Axis:
    known = kinds(experiment.method_name)
    if name not in known:
        raise UsageError(f"search.{name}: there is no such setting: {nearest(name, list(known))}")
    if name in SET_BY_THE_SEARCH:
        raise UsageError(f"search.{name} cannot be an axis: {SET_BY_THE_SEARCH[name]}")
    if not name.startswith(("method.", "train.")) and name not in DATA:
        raise UsageError(
            f"search.{name} cannot be an axis: trials that differ in it cannot be compared"
        )
    found = [kind for kind in KINDS if isinstance(table, Mapping) and kind in table]
    if len(found) != 1:
        raise UsageError(
            f"search.{name} must be one of {{choice = [...]}}, {{log = [low, high]}} and "
            f"{{uniform = [low, high]}}, not {table!r}"
        )
    if unknown := set(table) - {*KINDS, "points"}:
        raise UsageError(
            f"search.{name}: unexpected {', '.join(sorted(unknown))}: there are "
            f"{', '.join(KINDS)}, points"
        )
    if found == ["choice"]:
        return _choice(name, table)
    return _range(name, found[0], table, known[name])


def _choice(name: str, table: Mapping[str, Any]) -> Axis:
    values = table["choice"]
    if not isinstance(values, list) or not values:
        raise UsageError(
            f"search.{name}: choice = {values!r} offers nothing: write a list of values"
        )
    # As text, because lists have no hash. A repeated value would be drawn twice as often.
    if repeated := [value for value, count in Counter(map(str, values)).items() if count > 1]:
        raise UsageError(f"search.{name}: choice has {repeated[0]} more than once")
    if "points" in table:
        raise UsageError(f"search.{name}: points belongs to a range: a choice has its values")
    return Axis(name, tuple(tuple(value) if isinstance(value, list) else value for value in values))


def _range(name: str, kind: str, table: Mapping[str, Any], of: Any) -> Axis:
    if of not in (int, float):
        raise UsageError(f"search.{name} is not a number: use {{choice = [...]}}")
    ends, points = table[kind], table.get("points", 0)
    types = (int,) if of is int else (int, float)  # by type(), since True is an int too
    valid = isinstance(ends, list) and len(ends) == 2 and all(type(end) in types for end in ends)
    # inf and nan, which TOML has, fail the chain of comparisons below.
    least = 0.0 if kind == "log" else -math.inf
    if not valid or not least < ends[0] < ends[1] < math.inf:
        numbers = "whole numbers" if of is int else "numbers"
        above = " above 0" if kind == "log" else ""
        raise UsageError(
            f"search.{name}: {kind} must be [low, high], two {numbers}{above} with low < high, not"
            f" {ends!r}"
        )
    if type(points) is not int or points < 0:
        raise UsageError(f"search.{name}: points must be a whole number, not {points!r}")
    low, high = map(float, ends)
    return Axis(name, (), low, high, kind == "log", of is int, points)
