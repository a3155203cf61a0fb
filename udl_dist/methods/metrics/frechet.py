"""The Fréchet distance of two sets of rows, each taken as a Gaussian; and 8×8 pixels as rows.

Means and second moments are means over images, so the distance is exact over any number of ranks.
It is not FID: no network looks at the images, and rows of 8×8 pixels cannot show finer detail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

SIDE = 8


def small(images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, D]
    """Images averaged to 8×8 pixels."""
    from torch.nn import functional

    sides = (min(SIDE, images.shape[2]), min(SIDE, images.shape[3]))
    return functional.adaptive_avg_pool2d(images, sides).flatten(1)


def moments(rows: Tensor, name: str) -> dict[str, Tensor]:  # [B, D] -> [B, D], [B, D²]
    """What each row adds to the mean and the second moments of its set."""
    # In double: a covariance is the small difference of second moments and squared means.
    values = rows.double()
    return {name: values, f"{name}_products": (values[:, :, None] * values[:, None, :]).flatten(1)}


def distance(means: Mapping[str, Tensor], real: str, fake: str) -> float:
    """The distance of the Gaussians of two sets, by the names that `moments` gave them."""
    return between(*_gaussian(means, real), *_gaussian(means, fake))


def variance(means: Mapping[str, Tensor], name: str) -> float:
    """The sum of the variances of a set's columns, by the name that `moments` gave it."""
    return float(_gaussian(means, name)[1].trace())


# [D], [D, D] twice, float64
def between(mean: Tensor, covariance: Tensor, other: Tensor, spread: Tensor) -> float:
    """|μ - ν|² + tr(S + T - 2 (S½ T S½)½) of two Gaussians (Dowson & Landau 1982, eq. 4)."""
    import torch

    # The symmetric form: eigh and eigvalsh stay real where the root of S T would be complex.
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    root = torch.mm(vectors * values.clamp(min=0).sqrt(), vectors.T)  # below 0 by rounding
    both = torch.linalg.eigvalsh(root @ spread @ root).clamp(min=0).sqrt().sum()
    return float((mean - other).square().sum() + covariance.trace() + spread.trace() - 2 * both)


def _gaussian(means: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    mean = means[name].double()
    return mean, means[f"{name}_products"].double().view(len(mean), len(mean)) - mean.outer(mean)
