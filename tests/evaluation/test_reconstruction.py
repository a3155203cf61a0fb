"""Similarity of images against torchmetrics, PCA from sums against a decomposition of the images
themselves.
"""

import pytest
import torch

from udl_dist.evaluation import pca, similarity


@pytest.fixture
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of 5 smooth images of 3 × 19 × 23 in [-1, 1]."""
    torch.manual_seed(0)
    images = (
        torch.nn.functional.interpolate(torch.rand(5, 3, 5, 5), (19, 23), mode="bilinear") * 2 - 1
    )
    return images, (images + 0.2 * torch.randn_like(images)).clamp(-1, 1)


@pytest.mark.filterwarnings("default")
def test_psnr_and_ssim_are_those_of_torchmetrics(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    first, second = ((images.double() + 1) / 2 for images in pairs)
    errors = similarity.mse(*pairs)
    expected = [
        peak_signal_noise_ratio(a[None], b[None], data_range=1.0)
        for a, b in zip(first, second, strict=True)
    ]
    torch.testing.assert_close(
        similarity.psnr(errors), torch.stack(expected).double(), atol=1e-6, rtol=0
    )
    # Theirs is also a mean over places where the window hangs over the edge, ours as Wang et al.
    # have it.
    _, places = structural_similarity_index_measure(
        first, second, data_range=1.0, return_full_image=True
    )
    whole = places[..., 5:-5, 5:-5].flatten(1).mean(1)
    torch.testing.assert_close(similarity.ssim(*pairs), whole, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("default")
def test_ms_ssim_is_that_of_torchmetrics_but_for_the_edges_of_the_last_scale() -> None:
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure as of_scales,
    )
    from torchmetrics.functional.image import structural_similarity_index_measure

    torch.manual_seed(0)
    first = (
        torch.nn.functional.interpolate(
            torch.rand(3, 3, 12, 12), (181, 176), mode="bilinear"
        ).double()
        * 2
        - 1
    )
    second = (first + 0.2 * torch.randn_like(first)).clamp(-1, 1)
    pair = [(images + 1) / 2 for images in (first, second)]
    theirs = of_scales(*pair, data_range=1.0, reduction="none")
    last = [torch.nn.functional.avg_pool2d(images, 16) for images in pair]
    whole, places = structural_similarity_index_measure(
        *last, data_range=1.0, reduction="none", return_full_image=True
    )
    fits = places[..., 5:-5, 5:-5].flatten(1).mean(1)
    expected = theirs * (fits / whole) ** similarity.SCALES[-1]
    torch.testing.assert_close(similarity.ms_ssim(first, second), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(similarity.ms_ssim(first, first), torch.ones(3).double())
    assert similarity.ms_ssim(first, -first).tolist() == [0.0] * 3  # negative structure


def test_equal_images_have_a_similarity_of_one_and_a_finite_psnr(
    pairs: tuple[torch.Tensor, torch.Tensor],
) -> None:
    first, _ = pairs
    torch.testing.assert_close(similarity.ssim(first, first), torch.ones(5).double())
    assert similarity.psnr(similarity.mse(first, first)).tolist() == [100.0] * 5


def photographs(count: int, size: int) -> torch.Tensor:
    """Colour images with a falling spectrum, as photographs have: noise at every scale, the finer
    the weaker.
    """
    noise = torch.Generator().manual_seed(1)
    found = torch.zeros(count, 3, size, size)
    for scale in range(1, 6):
        coarse = torch.randn(count, 3, 2**scale, 2**scale, generator=noise) / 2**scale
        found += torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    return found.clamp(-1, 1)


def exact(fitted: torch.Tensor, measured: torch.Tensor, components: int) -> float:
    rows, others = ((images.flatten(1).double() + 1) / 2 for images in (fitted, measured))
    _, _, directions = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    away = others - rows.mean(0)
    return float(
        (away - away @ directions[:components].T @ directions[:components]).square().mean()
    )


@pytest.mark.parametrize("components", [1, 3, 16])
def test_pca_of_few_pixels_is_exact(components: int) -> None:
    torch.manual_seed(1)
    fitted, measured = (torch.rand(count, 1, 4, 4) * 2 - 1 for count in (40, 13))
    reached, count = pca.errors(
        lambda: torch.split(fitted, 7), lambda: torch.split(measured, 5), [components]
    )
    assert count == 40
    # single precision: with as many components as pixels nothing is left but rounding
    assert reached[components] == pytest.approx(exact(fitted, measured, components), abs=1e-7)


def test_pca_of_many_pixels_is_close_to_exact_pca() -> None:
    images = photographs(400, 48)  # 6,912 pixels: their covariance would take 382 MB
    fitted, measured = images[:300], images[300:]
    reached, _ = pca.errors(
        lambda: torch.split(fitted, 64), lambda: torch.split(measured, 64), [4, 32, 300]
    )
    assert set(reached) == {4, 32}  # 300 images have at most 299 components
    for components, error in reached.items():
        assert error == pytest.approx(exact(fitted, measured, components), rel=5e-3)
