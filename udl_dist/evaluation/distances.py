"""How far two sets of features are from each other: Fréchet, kernel and neighbour distances. Knows no image."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from udl_dist.methods.frechet import between

NEIGHBOURS = 5  # Naeem et al. 2020, section 4
OF_NEIGHBOURS = ("precision", "recall", "density", "coverage")
ROWS = 200  # whose distances to all others are held at a time: with 1000 most time went into getting memory


def frechet(real: Tensor, fake: Tensor) -> float:  # [N, F], [M, F]
    """The Fréchet distance of the Gaussians of both sets."""
    return between(*_gaussian(real), *_gaussian(fake))


def _gaussian(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows.double().mean(0), torch.cov(rows.double().T).view(rows.shape[1], -1)


def kernel(real: Tensor, fake: Tensor) -> float:
    """Squared MMD without bias under the kernel (xᵀy/F + 1)³ (Bińkowski et al. 2018, section 3), over whole sets."""
    within = [_kernel_sum(rows, rows, True) / (len(rows) * (len(rows) - 1)) for rows in (real, fake)]
    return sum(within) - 2 * _kernel_sum(real, fake, False) / (len(real) * len(fake))


def neighbours(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020), of k neighbours."""
    real, fake = real.double(), fake.double()
    real_radii, fake_radii = _radii(real), _radii(fake)
    found = torch.zeros(4, dtype=torch.float64)
    for distances in _distances(fake, real):
        inside = distances <= real_radii
        found[0] += inside.any(1).sum()
        found[2] += inside.sum()
    for start, distances in zip(range(0, len(real), ROWS), _distances(real, fake), strict=True):
        found[1] += (distances <= fake_radii).any(1).sum()
        found[3] += (distances.min(1).values <= real_radii[start : start + ROWS]).sum()
    shares = found / torch.tensor([len(fake), len(real), NEIGHBOURS * len(fake), len(real)])
    return dict(zip(OF_NEIGHBOURS, shares.tolist(), strict=True))


def class_score(logits: Tensor) -> float:  # [N, classes]
    """exp of the mean KL of an image's classes from those of all images (Salimans et al. 2016, section 4)."""
    logs = logits.double().log_softmax(1)
    chances = logs.exp()
    return float((chances * (logs - chances.mean(0).log())).nan_to_num(nan=0.0).sum(1).mean().exp())


def _kernel_sum(first: Tensor, second: Tensor, same: bool) -> float:
    """The sum of the kernel over all pairs; of a set and itself without those of one with itself."""
    first, second = first.double(), second.double()
    width, one = first.shape[1], torch.ones((), dtype=first.dtype, device=first.device)
    total = sum(torch.addmm(one, part, second.T, alpha=1 / width).pow_(3).sum() for part in torch.split(first, ROWS))
    own = ((first.square().sum(1) / width + 1) ** 3).sum() if same else 0.0
    return float(total - own)


def _radii(rows: Tensor) -> Tensor:  # [N, F] -> [N]
    """How far the k-th nearest other one is."""
    nearest = [distances.topk(NEIGHBOURS + 1, largest=False).values for distances in _distances(rows, rows)]
    return torch.cat(nearest)[:, -1]


def _distances(first: Tensor, second: Tensor) -> Iterator[Tensor]:
    for part in torch.split(first, ROWS):
        yield torch.cdist(part, second)
