"""A mixture of Gaussians over codes, so that a method without a prior samples; safetensors."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from udl_dist.core import rng
from udl_dist.errors import DataError
from udl_dist.evaluation.io import read_tensors

TENSORS = ("weights", "means", "factors")  # of the file
CURE = "delete it, then run udl fit-prior again"
# K × Z × 8192 doubles: 40 MiB for ten components of 64 numbers.
ROWS = 8192  # whose densities are computed at a time


@dataclass(frozen=True)
class Mixture:
    """K Gaussians over latents of Z numbers."""

    weights: Tensor  # [K], their sum is 1
    means: Tensor  # [K, Z]
    factors: Tensor  # [K, Z, Z], lower Cholesky factors of the covariances
    # Whether its images were nearer to held-out ones than those of the method's own prior.
    preferred: bool = False

    def draw(self, keys: Tensor) -> Tensor:  # [N] int64 -> [N, Z]
        """Latents, one for each random key: the same key gives the same latents."""
        uniform = rng.uniform(keys, "component", (1,)).double()[:, 0]
        # The component by the inverse of the cumulated weights; rounding may leave their sum below
        # 1, hence the clamp.
        chosen = torch.searchsorted(self.weights.double().cumsum(0), uniform)
        chosen = chosen.clamp(max=len(self.weights) - 1)
        # x = µ + L z with L Lᵀ = Σ.
        noise = rng.normal(keys, "mixture", self.means.shape[1:]).to(self.means.dtype)
        return self.means[chosen] + torch.einsum("nij,nj->ni", self.factors[chosen], noise)

    def log_density(self, latents: Tensor) -> Tensor:  # [N, Z] -> [N]
        """The logarithm of the density of latents, in nats."""
        volume = self.factors.diagonal(dim1=1, dim2=2).log().sum(1)
        # log w - log|L| - Z/2 log 2π; -|L⁻¹(x - µ)|²/2 follows for each latent.
        constant = self.weights.log() - volume - self.means.shape[1] * log(2 * pi) / 2
        found = []
        for part in torch.split(latents.to(self.means.dtype), ROWS):
            # One triangular solve for each component, with all latents as columns.
            away = (part[:, None, :] - self.means).permute(1, 2, 0)  # [K, Z, N]
            white = torch.linalg.solve_triangular(self.factors, away, upper=False)
            found.append((constant - white.square().sum(1).T / 2).logsumexp(1))
        return torch.cat(found)

    def save(self, path: Path) -> None:
        save_file({name: getattr(self, name).contiguous() for name in TENSORS}, path)

    @classmethod
    def load(cls, path: Path, latent_dim: int, preferred: bool) -> Mixture:
        """Read a mixture; raise DataError if it is damaged or of other latents."""
        tensors, _ = read_tensors(path, "mixture", CURE)
        if tensors.keys() != set(TENSORS):
            raise DataError(f"{path} is not a valid mixture: {CURE}")
        # The file may come from anyone: every shape follows from the number of weights.
        count = len(tensors["weights"])
        mixture = cls(**tensors, preferred=preferred)
        of_means, of_factors = (count, latent_dim), (count, latent_dim, latent_dim)
        if mixture.means.shape != of_means or mixture.factors.shape != of_factors:
            raise DataError(f"{path} is a mixture over other latents than {latent_dim}: {CURE}")
        if not all(bool(value.isfinite().all()) for value in tensors.values()):
            raise DataError(f"{path} holds numbers that are not finite: {CURE}")
        return mixture
