"""The plane of most variance against scikit-learn, and of rows that have no second direction."""

import torch

from udl_dist.evaluation import pca


def test_points_are_those_of_scikit_learn_but_for_signs() -> None:
    from sklearn.decomposition import PCA

    torch.manual_seed(0)
    fitted, rows = torch.randn(80, 5) * torch.arange(1, 6), torch.randn(30, 5) + 3
    known = PCA(2).fit(fitted.double().numpy())
    plane = pca.code_map(fitted, rows, torch.zeros(30, dtype=torch.long))
    expected = torch.from_numpy(known.transform(rows.double().numpy()))
    torch.testing.assert_close(plane.points.abs(), expected.abs(), atol=1e-6, rtol=0)
    assert (
        plane.axes[0]
        == f"direction 1: {100 * known.explained_variance_ratio_[0]:.0f} % of the variance"
    )


def test_a_single_number_lies_on_a_line() -> None:
    plane = pca.code_map(torch.rand(9, 1), torch.rand(4, 1), torch.zeros(4, dtype=torch.long))
    assert plane.points.shape == (4, 2) and plane.points[:, 1].tolist() == [0.0] * 4
