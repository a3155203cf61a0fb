"""Principal components from sums that any number of ranks can add up: the floor under every autoencoder."""

from __future__ import annotations

import torch
from torch import Tensor

from udl_dist.evaluation.family import Taken

MOST_PIXELS = 4096  # second moments of more would not fit


def moments(images: Tensor) -> dict[str, Tensor]:  # [B, C, H, W] in [-1, 1] -> sums over images
    """First and second moments of pixels in [0, 1]."""
    pixels = (images.flatten(1).double() + 1) / 2
    return {"pixels": pixels.sum(0).cpu(), "products": (pixels.T @ pixels).cpu()}


def principal(covariance: Tensor, components: int) -> Tensor:  # [D, D] -> [D, K]
    """The directions of most variance."""
    _, vectors = torch.linalg.eigh(covariance)  # in rising order
    kept: Tensor = vectors[:, max(0, len(covariance) - components) :]
    return kept


def error(fitted: Taken, measured: Taken, components: int) -> float:
    """The mean squared error a pixel of `measured` images behind the first components of the `fitted` ones.

    With m their mean, V their components and M the second moment of the measured images about m it is
    (tr M - tr VᵀMV) / pixels.
    """
    centre, mean = fitted.mean("pixels"), measured.mean("pixels")
    covariance = fitted.mean("products") - centre.outer(centre)
    kept = principal(covariance, components)
    about = measured.mean("products") - centre.outer(mean) - mean.outer(centre) + centre.outer(centre)
    lost = about.trace() - (kept * (about @ kept)).sum()
    return float(lost.clamp(min=0) / len(centre))
