"""The only room that knows Optuna: its TPE, asked for one setting at a time from the outcomes in
the journal.

Nothing of Optuna's is kept: trial n is drawn with a seed of its own from the outcomes of all
settings but the last `search.ahead` before it, in their order. So timing moves nothing, and a
resumed search draws what it would have drawn.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Mapping
from typing import Any

from udl_dist.core.rng import chain
from udl_dist.errors import UsageError
from udl_dist.search.axes import Axis
from udl_dist.search.config import Search
from udl_dist.search.objective import Objective
from udl_dist.search.trial_log import Line

STARTING = 10  # settings drawn at random first, as Optuna has it


class Tpe:
    """The tree-structured Parzen estimator (Bergstra et al. 2011), for one objective or several."""

    def __init__(self, search: Search) -> None:
        try:
            import optuna
        except ImportError:
            raise UsageError(
                "search.sampler = optuna needs a package: pip install 'udl-dist[search]'"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.ahead = search.settings.ahead
        self._optuna, self._search, self._objective = optuna, search, Objective(search)
        self._distributions = {axis.name: _distribution(optuna, axis) for axis in search.axes}
        # An entry of a choice that is a list travels by its place.
        self._lists = {
            axis.name: axis for axis in search.axes if any(type(v) is tuple for v in axis.values)
        }
        self._drawn: dict[int, dict[str, Any]] = {}

    def values(self, number: int, outcomes: Mapping[int, list[Line]]) -> dict[str, Any]:
        if number not in self._drawn:
            self._drawn[number] = self._draw(number, outcomes)
        return self._drawn[number]

    def _draw(self, number: int, outcomes: Mapping[int, list[Line]]) -> dict[str, Any]:
        optuna = self._optuna
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that some of what is used is experimental
            seed = chain(self._search.settings.seed, number) % 2**32
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=STARTING, multivariate=True
            )
            study = optuna.create_study(
                directions=["minimize"] * len(self._objective.names), sampler=sampler
            )
            study.add_trials([self._told(lines) for _, lines in sorted(outcomes.items())])
            drawn = study.ask(self._distributions).params
        return {
            name: self._lists[name].values[value] if name in self._lists else value
            for name, value in drawn.items()
        }

    def _told(self, lines: list[Line]) -> Any:
        """A setting as Optuna keeps it: complete with its mean, stopped at a rung, or failed."""
        optuna, states = self._optuna, {line.state for line in lines}
        params = {
            name: self._lists[name].index(value) if name in self._lists else value
            for name, value in lines[0].settings.items()
        }
        about = {"params": params, "distributions": self._distributions}
        if "failed" in states:
            return optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, **about)
        means = [
            statistics.fmean(column)
            for column in zip(*(line.values for line in lines), strict=True)
        ]
        losses = self._objective.losses(means)
        if states == {"complete"}:
            return optuna.trial.create_trial(values=losses, **about)
        images = min(line.images for line in lines)
        return optuna.trial.create_trial(
            state=optuna.trial.TrialState.PRUNED, intermediate_values={images: losses[0]}, **about
        )


def _distribution(optuna: Any, axis: Axis) -> Any:
    if axis.values:
        lists = any(type(value) is tuple for value in axis.values)
        return optuna.distributions.CategoricalDistribution(
            range(len(axis.values)) if lists else axis.values
        )
    if axis.whole:
        return optuna.distributions.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return optuna.distributions.FloatDistribution(axis.low, axis.high, log=axis.log)
