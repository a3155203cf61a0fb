"""Codebooks: a map of latents is put on their nearest entries, which follow the latents.

One codebook is a moving average of the latents of each entry, one is learned by gradient. Both look
up in double and hold float32, also under autocast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from udl_dist.core import rng

if TYPE_CHECKING:
    from udl_dist.methods.losses.quantizers import QuantizerSettings

EPSILON = 1e-5  # of the Laplace smoothing of counts
SHORTEST = 1e-6  # length below which a vector is not scaled to unit length
SCORES = 2**24  # of latents against entries that a lookup holds at a time: 128 MiB
SLOTS = 1024  # of restarts: entries that a step can replace
# Restarts weigh encodings by exp(SHARPNESS · (g - MIDDLE)), g of a Gumbel distribution. From the 23
# bits of a uniform number it lies in [-2.9, 16.7], so that all weights are doubles above zero.
SHARPNESS, MIDDLE = 64.0, 7.0


@dataclass(frozen=True)
class Quantized:
    """Latents on their entries; `loss` is a mean over positions and dimensions of each image."""

    latents: Tensor  # [B, D, h, w], the entries; their gradient goes straight to what was quantized
    indices: Tensor  # [B, h, w] int64
    loss: Tensor  # [B]
    sums: dict[str, Tensor] = field(default_factory=dict)  # for `after_step`


class EMAQuantizer(nn.Module):
    """A codebook of moving averages (van den Oord et al. 2017, appendix A.1).

    `counts` N and `totals` m average how many latents an entry gets in a step, and their sum. An
    entry is m / N, with N smoothed. It starts at random and stays until it is used or restarted.
    """

    codebook: Tensor  # [K, D]
    counts: Tensor  # [K]
    totals: Tensor  # [K, D]

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__()
        self.settings, self.size, self.dimensions = settings, settings.codes, settings.dimensions
        self.in_words = f"codebook of {self.size:,} × {self.dimensions}"
        self.register_buffer("codebook", _start(settings))
        # Not one use of the random start, as elsewhere: a decay of 0.99 would forget it too slowly.
        self.register_buffer("counts", torch.zeros(self.size))
        self.register_buffer("totals", torch.zeros(self.size, self.dimensions))

    # [B, D, h, w], [B] int64
    def forward(self, latents: Tensor, keys: Tensor) -> Quantized:
        """The loss is β‖z − sg(e)‖²: no gradient reaches the codebook."""
        latents = _prepared(latents, self.settings.normalise)
        indices = _nearest(latents, self.codebook)
        entries = self.lookup(indices)
        loss = self.settings.commitment * _error(latents, entries)
        sums = self._sums(latents.detach(), indices, keys)
        return Quantized(straight_through(latents, entries), indices, loss, sums)

    def indices(self, latents: Tensor) -> Tensor:  # [B, D, h, w] -> [B, h, w] int64
        """The number of the nearest entry of each latent."""
        return _nearest(_prepared(latents, self.settings.normalise), self.codebook)

    def lookup(self, indices: Tensor) -> Tensor:  # [B, h, w] int64 -> [B, D, h, w]
        """The entries of these numbers."""
        return _entries(indices, self.codebook)

    def after_step(self, sums: Mapping[str, Tensor]) -> None:
        """Move the averages and the entries, and restart dead entries, by the global batch."""
        used, restarts = sums["codes"].double(), sums["restarts"].double()
        fresh = 1 - self.settings.decay
        counts = self.counts.double().lerp(used[:, -1], fresh)
        totals = self.totals.double().lerp(used[:, :-1], fresh)
        total = counts.sum()
        smoothed = (counts + EPSILON) / (total + self.size * EPSILON) * total
        entries = self._scaled(totals / smoothed[:, None])
        entries = torch.where(counts[:, None] > 0, entries, self.codebook)

        # In the order of their numbers, dead entries take the encodings of the slots.
        dead = counts < self.settings.dead_below * total / self.size
        slots = dead.cumsum(0) - 1
        drawn = restarts[slots.clamp(0, len(restarts) - 1)]  # [K, D + 1]
        restarted = dead & (slots < len(restarts)) & (drawn[:, -1] > 0)
        encodings = self._scaled(drawn[:, :-1] / drawn[:, -1:])
        # As if it had had uniform use. With the old averages, the next step would move it back.
        counts = torch.where(restarted, total / self.size, counts)
        totals = torch.where(restarted[:, None], encodings * counts[:, None], totals)
        self.codebook.copy_(torch.where(restarted[:, None], encodings, entries))
        self.counts.copy_(counts)
        self.totals.copy_(totals)

    def _scaled(self, entries: Tensor) -> Tensor:  # [K, D] -> [K, D]
        return _unit(entries, 1) if self.settings.normalise else entries

    @torch.no_grad()
    def _sums(self, latents: Tensor, indices: Tensor, keys: Tensor) -> dict[str, Tensor]:
        """The latents of each entry, and candidates for restarts in slots; [·, D + 1] of doubles.

        The last column counts, or has the sum of weights. A slot must end with one encoding of the
        global batch, but only sums go over ranks. So each position draws a slot and a weight so
        steep that the largest of a slot outweighs the rest: the largest of Gumbel numbers exceeds
        the next by 1/SHARPNESS · log 100 in 93 % of cases, however many there are (an
        exponential distribution), and its encoding is then 99 % of the mean or more.
        """
        rows = latents.permute(0, 2, 3, 1).flatten(0, 2).double()
        rows = functional.pad(rows, (0, 1), value=1.0)  # [B·h·w, D + 1]
        codes = rows.new_zeros(self.size, rows.shape[1]).index_add_(0, indices.flatten(), rows)
        # Without restarts one slot, so that `sums` has the same names.
        count = min(self.size, SLOTS) if self.settings.dead_below else 1
        restarts = rows.new_zeros(count, rows.shape[1])
        if self.settings.dead_below:
            shape = tuple(indices.shape[1:])
            slots = (rng.uniform(keys, "restart slot", shape) * count).long().flatten()
            draws = rng.uniform(keys, "restart weight", shape).double().flatten()
            weights = (SHARPNESS * (-(-draws.log()).log() - MIDDLE)).exp()
            restarts.index_add_(0, slots, rows * weights[:, None])
        return {"codes": codes, "restarts": restarts}


class GradientQuantizer(nn.Module):
    """A codebook that gradients move (van den Oord et al. 2017, eq. 3); dead entries stay."""

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__()
        self.settings, self.size, self.dimensions = settings, settings.codes, settings.dimensions
        self.in_words = f"codebook of {self.size:,} × {self.dimensions}"
        self.weight = nn.Parameter(_start(settings))

    @property
    def codebook(self) -> Tensor:
        """The entries, [K, D]; of unit length if these are asked for."""
        return _unit(self.weight, 1) if self.settings.normalise else self.weight

    # [B, D, h, w], [B] int64
    def forward(self, latents: Tensor, keys: Tensor) -> Quantized:
        """The loss is ‖sg(z) − e‖² + β‖z − sg(e)‖²."""
        latents, codebook = _prepared(latents, self.settings.normalise), self.codebook
        indices = _nearest(latents, codebook)
        entries = _entries(indices, codebook)
        loss = _error(latents.detach(), entries)
        loss = loss + self.settings.commitment * _error(latents, entries.detach())
        return Quantized(straight_through(latents, entries), indices, loss)

    def indices(self, latents: Tensor) -> Tensor:  # [B, D, h, w] -> [B, h, w] int64
        """The number of the nearest entry of each latent."""
        return _nearest(_prepared(latents, self.settings.normalise), self.codebook)

    def lookup(self, indices: Tensor) -> Tensor:  # [B, h, w] int64 -> [B, D, h, w]
        """The entries of these numbers."""
        return _entries(indices, self.codebook)

    def after_step(self, sums: Mapping[str, Tensor]) -> None:
        """Nothing: the optimiser moves the codebook."""


# [B, D, h, w] -> the same, in float32 or better
def at_least_float32(latents: Tensor) -> Tensor:
    """What a quantizer computes with: autocast hands it bfloat16."""
    return latents.to(torch.promote_types(latents.dtype, torch.float32))


def straight_through(values: Tensor, quantized: Tensor) -> Tensor:
    """`quantized` to the bit, with the gradient of `values` (Bengio et al. 2013)."""
    return quantized.detach() + (values - values.detach())


def _start(settings: QuantizerSettings) -> Tensor:  # [K, D]
    """Random entries: on the sphere, or near 0, where the nearest depends on directions alone."""
    entries = torch.empty(settings.codes, settings.dimensions)
    if settings.normalise:
        return _unit(entries.normal_(), 1)
    return entries.uniform_(-1 / settings.codes, 1 / settings.codes)


def _unit(vectors: Tensor, dim: int) -> Tensor:
    return functional.normalize(vectors, dim=dim, eps=SHORTEST)


def _prepared(latents: Tensor, normalise: bool) -> Tensor:  # [B, D, h, w] -> the same
    latents = at_least_float32(latents)
    return _unit(latents, 1) if normalise else latents


@torch.no_grad()
def _nearest(latents: Tensor, codebook: Tensor) -> Tensor:  # [B, D, h, w], [K, D] -> [B, h, w]
    """The entry at the least Euclidean distance: the largest zᵀe − ‖e‖²/2."""
    # In double, which neither autocast nor TF32 rounds; it costs little next to the networks.
    rows, entries = latents.permute(0, 2, 3, 1).flatten(0, 2).double(), codebook.double()
    offsets = entries.square().sum(1) / -2
    parts = torch.split(rows, max(1, SCORES // len(entries)))
    found = [torch.addmm(offsets, part, entries.T).argmax(1) for part in parts]
    return torch.cat(found).view(len(latents), *latents.shape[2:])


def _entries(indices: Tensor, codebook: Tensor) -> Tensor:  # [B, h, w], [K, D] -> [B, D, h, w]
    return functional.embedding(indices, codebook).permute(0, 3, 1, 2)


def _error(latents: Tensor, entries: Tensor) -> Tensor:  # [B, D, h, w] twice -> [B]
    # A mean over dimensions too: the published weights β are for such.
    return (latents - entries).square().flatten(1).mean(1)
