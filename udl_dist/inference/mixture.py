"""A mixture of Gaussians fitted to codes by expectation and maximisation, over sums: exact, in
bounded memory.

The codes lie in a file and are read in parts; each turn adds up, for every component, weights, sums
and products (Dempster, Laird & Rubin 1977). scikit-learn's GaussianMixture does the same with all
codes in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udl_dist.errors import DataError
from udl_dist.inference.prior import Mixture

PART = 8192  # codes at a time
FIRST = 20_000  # codes from which the start is chosen
LLOYD_TURNS = 10
EPSILON = 10 * float(np.finfo(np.float64).eps)
Codes = NDArray[np.float32]


@dataclass(frozen=True)
class Fitted:
    """A mixture, the mean log-density of the codes before its last turn, and how many turns it
    took.
    """

    mixture: Mixture
    log_likelihood: float
    turns: int
    converged: bool


# [N, Z]
def fit(codes: Codes, components: int, seed: int, turns: int, tolerance: float = 1e-3) -> Fitted:
    """Fit a mixture; raise DataError if there are too few codes, or if they do not differ.

    `tolerance` is the gain of the mean log-density, in nats, below which it ends.
    """
    if len(codes) < 2 * components:
        raise DataError(
            f"{len(codes)} images are too few for {components} components: lower --components"
        )
    floor = _floor(codes)
    mixture = start(codes, components, seed, floor)
    before = -np.inf
    for turn in range(1, turns + 1):
        mixture, likelihood = step(mixture, codes, floor)
        if abs(likelihood - before) < tolerance:
            return Fitted(mixture, likelihood, turn, True)
        before = likelihood
    return Fitted(mixture, before, turns, False)


def start(codes: Codes, components: int, seed: int, floor: float) -> Mixture:
    """The mixture of the clusters that k-means finds in some of the codes."""
    random = np.random.default_rng(seed)
    places = np.sort(random.choice(len(codes), min(FIRST, len(codes)), replace=False))
    some = torch.from_numpy(np.asarray(codes[places])).double()
    centres = _plus_plus(some, components, random)
    for _ in range(LLOYD_TURNS):
        nearest = torch.cdist(some, centres).argmin(1)
        for number in set(nearest.tolist()):
            centres[number] = some[nearest == number].mean(0)
    chosen = torch.nn.functional.one_hot(torch.cdist(some, centres).argmin(1), components).double()
    return _maximised(_sums(chosen, some), floor)


def step(mixture: Mixture, codes: Codes, floor: float) -> tuple[Mixture, float]:
    """One turn over all codes: the next mixture, and the mean log-density under the last one."""
    sums: list[Tensor] = []
    likelihood = 0.0
    for part in _parts(codes):
        joint = mixture.log_joint(part)
        total = joint.logsumexp(1)
        likelihood += float(total.sum())
        here = _sums((joint - total[:, None]).exp(), part)
        sums = [old + new for old, new in zip(sums, here, strict=True)] if sums else list(here)
    return _maximised(sums, floor), likelihood / len(codes)


def mean_log_density(mixture: Mixture, codes: Codes) -> float:
    """The mean log-density of codes, in nats."""
    return sum(float(mixture.log_density(part).sum()) for part in _parts(codes)) / len(codes)


def _parts(codes: Codes) -> Iterator[Tensor]:
    for first in range(0, len(codes), PART):
        yield torch.from_numpy(np.array(codes[first : first + PART])).double()


def _sums(shares: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # [N, K], [N, Z]
    """For each component: its share of the codes, their sum, and the sum of their products."""
    products = torch.stack([(codes * share[:, None]).T @ codes for share in shares.T])
    return shares.sum(0), shares.T @ codes, products


def _maximised(sums_of: Sequence[Tensor], floor: float) -> Mixture:
    counts, sums, products = sums_of
    counts = counts + EPSILON
    means = sums / counts[:, None]
    covariances = products / counts[:, None, None] - means[:, :, None] * means[:, None, :]
    covariances = covariances + floor * torch.eye(means.shape[1], dtype=torch.float64)
    return Mixture(counts / counts.sum(), means, torch.linalg.cholesky(covariances))


def _floor(codes: Codes) -> float:
    """A millionth of the mean variance, added to every variance: no component falls onto a single
    code.
    """
    total, squares = torch.zeros(2, codes.shape[1], dtype=torch.float64)
    for part in _parts(codes):
        total, squares = total + part.sum(0), squares + part.square().sum(0)
    variance = float((squares / len(codes) - (total / len(codes)).square()).mean())
    if not np.isfinite(variance) or variance <= 0:
        raise DataError(
            "the codes of all images are the same: there is nothing to fit a mixture to"
        )
    return 1e-6 * variance


def _plus_plus(codes: Tensor, components: int, random: np.random.Generator) -> Tensor:
    """Centres far from each other (Arthur & Vassilvitskii 2007)."""
    centres = codes[random.integers(len(codes))][None]
    while len(centres) < components:
        away = torch.cdist(codes, centres).amin(1).square().numpy()
        total = away.sum()
        chance = away / total if total > 0 else None
        centres = torch.cat([centres, codes[random.choice(len(codes), p=chance)][None]])
    return centres
