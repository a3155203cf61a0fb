"""A set of real images as rows of features, and how a set of generated ones differs from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from udl_dist.methods.metrics.frechet import between

NEIGHBOURS = 5  # Naeem et al. 2020, section 4
ROWS = 200  # rows of a distance matrix at a time; with 1000 most time went into allocation


@dataclass(frozen=True)
class RealSet:
    """A set of real rows, with the parts of distances that it alone decides."""

    mean: Tensor  # [F] float64
    covariance: Tensor  # [F, F] float64
    near: Tensor  # [P, F]: the rows whose pairs are used
    radii: Tensor  # [P] float64: the distance of the k-th nearest other row
    within: Tensor  # [] float64: the mean of the kernel over pairs

    @classmethod
    def of(cls, rows: Tensor, near: Tensor) -> RealSet:  # [N, F], [P, F]
        """With no more `near` rows than neighbours, no pairs are used."""
        if len(near) <= NEIGHBOURS:
            # Empty `near` is how of_pairs knows it; tensors, because a reference is a safetensors
            # file.
            return cls(*gaussian(rows), near[:0], torch.empty(0), torch.zeros(()))
        within = torch.tensor(_within(near), dtype=torch.float64)
        return cls(*gaussian(rows), near, _radii(near.double()), within)

    def frechet(self, fake: Tensor) -> float:  # [N, F]
        """The Fréchet distance of the Gaussians of both sets."""
        return between(self.mean, self.covariance, *gaussian(fake))

    def of_pairs(self, fake: Tensor) -> dict[str, float]:  # [P, F]
        """Kernel distance and metrics of neighbours; empty for too few rows."""
        if min(len(self.near), len(fake)) <= NEIGHBOURS:
            return {}
        return {"kernel_distance": self.kernel(fake), **self.neighbours(fake)}

    def kernel(self, fake: Tensor) -> float:  # [P, F]
        """Unbiased squared MMD under the kernel (xᵀy/F + 1)³ (Bińkowski et al. 2018, section 3)."""
        # E k(x, x') + E k(y, y') - 2 E k(x, y). The estimate has no bias, so it can be below 0.
        across = sum(
            float(values.sum()) for values in kernel_values(self.near.double(), fake.double())
        )
        return float(self.within) + _within(fake) - 2 * across / (len(self.near) * len(fake))

    def neighbours(self, fake: Tensor) -> dict[str, float]:  # [P, F]
        """Precision, recall (Kynkäänniemi et al. 2019), density, coverage (Naeem et al. 2020)."""
        real, fake = self.near.double(), fake.double()
        precise = dense = 0
        recalled = torch.zeros(len(real), dtype=torch.uint8, device=real.device)
        nearest = torch.full((len(real),), torch.inf, dtype=torch.float64, device=real.device)
        for distances, radii in zip(
            _distances(fake, real), torch.split(_radii(fake), ROWS), strict=True
        ):
            inside = distances <= self.radii
            # As bytes: any() is many times slower.
            # Precision and density: generated rows within the radius of real ones. Recall: real
            # rows within the radius of a generated one. Coverage: real rows whose radius holds
            # one.
            precise += int(inside.view(torch.uint8).amax(1).sum())
            dense += int(inside.count_nonzero())
            recalled |= (distances <= radii[:, None]).view(torch.uint8).amax(0)
            nearest = torch.minimum(nearest, distances.amin(0))
        return {
            "precision": precise / len(fake),
            "recall": int(recalled.sum()) / len(real),
            "density": dense / (NEIGHBOURS * len(fake)),
            "coverage": int((nearest <= self.radii).sum()) / len(real),
        }


def gaussian(rows: Tensor) -> tuple[Tensor, Tensor]:
    # view: with one feature torch.cov gives a scalar.
    return rows.double().mean(0), torch.cov(rows.double().T).view(rows.shape[1], -1)


def _within(rows: Tensor) -> float:
    """The mean of the kernel over all pairs of two different rows."""
    rows, count = rows.double(), len(rows)
    total = sum(float(values.sum()) for values in kernel_values(rows, rows))
    # The kernel of each row with itself, (|x|²/F + 1)³, which the unbiased estimate leaves out.
    same = (rows.square().mean(1) + 1).pow(3).sum()
    return (total - float(same)) / (count * (count - 1))


def kernel_values(first: Tensor, second: Tensor) -> Iterator[Tensor]:
    """(xᵀy/F + 1)³ of all pairs, in float64 rows, some at a time."""
    one = torch.ones((), dtype=first.dtype, device=first.device)
    for part in torch.split(first, ROWS):
        # Product, scale and 1 in one pass, the power in place: memory traffic sets the time here.
        yield torch.addmm(one, part, second.T, alpha=1 / first.shape[1]).pow_(3)


def _radii(rows: Tensor) -> Tensor:  # [N, F] -> [N]
    """The distance of the k-th nearest other row."""
    nearest = [
        # One more, since the nearest row of each is itself.
        distances.topk(NEIGHBOURS + 1, largest=False).values
        for distances in _distances(rows, rows)
    ]
    return torch.cat(nearest)[:, -1]


def _distances(first: Tensor, second: Tensor) -> Iterator[Tensor]:
    for part in torch.split(first, ROWS):
        yield torch.cdist(part, second)
