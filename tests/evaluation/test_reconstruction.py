"""Similarity of images against torchmetrics, PCA against a decomposition of the images themselves,
sets of reconstructions against the same images.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from udl_dist.evaluation import pca, similarity
from udl_dist.evaluation.extractor import OWN_EXTRACTORS
from udl_dist.evaluation.metric_group import HELD_OUT, MetricBatch, PartialSums, Subject
from udl_dist.evaluation.reconstruction import (
    FRECHET,
    KERNEL,
    ReconstructionDistance,
    paired_kernel,
)
from udl_dist.evaluation.settings import MetricSettings
from udl_dist.evaluation.similarity import RealSet
from udl_dist.methods.method import Batch, Method


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


class Shrinking(Method):
    """Keeps an image as its means over squares of `settings` pixels; 1 keeps it as it is."""

    def encode(self, images: Tensor) -> Tensor:
        return functional.avg_pool2d(images, self.settings)

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        return functional.interpolate(latents, scale_factor=float(self.settings))


def measured(side: int, extractor: str = "detail", **asked: Any) -> dict[str, Any]:
    """The metrics of 64 images of 16 pixels, collected in two parts."""
    images = torch.rand(64, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    settings = MetricSettings(**asked)
    subject = Subject(
        Shrinking(side, (1, 16, 16)),
        (1, 16, 16),
        256,
        settings,
        OWN_EXTRACTORS[extractor],
        None,
        "nothing",
    )
    group = ReconstructionDistance(subject)
    parts = [
        group.collect(HELD_OUT, MetricBatch(Batch(part, keys, keys, 0), keys, 0))
        for part in torch.split(images, 40)
        for keys in [torch.zeros(len(part), dtype=torch.int64)]
    ]
    return group.metrics(PartialSums.joined(parts), None, {})


def test_copies_have_a_distance_of_zero_and_blur_has_more() -> None:
    same, blurred, more = (measured(side) for side in (1, 2, 4))
    for name in (FRECHET, KERNEL):
        assert same[name].value == pytest.approx(0, abs=1e-6)
        assert 0.1 < blurred[name].value < more[name].value
    assert blurred[FRECHET].floor == {"images and themselves": 0.0}
    protocol = blurred[KERNEL].protocol
    assert protocol["extractor"] == "multi-scale descriptor 1"
    assert protocol["compared"] == "reconstructions with the same images"
    assert protocol["pairs_of"] == 64


def test_pairs_are_some_or_none_and_pixels_have_no_kernel_distance() -> None:
    some, none, pixels = measured(2, pairs=20), measured(2, pairs=0), measured(2, "pixels")
    assert some[KERNEL].protocol["pairs_of"] == 20
    assert measured(1, pairs=20)[KERNEL].value == pytest.approx(0, abs=1e-9)
    assert set(none) == set(pixels) == {FRECHET}
    assert "blur" in pixels[FRECHET].protocol["cannot_see"]
    # Means over 2×2 pixels keep those over 8×8 fields of two pixels.
    assert pixels[FRECHET].value == pytest.approx(0, abs=1e-6)


def test_the_kernel_distance_of_pairs_is_the_sum_over_different_pairs() -> None:
    real = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fake = real.roll(1, 1) + 0.3

    def kernel(first: Tensor, second: Tensor) -> float:
        return (float(first @ second) / 4 + 1) ** 3

    every = [
        kernel(real[i], real[j])
        + kernel(fake[i], fake[j])
        - kernel(real[i], fake[j])
        - kernel(real[j], fake[i])
        for i in range(9)
        for j in range(9)
        if i != j
    ]
    assert paired_kernel(real, fake) == pytest.approx(sum(every) / len(every))
    # The estimate for independent sets is below 0 for copies.
    assert RealSet.of(real, real).kernel(real) < -0.1
