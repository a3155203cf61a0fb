"""Draws of latents, the priors that they are weighed by, and the bounds that weights give.

The prior is N(0, 1), or the mixture of VampPrior over learned images (Tomczak & Welling 2018).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from udl_dist.core import rng

AT_ONCE = 512  # latents compared with all components at a time, for bounded memory
LOGVAR_BOUND = 20.0
HALF_LOG_2PI = math.log(2 * math.pi) / 2
Components = tuple[Tensor, Tensor]  # means and log-variances of a mixture, [K, Z] each


@dataclass(frozen=True)
class Drawn:
    """K latents of q(z|x) for each of B images, and -log p(x|z) of them."""

    mean: Tensor  # [B, Z]
    logvar: Tensor  # [B, Z]
    noise: Tensor  # [K, B, Z]
    latents: Tensor  # [K, B, Z]: μ + σ ε
    surprise: Tensor  # [K, B]

    def log_ratio(self, mixture: Components | None) -> Tensor:  # -> [K, B]
        """log p(z) - log q(z|x); without a mixture the prior is N(0, 1)."""
        if mixture is None:
            # Their constants cancel.
            return (self.noise.square() + self.logvar - self.latents.square()).sum(2) / 2
        own = log_normal(self.latents, self.mean, self.logvar)
        return log_mixture(self.latents, *mixture) - own

    def kls(self, mixture: Components | None) -> Tensor:  # -> [B, Z] or [B, 1]
        """The KL from the prior in closed form by dimension; from a mixture by the first latent."""
        if mixture is not None:
            return -self.log_ratio(mixture)[0, :, None]
        # Both Gaussians are diagonal, so the KL has a closed form (Kingma & Welling 2014, eq. 10).
        return (self.mean.square() + self.logvar.exp() - 1 - self.logvar) / 2

    def log_weights(self, mixture: Components | None) -> Tensor:  # -> [K, B]
        """log p(x, z) - log q(z|x)."""
        return self.log_ratio(mixture) - self.surprise


def bound(log_weights: Tensor) -> Tensor:  # [K, B] -> [B]
    """-log of the mean weight (Burda et al. 2016, eq. 8).

    Its gradient gives each latent the share that its weight has of all (eq. 14).
    """
    return math.log(len(log_weights)) - log_weights.logsumexp(0)


class PseudoInputs(nn.Module):
    """Images that are learned, [K, C, H, W] in [-1, 1], which an encoder makes a prior of.

    Tomczak & Welling 2018, section 3. They start as noise; a hard tanh keeps them in the range.
    """

    def __init__(self, count: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        # Within the range: beyond it a hard tanh has no gradient, so a pixel would never move.
        self.images = nn.Parameter(torch.rand(count, *shape) * 2 - 1)
        self.in_words = f"{count:,} images"

    def forward(self) -> Tensor:
        return functional.hardtanh(self.images)

    def chosen(self, keys: Tensor) -> Tensor:  # [N] int64 -> [N, C, H, W]
        """One of the images for each random key, all equally likely."""
        places = rng.uniform(keys, "component", ()) * len(self.images)
        # The product may be rounded up to K.
        inputs: Tensor = self()
        return inputs[places.long().clamp(max=len(self.images) - 1)]


def bounded(logvar: Tensor) -> Tensor:
    """The log-variance within ±20."""
    # A smooth bound: exp(logvar) cannot overflow early in training, and unlike a clamp it never
    # makes a gradient zero.
    return LOGVAR_BOUND * (logvar / LOGVAR_BOUND).tanh()


def log_normal(latents: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:  # [..., Z] -> [...]
    """log N(z; μ, σ²), summed over dimensions; the three are broadcast."""
    squares = (latents - mean).square() * (-logvar).exp()
    return -(squares + logvar).sum(-1) / 2 - latents.shape[-1] * HALF_LOG_2PI


# [..., Z], [K, Z] twice -> [...]
def log_mixture(latents: Tensor, means: Tensor, logvars: Tensor) -> Tensor:
    """log 1/K Σ N(z; μ_k, σ_k²) (Tomczak & Welling 2018, eq. 9)."""
    # Not by products of matrices: squares as differences of large numbers would lose the digits
    # of narrow components.
    rows = latents.flatten(0, -2)
    parts = [
        log_normal(part[:, None], means, logvars).logsumexp(1)
        for part in torch.split(rows, AT_ONCE)
    ]
    return torch.cat(parts).view(latents.shape[:-1]) - math.log(len(means))
