"""Quantizers, which make latents codes: their settings, FSQ, and how well codes are used.

A quantizer has `size` (the number of codes K), `dimensions` (D, of a code), `forward(latents,
keys)`, `indices(latents)`, `lookup(indices)` and `after_step(sums)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from udl_dist.core.config_schema import setting
from udl_dist.errors import UsageError
from udl_dist.methods.losses.codebooks import (
    EMAQuantizer,
    GradientQuantizer,
    Quantized,
    at_least_float32,
    straight_through,
)

MOST_CODES = 2**20  # a validation holds a count of each code for each image of a batch
# Kind -> the settings that it does not use.
UNUSED = {
    "ema": ("levels",),
    "gradient": ("levels", "decay", "dead_below"),
    "fsq": ("codes", "dimensions", "normalise", "commitment", "decay", "dead_below"),
}


@dataclass(frozen=True)
class QuantizerSettings:
    """Settings of the codebook, or of the levels of FSQ."""

    kind: Literal["ema", "gradient", "fsq"] = setting(
        "ema",
        "the codebook: moving averages of the latents of each code, or learned by gradient; fsq:"
        " each dimension is rounded to one of its levels",
    )
    codes: int = setting(1024, "ema, gradient: entries of the codebook", low=2, high=MOST_CODES)
    dimensions: int = setting(8, "ema, gradient: numbers of an entry", low=1)
    normalise: bool = setting(
        True, "ema, gradient: latents and entries have unit length (Yu et al. 2022)"
    )
    levels: tuple[int, ...] = setting(
        (8, 5, 5, 5), "fsq: levels of each dimension; their product is the number of codes", low=2
    )
    commitment: float = setting(
        0.25, "ema, gradient: weight β of the loss that draws latents to their entries", low=0
    )
    decay: float = setting(
        0.99, "ema: of the moving averages, in a step (van den Oord et al. 2017)", low=0, below=1
    )
    dead_below: float = setting(
        0.03,
        "ema: an entry that is used less than this share of uniform use is put on a latent of the"
        " batch; 0: never",
        low=0,
        below=1,
    )


class FiniteScalarQuantizer(nn.Module):
    """Rounds each dimension to one of its levels in [-1, 1] (Mentzer et al. 2024, FSQ).

    It has no codebook to learn and no loss. Code 0 is the lowest level of every dimension; the
    first dimension counts fastest.
    """

    levels: Tensor  # [D] int64
    strides: Tensor  # [D] int64
    scale: Tensor  # [D], ⌊L/2⌋
    reach: Tensor  # [D]
    offset: Tensor  # [D]

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__()
        self.size, self.dimensions = math.prod(settings.levels), len(settings.levels)
        self.in_words = f"{self.size:,} codes, levels {'×'.join(map(str, settings.levels))}"
        constants = {
            "levels": settings.levels,
            "strides": [math.prod(settings.levels[:place]) for place in range(self.dimensions)],
            "scale": [float(level // 2) for level in settings.levels],
            # A little wider than the levels, so that tanh reaches the outer ones.
            "reach": [(level - 1) * (1 + 1e-3) / 2 for level in settings.levels],
            # An even number of levels has none in the middle: shifted by a half, they are integers.
            "offset": [(1 - level % 2) / 2 for level in settings.levels],
        }
        for name, values in constants.items():
            # They follow from the settings: a checkpoint does not have them.
            self.register_buffer(name, torch.tensor(values), persistent=False)

    # [B, D, h, w], [B] int64
    def forward(self, latents: Tensor, keys: Tensor) -> Quantized:
        """The loss is 0; the gradient is that without rounding."""
        bounded = self._bounded(latents)
        rounded = straight_through(bounded, bounded.round()) / self.scale
        loss = rounded.new_zeros(len(latents))
        return Quantized(rounded.permute(0, 3, 1, 2), self._numbers(bounded), loss)

    def indices(self, latents: Tensor) -> Tensor:  # [B, D, h, w] -> [B, h, w] int64
        """The number of the code that each latent is rounded to."""
        return self._numbers(self._bounded(latents))

    def lookup(self, indices: Tensor) -> Tensor:  # [B, h, w] int64 -> [B, D, h, w]
        """The codes of these numbers."""
        digits = indices[..., None] // self.strides % self.levels
        return ((digits - self.scale) / self.scale).permute(0, 3, 1, 2)

    def after_step(self, sums: Mapping[str, Tensor]) -> None:
        """Nothing: there is no state."""

    def _bounded(self, latents: Tensor) -> Tensor:  # [B, D, h, w] -> [B, h, w, D]
        rows = at_least_float32(latents).permute(0, 2, 3, 1)
        return (rows + (self.offset / self.reach).atanh()).tanh() * self.reach - self.offset

    def _numbers(self, bounded: Tensor) -> Tensor:  # [B, h, w, D] -> [B, h, w] int64
        return ((bounded.round() + self.scale).long() * self.strides).sum(3)


Quantizer = EMAQuantizer | GradientQuantizer | FiniteScalarQuantizer


def new_quantizer(settings: QuantizerSettings) -> Quantizer:
    """The quantizer of these settings; raise UsageError if they contradict each other."""
    _refuse_contradictions(settings)
    if settings.kind == "fsq":
        return FiniteScalarQuantizer(settings)
    return EMAQuantizer(settings) if settings.kind == "ema" else GradientQuantizer(settings)


def counts(indices: Tensor, size: int) -> Tensor:  # [B, h, w] int64 -> [B, K] float32
    """How often each image uses each of `size` codes, for `Method.measure`.

    A batch takes 4·B·K bytes: 4 MiB for 64 images of 16,384 codes, 64 MiB for 262,144.
    """
    rows = indices.flatten(1)
    places = rows + size * torch.arange(len(rows), device=rows.device)[:, None]
    ones = torch.ones(rows.numel(), device=rows.device)
    # index_add: bincount would wait for the device.
    flat = torch.zeros(len(rows) * size, device=rows.device)
    return flat.index_add_(0, places.flatten(), ones).view(-1, size)


def usage(mean_counts: Tensor) -> float:  # [K]
    """The share of codes that are used at all, from the means of `counts` over all images."""
    return float((mean_counts > 0).double().mean())


def perplexity(mean_counts: Tensor) -> float:  # [K]
    """exp H of the codes, from the means of `counts`: K for uniform use, 1 if only one is used."""
    shares = mean_counts.double() / mean_counts.sum()
    return math.exp(float(torch.special.entr(shares).sum()))


def bits(size: int, positions: int) -> float:
    """Bits that name the codes of an image: of a map of h·w positions, h·w·log₂K."""
    return positions * math.log2(size)


def _refuse_contradictions(settings: QuantizerSettings) -> None:
    default, kind = QuantizerSettings(), settings.kind
    for name in UNUSED[kind]:
        if getattr(settings, name) != getattr(default, name):
            other = "fsq" if name == "levels" else "ema"
            raise UsageError(
                f"method.quantizer.{name} has no meaning when method.quantizer.kind is {kind}:"
                f" leave it out, or set the kind to {other}"
            )
    if kind != "fsq" and settings.normalise and settings.dimensions == 1:
        raise UsageError(
            "method.quantizer.dimensions = 1 leaves two entries of unit length, -1 and 1: set"
            " method.quantizer.normalise to false, or more dimensions"
        )
    if kind == "fsq" and not 1 < math.prod(settings.levels) <= MOST_CODES:
        raise UsageError(
            f"method.quantizer.levels make {math.prod(settings.levels):,} codes: name the levels"
            f" of each dimension for 2 to {MOST_CODES:,} codes, such as 8,5,5,5"
        )
