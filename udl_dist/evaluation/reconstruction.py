"""The quality of reconstructions, one by one (MSE, PSNR, SSIM …) and as a set of images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from udl_dist.core import rng
from udl_dist.evaluation import pca, similarity
from udl_dist.evaluation.distribution import REAL
from udl_dist.evaluation.io import ClassMetric, Metric
from udl_dist.evaluation.metric_group import (
    HELD_OUT,
    TRAIN,
    MetricBatch,
    MetricGroup,
    PartialSums,
    Subject,
    summed,
)
from udl_dist.evaluation.similarity import gaussian, mean_kernel
from udl_dist.methods.metrics.frechet import between

REBUILT = "rebuilt"  # rows of features of the reconstructions
FRECHET, KERNEL = "reconstruction_frechet", "reconstruction_kernel_distance"
PCA = "pca"  # its error, in the reference
# Metrics of windows: their least side, and the function of two batches of images.
WINDOWED = {
    "ssim": (similarity.WINDOW, similarity.ssim),
    "ms_ssim": (similarity.LEAST_SIDE, similarity.ms_ssim),
}


class Reconstruction(MetricGroup):
    """Errors are of pixels in [0, 1]; PSNR and both SSIM are means over images.

    The denoising gain is of mean errors, in dB.
    """

    name: ClassVar[str] = "reconstruction"
    higher_is_better: ClassVar = ("psnr", "ssim", "ms_ssim", "denoising_gain")

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        side = min(subject.shape[1:])
        self._windowed = {name: like for name, (least, like) in WINDOWED.items() if side >= least}

    @classmethod
    def lacking(cls, subject: Subject) -> str:
        return "" if subject.method.can("reconstruct") else "it cannot reconstruct"

    @classmethod
    def without(cls, subject: Subject) -> dict[str, str]:
        _, height, width = subject.shape
        return {
            name: f"its windows need {least}×{least} pixels or more, these images have "
            f"{height}×{width}"
            for name, (least, _) in WINDOWED.items()
            if min(height, width) < least
        }

    def collect(self, split: str, seen: MetricBatch) -> PartialSums:
        images, method = seen.batch.images, self.subject.method
        rebuilt = method.reconstruct(images, seen.batch.labels)
        errors = similarity.mse(rebuilt, images)
        values = {"mse": errors, "psnr": similarity.psnr(errors)}
        for name, like in self._windowed.items():
            # The constants of SSIM assume that pixels lie in [0, 1].
            values[name] = like(rebuilt.clamp(-1, 1), images)
        for level in self.subject.asked.noise:
            # A name of its own for each level: their noise is independent, and equal in every
            # evaluation.
            noise = rng.normal(seen.batch.keys, f"evaluate {level}", self.subject.shape)
            # 2 · level: the std is given for pixels in [0, 1], and these are in [-1, 1].
            noisy = (images + 2 * level * noise).clamp(-1, 1)
            values[f"noisy {level}"] = similarity.mse(noisy, images)
            clean = method.reconstruct(noisy, seen.batch.labels)
            values[f"denoised {level}"] = similarity.mse(clean, images)
        return summed(values, seen.labels)

    def refers_to(self) -> dict[str, object]:
        return {"latent_dim": self.subject.latent_dim}

    def reference(self, held_out: PartialSums, train: PartialSums | None) -> dict[str, Tensor]:
        """PCA's error, given enough training images; it needs several passes over them."""
        real, size = self.subject.real, self.subject.latent_dim
        reached, count = dict[int, float](), 0
        if TRAIN in real:
            reached, count = pca.errors(real[TRAIN], real[HELD_OUT], [size])
        found = {PCA: torch.tensor(reached[size], dtype=torch.float64)} if reached else {}
        return found | {"fitted_to": torch.tensor(count)}

    def metrics(
        self, held_out: PartialSums, train: PartialSums | None, reference: Mapping[str, Tensor]
    ) -> dict[str, Metric]:
        mse, count = float(held_out.mean("mse")), int(reference["fitted_to"])
        floor = dict[str, float]()
        fitted = (
            f"none: {count} training images are too few" if count else "none: no training images"
        )
        if PCA in reference:
            floor[f"PCA of {self.subject.latent_dim} numbers"] = float(reference[PCA])
            fitted = f"fitted to {count:,} training images"
        # The mean PSNR is not the PSNR of the mean error, so its floors are named as the latter.
        of_means = {
            f"of the mean error: {what}": _decibels(error)
            for what, error in {"this model": mse, **floor}.items()
        }
        protocol = {"pixels": "in [0, 1]", "pca": fitted}
        of_classes = {name: self._of_classes(held_out, name) for name in ("mse", "psnr")}
        found = {"mse": Metric(mse, None, floor, protocol, of_classes["mse"])}
        psnr = float(held_out.mean("psnr"))
        found["psnr"] = Metric(psnr, None, of_means, protocol, of_classes["psnr"])
        window = f"Gaussian {similarity.WINDOW}×{similarity.WINDOW}, where all of it fits"
        for name in self._windowed:
            value, same = float(held_out.mean(name)), {"an image and itself": 1.0}
            of_class = self._of_classes(held_out, name)
            found[name] = Metric(value, None, same, {"window": window}, of_class)
        for level in self.subject.asked.noise:
            before, after = (held_out.mean(f"{what} {level}") for what in ("noisy", "denoised"))
            gain = _decibels(float(after)) - _decibels(float(before))
            noise = {"noise": f"normal, deviation {level:g}, clipped"}
            found[f"denoising_gain_{level:g}"] = Metric(gain, None, {"the noisy image": 0.0}, noise)
        return found

    def _of_classes(self, held_out: PartialSums, name: str) -> dict[str, ClassMetric]:
        return self.by_class(
            {
                label: ClassMetric(float(one.mean(name)), one.images)
                for label, one in held_out.classes.items()
            }
        )


