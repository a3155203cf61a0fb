"""What a search found besides its winner: rungs that ranked well, the best of each latent size, and
how flat the optimum is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from udl_dist.search.axes import LATENT
from udl_dist.search.config import Search
from udl_dist.search.objective import Objective, Spread, is_complete, settings_ranked
from udl_dist.search.trial_log import TrialResult, short

FEWEST = 5  # trials, for a correlation that says anything
NOISE = 0.2  # below it a rung ranked nothing: for six trials chance alone gives 0 ± 0.45


@dataclass(frozen=True)
class RungCheck:
    """The rank correlation of a rung with the final order, of the trials that went on from it.

    nan where they are fewer than `FEWEST`: of two or three any order agrees by chance.
    """

    images: int
    trials: int
    correlation: float

    @property
    def noise(self) -> bool:
        return self.correlation < NOISE

    def as_dict(self) -> dict[str, float | None]:
        correlation = None if math.isnan(self.correlation) else self.correlation  # JSON has no nan
        return {"images": self.images, "trials": self.trials, "correlation": correlation}

    def in_words(self) -> str:
        said = "too few" if math.isnan(self.correlation) else f"{self.correlation:.2f}"
        return f"{said} at {self.images:,} images ({self.trials} trials)"


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's (1904): Pearson's of the ranks, which equal values share; nan if all are equal."""

    def ranks(values: Sequence[float]) -> NDArray[np.float64]:
        every = np.asarray(values, float)
        below, equal = every[:, None] > every, every[:, None] == every
        return np.asarray(below.sum(1) + equal.sum(1) / 2, np.float64)

    with np.errstate(invalid="ignore"):  # 0 / 0
        return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def rung_checks(search: Search, results: Sequence[TrialResult]) -> list[RungCheck]:
    """A check of each rung that was decided; trials that stopped later count as worse."""
    objective, found = Objective(search), list[RungCheck]()
    ranked = objective.ranked(results)
    for rung in range(max((len(result.rungs) for result in results), default=0)):
        # Their places are in the final order: its other trials do not count.
        went_on = [
            (place, result.rungs[rung])
            for place, result in enumerate(ranked)
            if len(result.rungs) > rung + (result.state == "stopped")
        ]
        if went_on:
            losses = [objective.loss([metric]) for _, (_, metric) in went_on]
            places = [float(place) for place, _ in went_on]
            agreed = rank_correlation(losses, places) if len(went_on) >= FEWEST else math.nan
            found.append(RungCheck(int(went_on[0][1][0]), len(went_on), agreed))
    return found


def rung_lines(checks: Sequence[RungCheck]) -> list[str]:
    """The checks, and a warning for each rung that was noise."""
    if not checks:
        return []
    said = ", ".join(check.in_words() for check in checks)
    return [
        f"rank correlation of rungs with the final order, of the trials that went on: {said}",
        *(
            f"WARNING: the order at {check.images:,} images was noise: set search.least_images to"
            " more in a new folder"
            for check in checks
            if check.noise
        ),
    ]


def size_lines(search: Search, results: Sequence[TrialResult], deviation: float) -> list[str]:
    """The best setting of each latent size, and the sizes within one deviation of the winner.

    `deviation` is that of the winner's runs; 0: unknown.
    """
    axis = next((axis for axis in search.axes if axis.name == LATENT and axis.values), None)
    if axis is None or len(search.settings.metric) > 1:
        return []
    best: dict[object, list[TrialResult]] = {}
    for own in settings_ranked(search, results):
        best.setdefault(own[0].settings[LATENT], own)
    if not best:  # all trials failed
        return []
    spreads = {size: Spread.of([each.values[0] for each in own]) for size, own in best.items()}
    lines = [f"best of each {LATENT}:"]
    for size in sorted(best, key=axis.index):
        first, spread = best[size][0], spreads[size]
        said = [f"trial {first.trial}"]
        said += [
            f"{name} {short(value)}" for name, value in first.settings.items() if name != LATENT
        ]
        if first.state != "complete":
            said.append(f"stopped after {first.images:,} images")
        seeds = f" ± {spread.sd:.2g}" if spread.runs > 1 else ""
        lines.append(f"  {size}: {spread.mean:.5g}{seeds} ({', '.join(said)})")
    complete = [size for size in best if is_complete(best[size], search.settings.seeds)]
    if deviation and complete:
        loss = Objective(search).loss
        least = min(loss([spreads[size].mean]) for size in complete)
        near = [size for size in complete if loss([spreads[size].mean]) <= least + deviation]
        listed = ", ".join(str(size) for size in sorted(near, key=axis.index))
        lines.append(f"within one deviation ({deviation:.2g}) of the best trial: {LATENT} {listed}")
    return lines
