"""The descriptor of images: the same everywhere, and whatever makes images worse to a person moves
it.
"""

import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn import functional

from udl_dist.evaluation.similarity import RealSet
from udl_dist.methods.metrics import descriptor


@pytest.fixture(scope="module")
def photographs() -> tuple[Tensor, Tensor]:
    """Two sets of 300 crops of 32 × 32 from two real photographs in colour, in [-1, 1]."""
    chance = torch.Generator().manual_seed(0)
    crops = []
    for photograph in load_sample_images().images:
        whole = torch.from_numpy(photograph.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        small = functional.avg_pool2d(whole, 2)[0]  # 3 × 213 × 320
        for _ in range(300):
            top, left = (
                int(torch.randint(side - 32, (), generator=chance)) for side in small.shape[1:]
            )
            crops.append(small[:, top : top + 32, left : left + 32])
    shuffled = torch.stack(crops)[torch.randperm(600, generator=chance)]
    return shuffled[:300], shuffled[300:]


def checkerboard(images: Tensor) -> Tensor:
    places = torch.arange(images.shape[2])
    return (images + 0.05 * (-1.0) ** (places[:, None] + places)).clamp(-1, 1)


def dots(images: Tensor) -> Tensor:
    grid = torch.zeros(images.shape[2:])
    grid[::4, ::4] = 0.2
    return (images + grid - grid.mean()).clamp(-1, 1)


def blurred(images: Tensor) -> Tensor:
    return functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)


def noisy(images: Tensor) -> Tensor:
    return (
        images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    ).clamp(-1, 1)


@pytest.mark.parametrize("worsen", [checkerboard, dots, blurred, noisy])
def test_worsened_photographs_are_ranked_below_real_ones(
    photographs: tuple[Tensor, Tensor], worsen: object
) -> None:
    assert callable(worsen)
    first, second = photographs
    rows = descriptor.describe(first)
    real = RealSet.of(rows, rows)
    of_real, of_worse = (descriptor.describe(images) for images in (second, worsen(second)))
    assert real.frechet(of_worse) > 2 * real.frechet(of_real)
    lifelike, lost = real.of_pairs(of_real), real.of_pairs(of_worse)
    assert lost["kernel_distance"] > lifelike["kernel_distance"]
    for name in ("precision", "recall", "density", "coverage"):
        assert lost[name] < lifelike[name]


def test_a_collapsed_set_is_ranked_below_real_ones(photographs: tuple[Tensor, Tensor]) -> None:
    first, second = (descriptor.describe(images) for images in photographs)
    real = RealSet.of(first, first)
    few = second[:10].repeat(30, 1)
    assert real.frechet(few) > 2 * real.frechet(second)
    assert real.neighbours(few)["recall"] < 0.1 < real.neighbours(second)["recall"]


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 2, 2), (1, 5, 5), (1, 28, 28), (3, 64, 64), (3, 100, 100)]
)
def test_it_describes_images_of_any_size(shape: tuple[int, int, int]) -> None:
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rows = descriptor.describe(images)
    assert rows.isfinite().all() and rows.shape[1] < 160
    assert torch.equal(rows[:1], descriptor.describe(images[:1])) or torch.allclose(
        rows[:1], descriptor.describe(images[:1]), atol=1e-5
    )


def test_by_hand_a_flat_image_has_its_grey_and_no_energy() -> None:
    (row,) = descriptor.describe(torch.full((1, 1, 8, 8), 0.5))
    assert torch.allclose(row[:16], torch.tensor(0.5 * descriptor.LAYOUT))
    least = torch.tensor([0.1, 0.01]).log()  # of the typical energies
    # grids of periods 2 and 4; energies of 8 filters and 4 quarters; no difference between energy
    # and evenness
    expected = torch.cat([least[:1].expand(2), least[1:].expand(12), torch.zeros(1)])
    assert torch.allclose(row[16:], expected, atol=1e-4)


def test_by_hand_a_checkerboard_is_all_in_one_filter() -> None:
    places = torch.arange(16)
    board = ((-1.0) ** (places[:, None] + places)).expand(1, 1, 16, 16)
    padded = descriptor._responses(board)[0, :, 1:-1, 1:-1]
    # [-1, 2, -1] by itself is of length 6 and answers ±16 to it; level and edge filters answer 0
    assert torch.allclose(padded.abs().amax((1, 2)), torch.tensor([0.0] * 7 + [16 / 6]), atol=1e-6)
