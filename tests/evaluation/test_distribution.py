"""Distances of sets against torchmetrics, closed forms and counting by hand."""

import math

import pytest
import torch

from udl_dist.evaluation import distribution, similarity
from udl_dist.evaluation.similarity import RealSet


def of(rows: torch.Tensor) -> RealSet:
    return RealSet.of(rows, rows)


def sets(real: int = 60, fake: int = 50, width: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(real, width), torch.randn(fake, width) * 1.3 + 0.4


@pytest.mark.filterwarnings("default")
def test_frechet_and_kernel_distances_are_those_of_torchmetrics() -> None:
    from torchmetrics.image.fid import _compute_fid
    from torchmetrics.image.kid import poly_mmd

    real, fake = (rows.double() for rows in sets())
    expected = _compute_fid(real.mean(0), torch.cov(real.T), fake.mean(0), torch.cov(fake.T))
    assert of(real).frechet(fake) == pytest.approx(float(expected), abs=1e-6)
    assert of(real).kernel(fake[:60]) == pytest.approx(_slow_kernel(real, fake), abs=1e-9)
    assert of(real[:50]).kernel(fake) == pytest.approx(float(poly_mmd(real[:50], fake)), abs=1e-6)


def _slow_kernel(real: torch.Tensor, fake: torch.Tensor) -> float:
    def mean(first: torch.Tensor, second: torch.Tensor, same: bool) -> float:
        values = [
            (float(a @ b) / len(a) + 1) ** 3
            for i, a in enumerate(first)
            for j, b in enumerate(second)
            if not (same and i == j)
        ]
        return sum(values) / len(values)

    return mean(real, real, True) + mean(fake, fake, True) - 2 * mean(real, fake, False)


def test_modes_are_counted_and_their_shares_compared_with_equal_ones() -> None:
    """By scipy's relative entropy."""
    from scipy.stats import entropy

    counts = [6, 3, 0, 1]
    logits = torch.eye(4).repeat_interleave(torch.tensor(counts), 0)
    found, kl = distribution.modes(logits)
    assert found == 3
    assert kl == pytest.approx(float(entropy(counts, [1] * 4)))
    assert distribution.modes(torch.eye(1000)) == pytest.approx((1000, 0), abs=1e-12)
    assert distribution.modes(torch.eye(1000)[:1]) == pytest.approx((1, math.log(1000)))


def test_the_class_score_is_counted_by_hand_and_lies_between_one_and_the_classes() -> None:
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) * 2
    chances = [
        [math.exp(one) / sum(map(math.exp, row)) for one in row] for row in logits.double().tolist()
    ]
    mean = [sum(column) / 20 for column in zip(*chances, strict=True)]
    each = [sum(p * math.log(p / q) for p, q in zip(row, mean, strict=True)) for row in chances]
    assert distribution.class_score(logits) == pytest.approx(math.exp(sum(each) / 20), abs=1e-6)
    assert distribution.class_score(torch.eye(4) * 1e4) == pytest.approx(
        4, abs=1e-9
    )  # sure of each, all alike often
    assert distribution.class_score(torch.eye(4)[:1].repeat(9, 1) * 1e4) == pytest.approx(
        1, abs=1e-9
    )


def test_the_distance_of_shifted_and_stretched_gaussians_is_its_closed_form() -> None:
    torch.manual_seed(1)
    rows = torch.randn(200, 4, dtype=torch.float64)
    rows = (rows - rows.mean(0)) @ torch.linalg.inv(
        torch.linalg.cholesky(torch.cov(rows.T))
    ).T  # exactly N(0, 1)
    shift = torch.tensor([3.0, 0.0, -1.0, 0.5], dtype=torch.float64)
    assert of(rows).frechet(rows + shift) == pytest.approx(float(shift.square().sum()), abs=1e-9)
    assert of(rows).frechet(2 * rows) == pytest.approx(4.0, abs=1e-9)  # Σ (2 - 1)²
    assert of(rows).frechet(rows) == pytest.approx(0.0, abs=1e-9)
    flat = rows * torch.tensor(
        [1.0, 1.0, 0.0, 0.0], dtype=torch.float64
    )  # no variance in two directions
    assert of(rows).frechet(flat) == pytest.approx(2.0, abs=1e-9)


def test_neighbours_are_those_that_are_counted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = sets(23, 19)
    k = similarity.NEIGHBOURS
    near, far, across = torch.cdist(real, real), torch.cdist(fake, fake), torch.cdist(fake, real)
    radii, others = near.sort(1).values[:, k], far.sort(1).values[:, k]
    expected = {
        "precision": float((across <= radii).any(1).float().mean()),
        "recall": float((others >= across.T).any(1).float().mean()),
        "density": float((across <= radii).float().sum() / (k * len(fake))),
        "coverage": float((across.T.min(1).values <= radii).float().mean()),
    }
    monkeypatch.setattr(similarity, "ROWS", 4)
    assert of(real).neighbours(fake) == pytest.approx(expected)


def test_a_set_covers_itself_and_nothing_far_away() -> None:
    real, _ = sets()
    assert of(real).neighbours(real) == pytest.approx(
        {"precision": 1, "recall": 1, "coverage": 1, "density": 1.2}, rel=0.2
    )
    assert of(real).neighbours(real + 100) == dict.fromkeys(
        ("precision", "recall", "density", "coverage"), 0.0
    )
