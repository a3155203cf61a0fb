"""What is fitted to the codes of a run: a mixture to sample from, codes to score outliers against.

Each is stored as one safetensors file; using one needs no scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file
from torch import Tensor

from udl_dist.core import rng
from udl_dist.errors import DataError
from udl_dist.evaluation.io import read_tensors

MIXTURE_TENSORS = ("weights", "means", "factors")  # of its file
MIXTURE_CURE = "delete it, then run udl fit-prior again"
# K × Z × 8192 doubles: 40 MiB for ten components of 64 numbers.
MIXTURE_ROWS = 8192  # whose densities are computed at a time
MOST_CODES = 30_000  # reference codes: the time of a search grows with the square
CODES_CURE = "delete it, then run udl fit-outliers again"
ROWS = 1000  # rows of a distance matrix at a time
TINY = 1e-10  # where rows are equal, a density would be infinite


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
        for part in torch.split(latents.to(self.means.dtype), MIXTURE_ROWS):
            # One triangular solve for each component, with all latents as columns.
            away = (part[:, None, :] - self.means).permute(1, 2, 0)  # [K, Z, N]
            white = torch.linalg.solve_triangular(self.factors, away, upper=False)
            found.append((constant - white.square().sum(1).T / 2).logsumexp(1))
        return torch.cat(found)

    def save(self, path: Path) -> None:
        save_file({name: getattr(self, name).contiguous() for name in MIXTURE_TENSORS}, path)

    @classmethod
    def load(cls, path: Path, latent_dim: int, preferred: bool) -> Mixture:
        """Read a mixture; raise DataError if it is damaged or of other latents."""
        tensors, _ = read_tensors(path, "mixture", MIXTURE_CURE)
        if tensors.keys() != set(MIXTURE_TENSORS):
            raise DataError(f"{path} is not a valid mixture: {MIXTURE_CURE}")
        # The file may come from anyone: every shape follows from the number of weights.
        count = len(tensors["weights"])
        mixture = cls(**tensors, preferred=preferred)
        of_means, of_factors = (count, latent_dim), (count, latent_dim, latent_dim)
        if mixture.means.shape != of_means or mixture.factors.shape != of_factors:
            raise DataError(
                f"{path} is a mixture over other latents than {latent_dim}: {MIXTURE_CURE}"
            )
        if not all(bool(value.isfinite().all()) for value in tensors.values()):
            raise DataError(f"{path} holds numbers that are not finite: {MIXTURE_CURE}")
        return mixture


@dataclass(frozen=True)
class ReferenceCodes:
    """Codes of training images, and the density of codes around each of them.

    Fitting needs scikit-learn, using them only torch.
    """

    rows: Tensor  # [N, F] float64, minus the centre: cdist loses digits of large rows
    centre: Tensor  # [F] float64
    reach: Tensor  # [N]: the distance of each to its last neighbour
    density: Tensor  # [N]
    neighbours: Tensor  # []: their number

    @classmethod
    def fit(cls, rows: Tensor, neighbours: int) -> ReferenceCodes:  # [N, F]
        from sklearn.neighbors import NearestNeighbors

        centre, count = rows.double().mean(0), min(neighbours, len(rows) - 1)
        rows = rows.double() - centre
        fitted: Any = NearestNeighbors(n_neighbors=count).fit(rows.numpy())
        # Without arguments each row's neighbours exclude the row itself.
        distances, places = map(torch.from_numpy, fitted.kneighbors())
        reach = distances[:, -1]
        return cls(rows, centre, reach, _densities(distances, reach[places]), torch.tensor(count))

    def outlier_factors(self, rows: Tensor) -> Tensor:  # [N, F] -> [N] float64
        """Local outlier factors (Breunig et al. 2000, definition 7): 1 inside, more outside."""
        found = []
        for part in torch.split(rows.double() - self.centre, ROWS):
            near = torch.cdist(part, self.rows).topk(int(self.neighbours), largest=False)
            own = _densities(near.values, self.reach[near.indices])
            found.append(self.density[near.indices].mean(1) / own)
        return torch.cat(found).double()

    def as_bytes(self, weights: str) -> bytes:
        """The content of a file with these codes, made with these weights."""
        tensors = {name: value.contiguous() for name, value in vars(self).items()}
        content: bytes = save(tensors, {"weights": weights})
        return content

    @classmethod
    def load(cls, path: Path, latent_dim: int) -> tuple[ReferenceCodes, str]:
        """The codes and their weights; raise DataError if damaged or of another latent size."""
        tensors, facts = read_tensors(path, "file of reference codes", CODES_CURE)
        # A file may hold anything: a scalar for rows, or none, has the count 0 and is refused
        # below.
        count = len(tensors["rows"]) if tensors.get("rows", torch.ones(())).dim() else 0
        shapes = {"rows": (count, latent_dim), "centre": (latent_dim,), "neighbours": ()}
        shapes |= {"reach": (count,), "density": (count,)}
        fits = {name: tuple(value.shape) for name, value in tensors.items()} == shapes
        if not fits or not 1 <= int(tensors["neighbours"]) < count:
            raise DataError(
                f"{path} is not a valid file of reference codes of {latent_dim} numbers: "
                f"{CODES_CURE}"
            )
        if not all(bool(value.isfinite().all()) for value in tensors.values()):
            raise DataError(f"{path} holds numbers that are not finite: {CODES_CURE}")
        return cls(**tensors), facts.get("weights", "")


def _densities(distances: Tensor, reach: Tensor) -> Tensor:  # [N, K] twice -> [N]
    # Local reachability density (Breunig et al. 2000, definition 6).
    return 1 / (torch.maximum(distances, reach).mean(1) + TINY)
