"""Spectral normalisation: weights divided by their largest singular value (Miyato et al. 2018).

torch's own moves its estimate at each forward. Here it moves once a step, by `iterate`, so that
parts of a batch, ranks and repeated forwards see the same weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

FIRST = 15  # iterations at the start, as in torch's own


class SpectralNorm(nn.Module):
    """A weight [D, ...] -> the same over uᵀWv, its largest singular value as [D, rest].

    The buffers `left` (u) and `right` (v) are its estimated singular vectors.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows = weight.detach().flatten(1)
        self.left: Tensor
        self.right: Tensor
        for name, size in (("left", rows.shape[0]), ("right", rows.shape[1])):
            self.register_buffer(name, functional.normalize(rows.new_empty(size).normal_(), dim=0))
        for _ in range(FIRST):
            self.iterate(weight)

    def forward(self, weight: Tensor) -> Tensor:
        return weight / self.largest(weight)

    def largest(self, weight: Tensor) -> Tensor:  # -> []
        """uᵀWv, of which the gradient is that of the singular value."""
        # Products of elements: autocast would make a matrix product one of bfloat16.
        return (self.left[:, None] * weight.flatten(1) * self.right).sum()

    @torch.no_grad()
    def iterate(self, weight: Tensor) -> None:
        """One power iteration, which moves both buffers."""
        rows = weight.flatten(1)
        self.right.copy_(functional.normalize(rows.T @ self.left, dim=0))
        self.left.copy_(functional.normalize(rows @ self.right, dim=0))


def normalise(network: nn.Module) -> None:
    """Normalise the weight of each dense or convolutional layer; embeddings stay as they are."""
    for layer in list(network.modules()):
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.dim() < 2:
            continue
        if isinstance(layer, nn.Embedding):
            continue
        # A layer that starts at zero has no direction to normalise, so it gets one.
        if not weight.is_meta and not weight.any():
            nn.init.normal_(weight)
        parametrize.register_parametrization(layer, "weight", SpectralNorm(weight))


def iterate(network: nn.Module) -> None:
    """One power iteration of each normalised layer."""
    for stored in network.modules():
        if isinstance(stored, parametrize.ParametrizationList):
            (norm,) = stored
            assert isinstance(norm, SpectralNorm), "a discriminator has no other parametrization"
            norm.iterate(stored.original)
