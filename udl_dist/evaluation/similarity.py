"""How similar two images are: squared error, PSNR, SSIM and MS-SSIM of each pair."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

WINDOW, SIGMA = 11, 1.5  # Wang et al. 2004, section III-B
K1, K2 = 0.01, 0.03
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # exponents (Wang et al. 2003, section 3.2)
LEAST_SIDE = WINDOW << (
    len(SCALES) - 1
)  # that still has a whole window after halving at each scale
LEAST_ERROR = 1e-10  # of images that are equal: their PSNR is 100 dB instead of infinite


def mse(images: Tensor, others: Tensor) -> Tensor:  # [B, C, H, W] twice, in [-1, 1] -> [B] float64
    """The mean squared error of pixels in [0, 1]."""
    return (images.double() - others.double()).div(2).square().flatten(1).mean(1)


def psnr(errors: Tensor) -> Tensor:  # [B] -> [B]
    """The ratio of the range of pixels to their error, in dB."""
    return -10 * errors.clamp(min=LEAST_ERROR).log10()


def ssim(images: Tensor, others: Tensor) -> Tensor:  # [B, C, H, W] twice, in [-1, 1] -> [B] float64
    """Structural similarity (Wang et al. 2004, eq. 13), the mean over all places where the whole
    window fits.
    """
    return _terms(images, others)[0]


def ms_ssim(
    images: Tensor, others: Tensor
) -> Tensor:  # [B, C, H, W] twice, in [-1, 1] -> [B] float64
    """SSIM over five scales (Wang et al. 2003, eq. 7): contrast and structure at each, luminance at
    the last.

    Negative terms count as 0.
    """
    images, others = images.double(), others.double()
    similarity = torch.ones(len(images), dtype=torch.float64, device=images.device)
    for exponent in SCALES[:-1]:
        similarity *= _terms(images, others)[1].clamp(min=0) ** exponent
        images, others = (functional.avg_pool2d(side, 2) for side in (images, others))
    return similarity * ssim(images, others).clamp(min=0) ** SCALES[-1]


def _terms(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The whole of SSIM, and its contrast and structure alone. -> [B], [B]"""
    first, second = (images.double() + 1) / 2, (others.double() + 1) / 2
    mean_1, mean_2, square_1, square_2, product = _blurred(
        torch.stack([first, second, first.square(), second.square(), first * second])
    )
    variances = square_1 - mean_1.square() + square_2 - mean_2.square()
    covariance = product - mean_1 * mean_2
    structure = (2 * covariance + K2**2) / (variances + K2**2)
    luminance = (2 * mean_1 * mean_2 + K1**2) / (mean_1.square() + mean_2.square() + K1**2)
    return (luminance * structure).flatten(1).mean(1), structure.flatten(1).mean(1)


def _blurred(stack: Tensor) -> Tensor:  # [..., H, W] -> [..., h, w]
    """Windows as products with a matrix of bands: up to 512 pixels a side 2 to 10 times as fast as
    convolutions.
    """
    height, width = (_bands(side, stack.device) for side in stack.shape[-2:])
    return height.T @ (stack @ width)


def _bands(side: int, device: torch.device) -> Tensor:  # -> [side, side - WINDOW + 1]
    """In each column the window's weights, one row lower than in the column before."""
    places = torch.arange(WINDOW, dtype=torch.float64, device=device) - WINDOW // 2
    weights = (-(places**2) / (2 * SIGMA**2)).exp()
    weights = weights / weights.sum()
    left = side - WINDOW
    return torch.stack(
        [functional.pad(weights, (start, left - start)) for start in range(left + 1)], 1
    )
