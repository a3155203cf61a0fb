"""The distance of two sets of images, held against scipy and a closed form."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from udl_dist.methods.metrics import frechet


def means(real: torch.Tensor, fake: torch.Tensor) -> dict[str, torch.Tensor]:
    every = frechet.moments(frechet.small(real), "real") | frechet.moments(
        frechet.small(fake), "fake"
    )
    return {name: value.mean(0) for name, value in every.items()}


def drawn(seed: int, images: int, *shape: int) -> torch.Tensor:
    return torch.rand(images, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 16), (1, 5, 5)])
def test_it_is_what_scipy_gives(shape: tuple[int, int, int]) -> None:
    real, fake = drawn(0, 400, *shape), drawn(1, 300, *shape) * 0.7 + 0.2
    sides = (min(8, shape[1]), min(8, shape[2]))
    one, other = (
        torch.nn.functional.adaptive_avg_pool2d(each, sides).flatten(1).double().numpy()
        for each in (real, fake)
    )
    first, second = np.cov(one.T, bias=True), np.cov(other.T, bias=True)
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(
        first + second - 2 * np.real(np.asarray(sqrtm(first @ second)))
    )
    assert frechet.distance(means(real, fake), "real", "fake") == pytest.approx(expected, rel=1e-5)


def test_by_hand_images_of_one_grey_each() -> None:
    """Greys of two deviations and means: 64 (μ - ν)² + 64 (σ - τ)², for all 64 pixels are one
    number.
    """
    real, fake = (
        torch.tensor(greys).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
        for greys in ([-0.5, 0.5], [0.1, 0.3])
    )
    expected = 64 * 0.2**2 + 64 * (0.5 - 0.1) ** 2
    assert frechet.distance(means(real, fake), "real", "fake") == pytest.approx(expected, rel=1e-6)


def test_a_set_is_no_way_from_itself_and_one_image_from_itself_neither() -> None:
    real = drawn(0, 300, 1, 28, 28)
    assert frechet.distance(means(real, real), "real", "fake") == pytest.approx(0, abs=1e-6)
    assert frechet.distance(means(real[:1], real[:1]), "real", "fake") == pytest.approx(0, abs=1e-6)
