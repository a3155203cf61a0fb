"""Rows of numbers as points in a plane: along their directions of most variance."""

from __future__ import annotations

import torch
from torch import Tensor

from udl_dist.evaluation import pca
from udl_dist.evaluation.metric_group import Plane


def principal(fitted: Tensor, rows: Tensor, labels: Tensor) -> Plane:  # [N, F], [M, F], [M]
    """`rows` along the two directions in which the `fitted` ones vary most; a second one is 0 where
    there is none.
    """
    centre = fitted.double().mean(0)
    covariance = torch.cov(fitted.double().T).view(len(centre), -1)
    kept = pca.principal(covariance, 2).flip(1)  # the greatest first
    # a direction has no sign of its own
    kept = kept * kept.gather(0, kept.abs().argmax(0, keepdim=True)).sign()
    points = (rows.double() - centre) @ kept
    shares = (kept * (covariance @ kept)).sum(0) / covariance.trace().clamp(min=1e-30)
    names = [
        f"direction {number + 1}: {100 * share:.0f} % of the variance"
        for number, share in enumerate(shares)
    ]
    if len(names) == 1:
        points, names = torch.cat([points, torch.zeros_like(points)], 1), [*names, "none"]
    return Plane(points, labels, (names[0], names[1]))