class ReconstructionDistance(MetricGroup):
    """Held-out images against their reconstructions, as two sets; both are 0 for equal images.

    What the field reports of image tokenizers as rFID; called Fréchet here, since FID is one
    network.
    """

    name: ClassVar[str] = "reconstruction_distance"
    least: ClassVar[int] = 50

    @classmethod
    def lacking(cls, subject: Subject) -> str:
        return "" if subject.method.can("reconstruct") else "it cannot reconstruct"

    @classmethod
    def without(cls, subject: Subject) -> dict[str, str]:
        why = subject.extractor.blindness
        return {KERNEL: why} if why else {}

    def collect(self, split: str, seen: MetricBatch) -> PartialSums:
        images, extractor = seen.batch.images, self.subject.extractor
        rebuilt = self.subject.method.reconstruct(images, seen.batch.labels).clamp(-1, 1)
        rows = {REAL: extractor.features(images), REBUILT: extractor.features(rebuilt)}
        on_cpu = {name: features.float().cpu() for name, features in rows.items()}
        return PartialSums(len(images), rows=on_cpu)

    def metrics(
        self, held_out: PartialSums, train: PartialSums | None, reference: Mapping[str, Tensor]
    ) -> dict[str, Metric]:
        real, rebuilt, extractor = (
            held_out.rows[REAL],
            held_out.rows[REBUILT],
            self.subject.extractor,
        )
        protocol = extractor.protocol() | {"compared": "reconstructions with the same images"}
        same = {"images and themselves": 0.0}
        distance = between(*gaussian(real), *gaussian(rebuilt))
        found = {FRECHET: Metric(distance, None, same, protocol)}
        # The same rows of both sets, as the estimate needs.
        pairs = [self.random_rows(rows, self.subject.asked.pairs) for rows in (real, rebuilt)]
        if extractor.sees_detail and len(pairs[0]) > 1:
            own = {**protocol, "pairs_of": len(pairs[0])}
            found[KERNEL] = Metric(paired_kernel(*pairs), None, same, own)
        return found


def paired_kernel(real: Tensor, rebuilt: Tensor) -> float:  # [N, F] twice
    """Unbiased squared MMD of N pairs (Gretton et al. 2012, eq. 4), kernel (xᵀy/F + 1)³."""
    # The estimate for independent sets counts each image with its own reconstruction as well: of
    # equal sets it would be below 0.
    within = mean_kernel(real, real) + mean_kernel(rebuilt, rebuilt)
    return within - 2 * mean_kernel(real, rebuilt)


def _decibels(error: float) -> float:
    return -10 * math.log10(max(error, similarity.LEAST_ERROR))
