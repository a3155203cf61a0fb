"""How far rows lie from others, and how well such a score tells two sets apart. Knows no image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# training images that neighbours are looked for among: distances go with their product
MOST_NEIGHBOURS = 30_000
ROWS = 1000  # whose distances to all others are held at a time
TINY = 1e-10  # a density without bound where rows are equal
RIDGE = 1e-6  # part of the mean variance added to each: directions without variance say nothing


def auroc(odd: Tensor, normal: Tensor) -> float:  # [N], [M]
    """The chance that an odd one scores above a normal one; of equal scores half counts (Fawcett
    2006, section 7).
    """
    ordered = normal.double().sort().values
    below, upto = (
        torch.searchsorted(ordered, odd.double(), right=right) for right in (False, True)
    )
    return float((below + upto).double().sum() / (2 * len(odd) * len(normal)))


def mahalanobis(rows: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:  # [N, Z] -> [N] float64
    """The squared distance from a Gaussian, measured by its covariance."""
    ridge = RIDGE * covariance.diagonal().mean().clamp(min=TINY)
    factor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(mean), dtype=torch.float64))
    away = torch.linalg.solve_triangular(factor, (rows.double() - mean).T, upper=False)
    distances: Tensor = away.square().sum(0)
    return distances


@dataclass(frozen=True)
class Crowd:
    """Rows that are normal, and how dense they lie around each of them."""

    # [N, F] float64, from their centre: distances of rows far from 0 would lose digits
    rows: Tensor
    centre: Tensor  # [F] float64
    reach: Tensor  # [N]: how far the last neighbour of each is
    density: Tensor  # [N]
    neighbours: Tensor  # []: how many are looked at

    @classmethod
    def of(cls, rows: Tensor, neighbours: int) -> Crowd:  # [N, F]
        centre, count = rows.double().mean(0), min(neighbours, len(rows) - 1)
        rows = rows.double() - centre
        near = [_nearest(part, rows, count, start) for start, part in _parts(rows)]
        distances, places = (torch.cat(found) for found in zip(*near, strict=True))
        reach = distances[:, -1]
        return cls(rows, centre, reach, _densities(distances, reach[places]), torch.tensor(count))

    def outlier_factors(self, rows: Tensor) -> Tensor:  # [N, F] -> [N] float64
        """Local outlier factors (Breunig et al. 2000, definition 7): 1 in the midst of others, more
        outside.
        """
        found = []
        for _, part in _parts(rows.double() - self.centre):
            distances, places = _nearest(part, self.rows, int(self.neighbours))
            found.append(self.density[places].mean(1) / _densities(distances, self.reach[places]))
        return torch.cat(found).double()


def _densities(distances: Tensor, reach: Tensor) -> Tensor:  # [N, K] twice -> [N]
    return 1 / (torch.maximum(distances, reach).mean(1) + TINY)


def _nearest(
    part: Tensor, rows: Tensor, count: int, own: int | None = None
) -> tuple[Tensor, Tensor]:
    """Distances and places of the nearest rows; of a part that is itself among them, from `own` on,
    others.
    """
    distances = torch.cdist(part, rows)
    if own is not None:
        distances.diagonal(own).fill_(torch.inf)
    near = distances.topk(count, largest=False)
    return near.values, near.indices


def _parts(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    return zip(range(0, len(rows), ROWS), torch.split(rows, ROWS), strict=True)
