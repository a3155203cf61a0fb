"""Outlier scores of rows of features, and how well a score separates two sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from udl_dist.errors import DataError
from udl_dist.evaluation.io import read_tensors

MOST_CODES = 30_000  # reference codes: the time of a search grows with the square
ROWS = 1000  # rows of a distance matrix at a time
TINY = 1e-10  # where rows are equal, a density would be infinite
RIDGE = 1e-6  # share of the mean variance added to each, against directions without variance
CURE = "delete it, then run udl fit-outliers again"


def auroc(outliers: Tensor, normal: Tensor) -> float:  # [N], [M]
    """The chance that an outlier scores above a normal row (Fawcett 2006, section 7); ties half."""
    # (wins + ties/2) / pairs by binary search, without the matrix of all pairs.
    ordered = normal.double().sort().values
    below = torch.searchsorted(ordered, outliers.double())
    up_to = torch.searchsorted(ordered, outliers.double(), right=True)
    return float((below + up_to).double().sum() / (2 * len(outliers) * len(normal)))


def mahalanobis(rows: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:  # [N, Z] -> [N] float64
    """The squared distance from a Gaussian, measured by its covariance."""
    ridge = RIDGE * covariance.diagonal().mean().clamp(min=TINY)
    # (x-µ)ᵀ Σ⁻¹ (x-µ) = |L⁻¹ (x-µ)|² with Σ = L Lᵀ; no inverse is computed.
    factor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(mean), dtype=torch.float64))
    away = torch.linalg.solve_triangular(factor, (rows.double() - mean).T, upper=False)
    distances: Tensor = away.square().sum(0)
    return distances


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
            distances = torch.cdist(part, self.rows)
            near = distances.topk(int(self.neighbours), largest=False)
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
        tensors, facts = read_tensors(path, "file of reference codes", CURE)
        # A file may hold anything: a scalar for rows, or none, has the count 0 and is refused
        # below.
        count = len(tensors["rows"]) if tensors.get("rows", torch.ones(())).dim() else 0
        shapes = {"rows": (count, latent_dim), "centre": (latent_dim,), "neighbours": ()}
        shapes |= {"reach": (count,), "density": (count,)}
        fits = {name: tuple(value.shape) for name, value in tensors.items()} == shapes
        if not fits or not 1 <= int(tensors["neighbours"]) < count:
            raise DataError(
                f"{path} is not a valid file of reference codes of {latent_dim} numbers: {CURE}"
            )
        if not all(bool(value.isfinite().all()) for value in tensors.values()):
            raise DataError(f"{path} holds numbers that are not finite: {CURE}")
        return cls(**tensors), facts.get("weights", "")


def _densities(distances: Tensor, reach: Tensor) -> Tensor:  # [N, K] twice -> [N]
    # Local reachability density (Breunig et al. 2000, definition 6).
    return 1 / (torch.maximum(distances, reach).mean(1) + TINY)
