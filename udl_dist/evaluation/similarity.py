"""The similarity of pairs of images: squared error, PSNR, SSIM and MS-SSIM."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

WINDOW, SIGMA = 11, 1.5  # Wang et al. 2004, section III-B
K1, K2 = 0.01, 0.03  # constants of the same article
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # exponents (Wang et al. 2003, section 3.2)
LEAST_SIDE = WINDOW * 2 ** (len(SCALES) - 1)  # has a whole window after halving at each scale
LEAST_ERROR = 1e-10  # equal images have a PSNR of 100 dB instead of infinity


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
