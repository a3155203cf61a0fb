"""The similarity of images: of pairs by MSE, PSNR and SSIM, of a set and a real one by features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from udl_dist.methods.metrics.frechet import between

WINDOW, SIGMA = 11, 1.5  # Wang et al. 2004, section III-B
K1, K2 = 0.01, 0.03  # constants of the same article
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # exponents (Wang et al. 2003, section 3.2)
LEAST_SIDE = WINDOW * 2 ** (len(SCALES) - 1)  # has a whole window after halving at each scale
LEAST_ERROR = 1e-10  # equal images have a PSNR of 100 dB instead of infinity
NEIGHBOURS = 5  # Naeem et al. 2020, section 4
ROWS = 200  # rows of a distance matrix at a time; with 1000 most time went into allocation


def mse(images: Tensor, others: Tensor) -> Tensor:  # [B, C, H, W] twice, in [-1, 1] -> [B] float64
    """The mean squared error of pixels in [0, 1]."""
    return (images.double() - others.double()).div(2).square().flatten(1).mean(1)


def psnr(errors: Tensor) -> Tensor:  # [B] -> [B]
    """The ratio of the range of pixels to their error, in dB."""
    return -10 * errors.clamp(min=LEAST_ERROR).log10()


def ssim(images: Tensor, others: Tensor) -> Tensor:  # [B, C, H, W] twice, in [-1, 1] -> [B] float64
    """Structural similarity (Wang et al. 2004, eq. 13), a mean over all whole windows."""
    return _terms(images, others)[0]


# [B, C, H, W] twice, in [-1, 1] -> [B] float64
def ms_ssim(images: Tensor, others: Tensor) -> Tensor:
    """Contrast and structure over five scales, luminance at the last (Wang et al. 2003, eq. 7)."""
    # Negative terms count as 0: they have no fractional power.
    images, others = images.double(), others.double()
    similarity = torch.ones(len(images), dtype=torch.float64, device=images.device)
    for exponent in SCALES[:-1]:
        similarity *= _terms(images, others)[1].clamp(min=0) ** exponent
        images, others = (functional.avg_pool2d(side, 2) for side in (images, others))
    return similarity * ssim(images, others).clamp(min=0) ** SCALES[-1]


def _terms(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM, and the product of its contrast and structure alone. -> [B], [B]"""
    first, second = (images.double() + 1) / 2, (others.double() + 1) / 2
    mean_1, mean_2, square_1, square_2, product = _blurred(
        torch.stack([first, second, first.square(), second.square(), first * second])
    )
    # Var x = E x² - (E x)² within a window; in float64, since the difference cancels digits.
    variances = square_1 - mean_1.square() + square_2 - mean_2.square()
    covariance = product - mean_1 * mean_2
    structure = (2 * covariance + K2**2) / (variances + K2**2)
    luminance = (2 * mean_1 * mean_2 + K1**2) / (mean_1.square() + mean_2.square() + K1**2)
    return (luminance * structure).flatten(1).mean(1), structure.flatten(1).mean(1)


def _blurred(stack: Tensor) -> Tensor:  # [..., H, W] -> [..., h, w]
    """Gaussian windows as products with band matrices."""
    # Up to 512 pixels a side 2 to 10 times as fast as convolutions.
    height, width = (_bands(side, stack.device) for side in stack.shape[-2:])
    return height.T @ (stack @ width)


def _bands(side: int, device: torch.device) -> Tensor:  # -> [side, side - WINDOW + 1]
    """In each column the weights of the window, one row lower than in the previous column."""
    places = torch.arange(WINDOW, dtype=torch.float64, device=device) - WINDOW // 2
    weights = (-(places**2) / (2 * SIGMA**2)).exp()
    weights = weights / weights.sum()
    left = side - WINDOW
    return torch.stack(
        [functional.pad(weights, (start, left - start)) for start in range(left + 1)], 1
    )


