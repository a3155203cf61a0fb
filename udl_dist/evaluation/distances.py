"""How far two sets of features are from each other: Fréchet, kernel and neighbour distances. Knows
no image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from udl_dist.methods.frechet import between

NEIGHBOURS = 5  # Naeem et al. 2020, section 4
OF_NEIGHBOURS = ("precision", "recall", "density", "coverage")
OF_PAIRS = ("kernel_distance", *OF_NEIGHBOURS)
# whose distances to all others are held at a time: with 1000 most time went into getting memory
ROWS = 200


@dataclass(frozen=True)
class Real:
    """A set of real rows, and what distances need to know of it alone; `near` are those that pairs
    are made with.
    """

    mean: Tensor  # [F] float64
    covariance: Tensor  # [F, F] float64
    near: Tensor  # [P, F]
    radii: Tensor  # [P] float64: how far the k-th nearest other one is
    within: Tensor  # [] float64: the mean of the kernel over pairs

    @classmethod
    def of(cls, rows: Tensor, near: Tensor) -> Real:  # [N, F], [P, F]
        """`near`: the rows that have their distance to each other taken; of so few as neighbours,
        none.
        """
        if len(near) <= NEIGHBOURS:
            return cls(*_gaussian(rows), near[:0], torch.empty(0), torch.zeros(()))
        return cls(
            *_gaussian(rows),
            near,
            _radii(near.double()),
            torch.tensor(_within(near), dtype=torch.float64),
        )

    def frechet(self, fake: Tensor) -> float:  # [N, F]
        """The Fréchet distance of the Gaussians of both sets."""
        return between(self.mean, self.covariance, *_gaussian(fake))

    def of_pairs(self, fake: Tensor) -> dict[str, float]:  # [P, F]
        """Kernel distance and what neighbours tell; nothing of too few rows."""
        if min(len(self.near), len(fake)) <= NEIGHBOURS:
            return {}
        return {"kernel_distance": self.kernel(fake), **self.neighbours(fake)}

    def kernel(self, fake: Tensor) -> float:  # [P, F]
        """Squared MMD without bias under the kernel (xᵀy/F + 1)³ (Bińkowski et al. 2018, section
        3).
        """
        across = sum(float(values.sum()) for values in _kernel(self.near.double(), fake.double()))
        return float(self.within) + _within(fake) - 2 * across / (len(self.near) * len(fake))

    def neighbours(self, fake: Tensor) -> dict[str, float]:  # [P, F]
        """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al.
        2020).
        """
        real, fake = self.near.double(), fake.double()
        precise = dense = 0
        recalled = torch.zeros(len(real), dtype=torch.uint8, device=real.device)
        nearest = torch.full((len(real),), torch.inf, dtype=torch.float64, device=real.device)
        for distances, radii in zip(
            _distances(fake, real), torch.split(_radii(fake), ROWS), strict=True
        ):
            inside = distances <= self.radii
            # of bytes: any() takes many times as long
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


def class_score(logits: Tensor) -> float:  # [N, classes]
    """exp of the mean KL of an image's classes from those of all images (Salimans et al. 2016,
    section 4).
    """
    logs = logits.double().log_softmax(1)
    chances = logs.exp()
    return float((chances * (logs - chances.mean(0).log())).nan_to_num(nan=0.0).sum(1).mean().exp())


def _gaussian(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows.double().mean(0), torch.cov(rows.double().T).view(rows.shape[1], -1)


def _within(rows: Tensor) -> float:
    """The mean of the kernel over all pairs of two different rows; each pair is worked out once."""
    rows, total = rows.double(), 0.0
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        for values in _kernel(part, rows[start:]):
            total += float(
                2 * values.sum() - values[:, : len(part)].sum() - values.diagonal().sum()
            )
    return total / (len(rows) * (len(rows) - 1))


def _kernel(first: Tensor, second: Tensor) -> Iterator[Tensor]:
    """(xᵀy/F + 1)³ of all pairs, some rows at a time."""
    one = torch.ones((), dtype=first.dtype, device=first.device)
    for part in torch.split(first, ROWS):
        yield torch.addmm(one, part, second.T, alpha=1 / first.shape[1]).pow_(3)


def _radii(rows: Tensor) -> Tensor:  # [N, F] -> [N]
    """How far the k-th nearest other one is."""
    nearest = [
        distances.topk(NEIGHBOURS + 1, largest=False).values for distances in _distances(rows, rows)
    ]
    return torch.cat(nearest)[:, -1]


def _distances(first: Tensor, second: Tensor) -> Iterator[Tensor]:
    for part in torch.split(first, ROWS):
        yield torch.cdist(part, second)
