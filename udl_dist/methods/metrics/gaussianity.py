"""How near latents are to normal ones, from sums over images alone, so exact over any ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# Latents whose pairs are compared: 256 have 32,640, which is many numbers for each image.
MOST = 256
FLAT = 1e-6  # a variance, in units of the mean square, that counts as none


def moments(latents: Tensor) -> dict[str, Tensor]:  # [B, Z] -> each [B, Z], pairs [B, Z(Z - 1)/2]
    """Powers of the latents of each image up to the fourth, and their products in pairs."""
    # In double: what they are used for are small differences of large means.
    rows = latents.double()
    powers = {f"power_{degree}": rows**degree for degree in (1, 2, 3, 4)}
    size = rows.shape[1]
    if not 1 < size <= MOST:
        return powers
    one, other = torch.triu_indices(size, size, 1, device=rows.device)
    return powers | {"pairs": rows[:, one] * rows[:, other]}


def metrics(means: Mapping[str, Tensor]) -> dict[str, float]:
    """Of N(0, 1) all are 0 but `code_std`, which is 1; of finite numbers of images almost.

    `code_mean` and `code_std`: root mean squares over dimensions. `skewness` and `excess_kurtosis`:
    means over dimensions of the size of the third standardised moment and of the fourth less 3.
    `correlation`: the root mean square over pairs of dimensions. The last three leave out
    dimensions without variance.
    """
    first, second, third, fourth = (means[f"power_{degree}"] for degree in (1, 2, 3, 4))
    variance = second - first.square()
    # Below this, what is left of the fourth moment is rounding.
    alive = variance > FLAT * second
    std = torch.where(alive, variance, 1.0).sqrt()
    # Central moments from those about zero.
    fourth = fourth - 4 * first * third + 6 * first.square() * second - 3 * first**4
    third = third - 3 * first * second + 2 * first**3
    found = {
        "code_mean": first.square().mean().sqrt(),
        "code_std": variance.clamp(min=0).mean().sqrt(),
        "skewness": _mean((third / std**3).abs(), alive),
        "excess_kurtosis": _mean((fourth / std**4 - 3).abs(), alive),
    }
    if "pairs" in means:
        one, other = torch.triu_indices(len(first), len(first), 1, device=first.device)
        correlation = (means["pairs"] - first[one] * first[other]) / (std[one] * std[other])
        found["correlation"] = _mean(correlation.square(), alive[one] & alive[other]).sqrt()
    return {name: float(value) for name, value in found.items()}


def _mean(values: Tensor, among: Tensor) -> Tensor:
    return values[among].sum() / among.sum().clamp(min=1)
