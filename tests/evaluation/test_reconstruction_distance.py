"""Reconstructions against the same images: 0 for copies, more for more blur, and pairs by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from udl_dist.evaluation.extractor import OWN_EXTRACTORS
from udl_dist.evaluation.metric_group import HELD_OUT, MetricBatch, PartialSums, Subject
from udl_dist.evaluation.real_set import RealSet
from udl_dist.evaluation.reconstruction import ReconstructionDistance, paired_kernel
from udl_dist.evaluation.settings import MetricSettings
from udl_dist.methods.method import Batch, Method

FRECHET, KERNEL = "reconstruction_frechet", "reconstruction_kernel_distance"


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
