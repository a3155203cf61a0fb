"""How far rows lie from others, and how well such a score tells two sets apart. Knows no image."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

ROWS = 1000  # whose distances to all others are held at a time
TINY = 1e-10  # a density without bound where rows are equal
RIDGE = 1e-6  # part of the mean variance added to each: directions without variance say nothing


def auroc(odd: Tensor, normal: Tensor) -> float:  # [N], [M]
    """The chance that an odd one scores above a normal one; of equal scores half counts (Fawcett 2006, section 7)."""
    ordered = normal.double().sort().values
    below, upto = (torch.searchsorted(ordered, odd.double(), right=right) for right in (False, True))
    return float((below + upto).double().sum() / (2 * len(odd) * len(normal)))


def mahalanobis(rows: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:  # [N, Z] -> [N] float64
    """The squared distance from a Gaussian, measured by its covariance."""
    ridge = RIDGE * covariance.diagonal().mean().clamp(min=TINY)
    factor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(mean), dtype=torch.float64))
    away = torch.linalg.solve_triangular(factor, (rows.double() - mean).T, upper=False)
    distances: Tensor = away.square().sum(0)
    return distances


class Crowd:
    """Rows that are normal, and how dense they lie around each of them."""

    def __init__(self, rows: Tensor, neighbours: int) -> None:  # [N, F]
        self._centre = rows.double().mean(0)  # distances of rows far from 0 would lose digits
        self._rows = self._centred(rows)
        self._count = min(neighbours, len(rows) - 1)
        near = [self._nearest(part, start) for start, part in self._parts(self._rows)]
        distances, places = (torch.cat(found) for found in zip(*near, strict=True))
        self._reach = distances[:, -1]
        self._density = self._densities(distances, places)

    def outlier_factors(self, rows: Tensor) -> Tensor:  # [N, F] -> [N] float64
        """Local outlier factors (Breunig et al. 2000, definition 7): 1 in the midst of others, more outside."""
        found = []
        for _, part in self._parts(self._centred(rows)):
            distances, places = self._nearest(part)
            found.append(self._density[places].mean(1) / self._densities(distances, places))
        return torch.cat(found).double()

    def _densities(self, distances: Tensor, places: Tensor) -> Tensor:
        return 1 / (torch.maximum(distances, self._reach[places]).mean(1) + TINY)

    def _nearest(self, part: Tensor, own: int | None = None) -> tuple[Tensor, Tensor]:
        """Distances and places of the nearest rows; of rows that are themselves among them, from `own` on, others."""
        distances = torch.cdist(part, self._rows)
        if own is not None:
            distances.diagonal(own).fill_(torch.inf)
        near = distances.topk(self._count, largest=False)
        return near.values, near.indices

    def _centred(self, rows: Tensor) -> Tensor:
        return rows.double() - self._centre

    def _parts(self, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
        return zip(range(0, len(rows), ROWS), torch.split(rows, ROWS), strict=True)
