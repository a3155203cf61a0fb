"""A mixture of Gaussians over latents that was fitted to the codes of images, so that a method
without a prior samples.

It is kept as safetensors; knows latents and random keys, and no method.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from udl_dist.core import rng
from udl_dist.errors import DataError

CURE = "delete it, then run udl fit-prior again"


@dataclass(frozen=True)
class Mixture:
    """K Gaussians: `weights` [K] that add up to 1, `means` [K, Z], `factors` [K, Z, Z], lower
    Cholesky factors.
    """

    weights: Tensor
    means: Tensor
    factors: Tensor

    @property
    def latent_dim(self) -> int:
        return self.means.shape[1]

    def draw(self, keys: Tensor) -> Tensor:  # [N] int64 -> [N, Z]
        """Latents, one for each random key: the same key gives the same latents."""
        uniform = rng.uniform(keys, "component", (1,)).double()[:, 0]
        last = len(self.weights) - 1
        chosen = torch.searchsorted(self.weights.double().cumsum(0), uniform).clamp(max=last)
        noise = rng.normal(keys, "mixture", (self.latent_dim,)).to(self.means.dtype)
        return self.means[chosen] + torch.einsum("nij,nj->ni", self.factors[chosen], noise)

    def log_density(self, latents: Tensor) -> Tensor:  # [N, Z] -> [N]
        """The logarithm of the density of latents, in nats."""
        return self.log_joint(latents).logsumexp(1)

    def log_joint(self, latents: Tensor) -> Tensor:  # [N, Z] -> [N, K]
        """log p(component) + log p(latents | component)."""
        away = latents[:, None, :].to(self.means.dtype) - self.means  # [N, K, Z]
        # [K, Z, N]
        white = torch.linalg.solve_triangular(self.factors, away.permute(1, 2, 0), upper=False)
        volume = self.factors.diagonal(dim1=1, dim2=2).log().sum(1)
        constant = self.latent_dim * log(2 * pi) / 2
        squares: Tensor = white.square().sum(1).T
        return self.weights.log() - volume - constant - squares / 2

    def save(self, path: Path) -> None:
        save_file({name: value.contiguous() for name, value in vars(self).items()}, path)

    @classmethod
    def load(cls, path: Path, latent_dim: int) -> Mixture:
        """Read a mixture; raise DataError if it is damaged or of other latents."""
        try:
            mixture = cls(**load_file(path))
        except (OSError, SafetensorError, TypeError) as error:
            raise DataError(
                f"{path} is no mixture ({' '.join(str(error).split())}): {CURE}"
            ) from None
        count = len(mixture.weights)
        if mixture.means.shape != (count, latent_dim) or mixture.factors.shape != (
            count,
            latent_dim,
            latent_dim,
        ):
            raise DataError(f"{path} is a mixture over other latents than {latent_dim}: {CURE}")
        if not all(bool(value.isfinite().all()) for value in vars(mixture).values()):
            raise DataError(f"{path} holds numbers that are not finite: {CURE}")
        return mixture
