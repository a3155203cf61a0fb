"""How well images come back: MSE, PSNR, SSIM, MS-SSIM, noise removed, beside PCA with as many
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from udl_dist.core import rng
from udl_dist.evaluation import pca, similarity
from udl_dist.evaluation.metric_group import (
    HELD_OUT,
    TRAIN,
    Family,
    Figure,
    Seen,
    Subject,
    Taken,
    summed,
)

PCA = "pca"  # its error, in the reference
# Figures of windows: the least side that they need, and what takes them of images in pairs.
WINDOWED = {
    "ssim": (similarity.WINDOW, similarity.ssim),
    "ms_ssim": (similarity.LEAST_SIDE, similarity.ms_ssim),
}


class Reconstruction(Family):
    """Errors are of pixels in [0, 1]; PSNR and both SSIM are means over images, the gain is of mean
    errors, in dB.
    """

    name: ClassVar[str] = "reconstruction"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._windowed = {
            name: like
            for name, (least, like) in WINDOWED.items()
            if min(subject.shape[1:]) >= least
        }

    @classmethod
    def lacking(cls, subject: Subject) -> str:
        return "" if subject.method.can("reconstruct") else "it cannot reconstruct"

    @classmethod
    def without(cls, subject: Subject) -> dict[str, str]:
        _, height, width = subject.shape
        return {
            name: (
                f"its windows need {least}×{least} pixels or more, these images have"
                f" {height}×{width}"
            )
            for name, (least, _) in WINDOWED.items()
            if min(height, width) < least
        }

    def take(self, which: str, seen: Seen) -> Taken:
        images = seen.batch.images
        rebuilt = self.subject.method.reconstruct(images)
        errors = similarity.mse(rebuilt, images)
        values = {"mse": errors, "psnr": similarity.psnr(errors)}
        for name, like in self._windowed.items():
            values[name] = like(rebuilt.clamp(-1, 1), images)
        for level in self.subject.asked.noise:
            noise = rng.normal(seen.batch.keys, f"evaluate {level}", self.subject.shape)
            noisy = (images + 2 * level * noise).clamp(-1, 1)
            values[f"noisy {level}"] = similarity.mse(noisy, images)
            values[f"mended {level}"] = similarity.mse(
                self.subject.method.reconstruct(noisy), images
            )
        return Taken(len(images), summed(values))

    def refers_to(self) -> dict[str, object]:
        return {"latent_dim": self.subject.latent_dim}

    def reference(self, held_out: Taken, train: Taken | None) -> dict[str, Tensor]:
        """PCA's error, where there are enough training images; it goes through the images by
        itself, several times.
        """
        real, size = self.subject.real, self.subject.latent_dim
        reached, count = (
            pca.errors(real[TRAIN], real[HELD_OUT], [size]) if TRAIN in real else ({}, 0)
        )
        found = {PCA: torch.tensor(reached[size], dtype=torch.float64)} if size in reached else {}
        return found | {"fitted_to": torch.tensor(count)}

    def figures(
        self, held_out: Taken, train: Taken | None, reference: Mapping[str, Tensor]
    ) -> dict[str, Figure]:
        least = (
            {f"PCA of {self.subject.latent_dim} numbers": float(reference[PCA])}
            if PCA in reference
            else {}
        )
        pixels = {"pixels": "in [0, 1]", "pca": self._fitted(reference)}
        # A mean of logarithms and the logarithm of a mean are no rivals, so each has its like
        # beside it.
        decibels = {
            f"of the mean error: {what}": _decibels(value)
            for what, value in {"this model": float(held_out.mean("mse")), **least}.items()
        }
        found = {
            "mse": Figure(float(held_out.mean("mse")), beside=least, protocol=pixels),
            "psnr": Figure(float(held_out.mean("psnr")), beside=decibels, protocol=pixels),
        }
        for name in self._windowed:
            window = {
                "window": f"Gaussian {similarity.WINDOW}×{similarity.WINDOW}, where all of it fits"
            }
            found[name] = Figure(
                float(held_out.mean(name)), beside={"an image and itself": 1.0}, protocol=window
            )
        for level in self.subject.asked.noise:
            before, after = (
                float(held_out.mean(f"noisy {level}")),
                float(held_out.mean(f"mended {level}")),
            )
            gain = _decibels(after) - _decibels(before)
            noise = {"noise": f"normal, deviation {level:g}, clipped"}
            found[f"denoising_gain_{level:g}"] = Figure(
                gain, beside={"the noisy image": 0.0}, protocol=noise
            )
        return found

    def _fitted(self, reference: Mapping[str, Tensor]) -> str:
        """What PCA was fitted to, or why there is none."""
        count = int(reference["fitted_to"])
        if PCA in reference:
            return f"fitted to {count:,} training images"
        return f"none: {count} training images are too few" if count else "none: no training images"


def _decibels(error: float) -> float:
    return -10 * math.log10(max(error, similarity.LEAST_ERROR))
