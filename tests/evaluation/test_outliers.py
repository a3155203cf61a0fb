"""Outlier scores against scikit-learn and by hand."""

import pytest
import torch

from udl_dist.evaluation.anomaly import auroc, mahalanobis
from udl_dist.evaluation.fitted import ReferenceCodes


def rows(count: int, away: float = 0.0, width: int = 5) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count)) + 100 + away


def test_auroc_is_that_of_scikit_learn_and_equal_scores_count_half() -> None:
    from sklearn.metrics import roc_auc_score

    outlying, normal = (
        rows(count, width=1).mul(3).round().flatten() for count in (40, 70)
    )  # many are equal
    expected = roc_auc_score([1] * 40 + [0] * 70, torch.cat([outlying, normal]).numpy())
    assert auroc(outlying, normal) == pytest.approx(expected, abs=1e-12)
    assert auroc(torch.tensor([2.0, 1.0]), torch.tensor([1.0])) == 0.75


def test_outlier_factors_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.neighbors import LocalOutlierFactor

    monkeypatch.setattr("udl_dist.evaluation.fitted.ROWS", 37)  # in several parts
    normal, others = rows(150), torch.cat([rows(45), rows(44, away=2.0)])
    fitted = LocalOutlierFactor(n_neighbors=20, novelty=True, algorithm="brute")
    fitted.fit(normal.double().numpy())
    expected = torch.from_numpy(-fitted.score_samples(others.double().numpy()))
    torch.testing.assert_close(
        ReferenceCodes.fit(normal, 20).outlier_factors(others), expected, atol=1e-6, rtol=0
    )


def test_the_distance_from_a_gaussian_is_that_of_scikit_learn_and_allows_a_dead_code() -> None:
    from sklearn.covariance import EmpiricalCovariance

    fitted, others = rows(90).double(), rows(30, away=1.0).double()
    covariance = torch.cov(fitted.T, correction=0)
    expected = torch.from_numpy(
        EmpiricalCovariance().fit(fitted.numpy()).mahalanobis(others.numpy())
    )
    found = mahalanobis(others, fitted.mean(0), covariance)
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-5)  # of the ridge
    fitted[:, 2], covariance[2], covariance[:, 2] = 0.0, 0.0, 0.0
    assert bool(mahalanobis(others, fitted.mean(0), covariance).isfinite().all())


def test_rows_that_are_all_equal_have_finite_factors() -> None:
    assert bool(
        ReferenceCodes.fit(torch.ones(30, 3), 20)
        .outlier_factors(torch.zeros(2, 3))
        .isfinite()
        .all()
    )
