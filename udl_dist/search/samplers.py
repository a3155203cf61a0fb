"""Samplers: the settings of trial n, a function of (seed, n) and, for Optuna, of earlier results.

They have no state, so a killed search resumes with the settings it would have had.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import xxhash

from udl_dist.core.rng import chain, permuted
from udl_dist.errors import UsageError
from udl_dist.search.axes import Axis
from udl_dist.search.config import Search, SearchSettings
from udl_dist.search.objective import Objective, mean_values
from udl_dist.search.trial_log import TrialResult

STARTUP_TRIALS = 10  # results before the first setting that is drawn from them, Optuna's default
Axes = tuple[Axis, ...]
Results = Mapping[int, list[TrialResult]]  # by setting, one for each seed


def random_values(axes: Axes, seed: int, number: int) -> dict[str, Any]:
    """Draws each axis from a hash of seed, number and name: a new axis changes no other."""
    found: dict[str, Any] = {}
    for axis in axes:
        # Not Python's hash, which differs from process to process.
        name = xxhash.xxh3_64_intdigest(axis.name.encode())
        # 64 bits as a fraction in [0, 1].
        found[axis.name] = axis.value_at(chain(seed, number, name) / 2**64)
    return found


def sobol_values(axes: Axes, seed: int, number: int) -> dict[str, Any]:
    """A point of Sobol's sequence (1967), scrambled by the seed: even on each axis and on pairs."""
    import torch

    # Not SciPy's, which would be one more package; torch has no types for it.
    of_torch: Any = torch.quasirandom.SobolEngine
    engine = of_torch(len(axes), scramble=True, seed=seed).fast_forward(number)
    # Single precision has only 2**24 values.
    (point,) = engine.draw(1, dtype=torch.float64).tolist()
    return {axis.name: axis.value_at(fraction) for axis, fraction in zip(axes, point, strict=True)}


def grid_values(axes: Axes, seed: int, number: int) -> dict[str, Any]:
    """Every combination once, shuffled: in grid order a rung would compare only neighbours."""
    # A keyed permutation, so that no shuffled list has to be stored.
    at = int(permuted(np.array([number], np.uint64), grid_size(axes), chain(seed, 0))[0])
    found: dict[str, Any] = {}
    for axis in axes:
        values = axis.grid()
        at, which = divmod(at, len(values))
        # Mixed radix: each number below the size is one combination.
        found[axis.name] = values[which]
    return found


def grid_size(axes: Axes) -> int:
    """The combinations of a grid; raise UsageError for a range without points."""
    return prod(len(axis.grid()) for axis in axes)


# How settings are drawn without results.
WITHOUT_RESULTS = {
    "random": random_values,
    "sobol": sobol_values,
    "grid": grid_values,
    "optuna": sobol_values,
}


class Sampler:
    """Draws the settings of a search; by `optuna` from earlier results, else without them.

    Optuna's is the tree-structured Parzen estimator (Bergstra et al. 2011). Each setting is drawn
    by a new study, with a seed of its own, from the results in the trial log without the last
    `search.ahead`: timing changes nothing, and a resumed search draws the same. The first ones are
    points of Sobol's sequence. By halving, a setting is drawn from what the trials of its own
    bracket were at the first rung.
    """

    def __init__(self, search: Search) -> None:
        self.name = sampler_name(search.settings)
        self._ahead, self._objective = search.settings.ahead, Objective(search)
        self._seed, self._axes = search.settings.seed, {axis.name: axis for axis in search.axes}

    def needed(self, number: int) -> int:
        """The settings, from the first on, whose results a setting is drawn from."""
        earlier = number - self._ahead + 1
        return earlier if self.name == "optuna" and earlier >= STARTUP_TRIALS else 0

    def values(self, number: int, results: Results) -> dict[str, Any]:
        if not results:
            return WITHOUT_RESULTS[self.name](tuple(self._axes.values()), self._seed, number)
        import optuna  # 0.5 s, which --status need not wait for

        # Otherwise a line for every study, which here means for every setting.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        distributions = {name: _distribution(optuna, axis) for name, axis in self._axes.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the multivariate sampler is experimental
            sampler = optuna.samplers.TPESampler(
                # NumPy's generators take 32 bits.
                seed=chain(self._seed, number) % 2**32,
                n_startup_trials=1,
                # Axes drawn together: latent size and learning rate depend on each other.
                multivariate=True,
            )
            # Losses, whose sign already has the metric's direction in it.
            directions = ["minimize"] * len(self._objective.names)
            study = optuna.create_study(directions=directions, sampler=sampler)
            # In their order: which one ended first must not matter.
            made = [self._as_trial(results[which], distributions) for which in sorted(results)]
            study.add_trials(made)
            drawn: dict[str, Any] = study.ask(distributions).params
        # Of a choice Optuna has only the index: its values may be lists.
        choices = {name: self._axes[name].values for name in drawn}
        return {name: choices[name][at] if choices[name] else at for name, at in drawn.items()}

    def _as_trial(self, results: list[TrialResult], distributions: dict[str, Any]) -> Any:
        """A setting as Optuna's trial: complete with its mean, stopped at a rung, or failed."""
        from optuna.trial import TrialState, create_trial

        states = {result.state for result in results}
        params = {
            name: axis.index(value) if (axis := self._axes[name]).values else value
            for name, value in results[0].settings.items()
        }
        about: dict[str, Any] = {"params": params, "distributions": distributions}
        # A failed trial has no value, so its setting has no mean.
        if "failed" in states:
            return create_trial(state=TrialState.FAIL, **about)
        losses = self._objective.losses(mean_values(results))
        if states == {"complete"}:
            return create_trial(values=losses, **about)
        # A pruned trial counts by its images first, then by its value there.
        about["intermediate_values"] = {min(result.images for result in results): losses[0]}
        return create_trial(state=TrialState.PRUNED, **about)


def sampler_name(settings: SearchSettings) -> str:
    """The sampler that search.sampler names, of `auto` the one that found better settings."""
    if settings.sampler != "auto":
        return settings.sampler
    # By other schedulers Optuna needs the ends of trials: more than search.ahead actors would wait.
    return "optuna" if settings.scheduler == "halving" else "sobol"


def settings_asked(search: Search) -> int:
    """The number of settings; raise UsageError for none, or more than a grid has."""
    trials, seeds = search.settings.trials, search.settings.seeds
    if sampler_name(search.settings) == "grid":
        size = grid_size(search.axes)
        # Rounded up: the plan has all seeds of each setting.
        settings = -(-trials // seeds) if trials else size
        if settings > size:
            raise UsageError(f"search.trials = {trials} is more than the grid has: {size * seeds}")
        return settings
    if not trials:
        raise UsageError("search.trials is 0: give the number of trials")
    # A setting with fewer seeds than others would have a mean that does not compare.
    if trials % seeds:
        raise UsageError(
            f"search.trials = {trials} cannot be shared by search.seeds = {seeds}: take a multiple"
        )
    return trials // seeds


def _distribution(optuna: Any, axis: Axis) -> Any:
    if axis.values:  # by index: a value may be a list, which Optuna cannot hold
        return optuna.distributions.CategoricalDistribution(range(len(axis.values)))
    if axis.whole:
        return optuna.distributions.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return optuna.distributions.FloatDistribution(axis.low, axis.high, log=axis.log)
