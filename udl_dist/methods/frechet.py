"""The Fréchet distance of two sets of small images: no FID, for no network looks at them, but it can be had everywhere.

Images are averaged down to 8×8 pixels (in [-1, 1]). Of each set a Gaussian is taken; means and second moments are means
over images, so the distance is exact over any number of ranks, and it says nothing of what is finer than 8×8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

SIDE = 8


def moments(images: Tensor, name: str) -> dict[str, Tensor]:  # [B, C, H, W] -> [B, D], [B, D²]
    """What of each image goes into the mean and the second moments of its set."""
    from torch.nn import functional

    sides = (min(SIDE, images.shape[2]), min(SIDE, images.shape[3]))
    small = functional.adaptive_avg_pool2d(images, sides).flatten(1).double()
    return {f"{name}_small": small, f"{name}_products": (small[:, :, None] * small[:, None, :]).flatten(1)}


def distance(means: Mapping[str, Tensor]) -> float:
    """|μ - ν|² + tr(S + T - 2 (S½ T S½)½) (Dowson & Landau 1982, eq. 4) of the means of `moments`."""
    centre, covariance = _gaussian(means, "real")
    other, spread = _gaussian(means, "fake")
    root = _root(covariance)
    both = _root(root @ spread @ root)
    return float((centre - other).square().sum() + (covariance + spread - 2 * both).trace())


def _gaussian(means: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    mean = means[f"{name}_small"].double()
    return mean, means[f"{name}_products"].double().view(len(mean), len(mean)) - mean.outer(mean)


def _root(matrix: Tensor) -> Tensor:
    """The root of a symmetric matrix without negative eigenvalues, but for rounding."""
    import torch

    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return torch.mm(vectors * values.clamp(min=0).sqrt(), vectors.T)