@dataclass(frozen=True)
class RealSet:
    """A set of real rows, with the parts of distances that it alone decides."""

    mean: Tensor  # [F] float64
    covariance: Tensor  # [F, F] float64
    near: Tensor  # [P, F]: the rows whose pairs are used
    radii: Tensor  # [P] float64: the distance of the k-th nearest other row
    within: Tensor  # [] float64: the mean of the kernel over pairs

    @classmethod
    def of(cls, rows: Tensor, near: Tensor) -> RealSet:  # [N, F], [P, F]
        """With no more `near` rows than neighbours, no pairs are used."""
        if len(near) <= NEIGHBOURS:
            # Empty `near` is how of_pairs knows it; tensors, because a reference is a safetensors
            # file.
            return cls(*gaussian(rows), near[:0], torch.empty(0), torch.zeros(()))
        within = torch.tensor(mean_kernel(near, near), dtype=torch.float64)
        return cls(*gaussian(rows), near, _radii(near.double()), within)

    def frechet(self, fake: Tensor) -> float:  # [N, F]
        """The Fréchet distance of the Gaussians of both sets."""
        return between(self.mean, self.covariance, *gaussian(fake))

    def of_pairs(self, fake: Tensor) -> dict[str, float]:  # [P, F]
        """Kernel distance and metrics of neighbours; empty for too few rows."""
        if min(len(self.near), len(fake)) <= NEIGHBOURS:
            return {}
        return {"kernel_distance": self.kernel(fake), **self.neighbours(fake)}

    def kernel(self, fake: Tensor) -> float:  # [P, F]
        """Unbiased squared MMD under the kernel (xᵀy/F + 1)³ (Bińkowski et al. 2018, section 3)."""
        # E k(x, x') + E k(y, y') - 2 E k(x, y). The estimate has no bias, so it can be below 0.
        across = _kernel_sum(self.near.double(), fake.double()) / (len(self.near) * len(fake))
        return float(self.within) + mean_kernel(fake, fake) - 2 * across

    def neighbours(self, fake: Tensor) -> dict[str, float]:  # [P, F]
        """Precision, recall (Kynkäänniemi et al. 2019), density, coverage (Naeem et al. 2020)."""
        real, fake = self.near.double(), fake.double()
        precise = dense = 0
        recalled = torch.zeros(len(real), dtype=torch.uint8, device=real.device)
        nearest = torch.full((len(real),), torch.inf, dtype=torch.float64, device=real.device)
        for distances, radii in zip(
            _distances(fake, real), torch.split(_radii(fake), ROWS), strict=True
        ):
            inside = distances <= self.radii
            # As bytes: any() is many times slower.
            # Precision and density: generated rows within the radius of real ones. Recall: real
            # rows within the radius of a generated one. Coverage: real rows whose radius holds
            # one.
            precise += int(inside.view(torch.uint8).amax(1).sum())
            dense += int(inside.count_nonzero())
            recalled |= (distances <= radii[:, None]).view(torch.uint8).amax(0)
            nearest = torch.minimum(nearest, distances.amin(0))
        return {
            "precision": precise / len(fake),
            "recall": int(recalled.sum()) / len(real),
            "density": dense / (NEIGHBOURS * len(fake)),
            "coverage": int((nearest <= self.radii).sum()) / len(real),
        }


def gaussian(rows: Tensor) -> tuple[Tensor, Tensor]:
    # view: with one feature torch.cov gives a scalar.
    return rows.double().mean(0), torch.cov(rows.double().T).view(rows.shape[1], -1)


def mean_kernel(first: Tensor, second: Tensor) -> float:  # [N, F] twice
    """The mean of (xᵀy/F + 1)³ over all pairs of rows but the N of equal numbers.

    Unbiased estimates leave those out: a row and itself, or an image and its reconstruction.
    """
    first, second, count = first.double(), second.double(), len(first)
    same = ((first * second).mean(1) + 1).pow(3).sum()
    return (_kernel_sum(first, second) - float(same)) / (count * (count - 1))


def _kernel_sum(first: Tensor, second: Tensor) -> float:
    """(xᵀy/F + 1)³ summed over all pairs of float64 rows, some at a time."""
    one, total = torch.ones((), dtype=first.dtype, device=first.device), 0.0
    for part in torch.split(first, ROWS):
        # Product, scale and 1 in one pass, the power in place: memory traffic sets the time here.
        total += float(torch.addmm(one, part, second.T, alpha=1 / first.shape[1]).pow_(3).sum())
    return total


def _radii(rows: Tensor) -> Tensor:  # [N, F] -> [N]
    """The distance of the k-th nearest other row."""
    nearest = [
        # One more, since the nearest row of each is itself.
        distances.topk(NEIGHBOURS + 1, largest=False).values
        for distances in _distances(rows, rows)
    ]
    return torch.cat(nearest)[:, -1]


def _distances(first: Tensor, second: Tensor) -> Iterator[Tensor]:
    for part in torch.split(first, ROWS):
        yield torch.cdist(part, second)
