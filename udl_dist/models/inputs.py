"""Whatever people hold images in, as what a method takes: [N, C, H, W] floats in [-1, 1]; anything
else is refused.

    uint8 (NumPy or tensor)   0 to 255; [N, C, H, W], [N, H, W, C], [C, H, W], [H, W, C], and of
    gray [N, H, W], [H, W]
    float (NumPy or tensor)   already in [-1, 1], of the same shapes
    PIL images, or a list     made gray or RGB and of the model's size, as the run's `data.fit` does
    it

A list may mix nothing else. Knows no model: its shape is told.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from udl_dist.data.images.fitting import Pixels, fit_pixels
from udl_dist.data.images.headers import Fit, Shape
from udl_dist.errors import DataError, UsageError
from udl_dist.methods import pixels

if TYPE_CHECKING:
    from PIL import Image

SLACK = 1e-3  # beyond -1 and 1: what rounding makes of a tanh
EXPECTED = "give uint8 from 0 to 255, floats in [-1, 1], or PIL images"


# -> [N, C, H, W] float32 in [-1, 1]
def as_images(given: Any, shape: Shape, fit: Fit = "crop") -> Tensor:
    """Images as a method takes them; raise UsageError for another shape, DataError for values that
    are none.

    Warns once of images without a pixel below 0: they are most likely floats in [0, 1].
    """
    images = _converted(given, shape, fit)
    if images.numel() and 0 <= float(images.min()) < float(images.max()):
        warnings.warn(
            "no pixel of these images is below 0, and floats are taken to be in [-1, 1]: if yours"
            " are in [0, 1], give 2 * images - 1, or uint8",
            stacklevel=2,
        )
    return images


def _converted(given: Any, shape: Shape, fit: Fit) -> Tensor:
    if isinstance(given, list | tuple):
        return _listed(given, shape, fit)
    if isinstance(given, np.ndarray):
        given = _from_numpy(given)
    if isinstance(given, Tensor):
        return _scaled(_shaped(given, shape))
    if hasattr(given, "convert") and hasattr(given, "getbands"):
        return _scaled(torch.from_numpy(_fitted(given, shape, fit))[None])
    raise UsageError(f"images are no {type(given).__name__}: {EXPECTED}")


def as_latents(given: Any, latent_dim: int) -> Tensor:  # -> [N, Z] float32
    """Latents as a method takes them; raise UsageError for another width, DataError for what is not
    finite.
    """
    latents = torch.as_tensor(given).float()
    if latents.dim() == 1:
        latents = latents[None]
    if latents.dim() != 2 or latents.shape[1] != latent_dim:
        raise UsageError(
            f"latents have shape {tuple(latents.shape)}, this model takes [N, {latent_dim}]"
        )
    if not bool(latents.isfinite().all()):
        raise DataError("latents hold numbers that are not finite: leave them out")
    return latents


def scaled(raster: Pixels) -> Tensor:  # [N, C, H, W] uint8 -> the same, float32 in [-1, 1]
    """Pixels as training scales them."""
    return pixels.floats(torch.from_numpy(raster))


def _listed(given: Sequence[Any], shape: Shape, fit: Fit) -> Tensor:
    if not given:
        return torch.empty(0, *shape)
    return torch.cat([_converted(one, shape, fit) for one in given])


def _from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise UsageError(f"images are of type {array.dtype}: {EXPECTED}")
    return torch.from_numpy(np.ascontiguousarray(array))


def _shaped(images: Tensor, shape: Shape) -> Tensor:  # -> [N, C, H, W]
    channels, height, width = shape
    there = tuple(images.shape)
    if there[-3:] == shape and images.dim() in (3, 4):
        return images.reshape(-1, *shape)
    if there[-3:] == (height, width, channels) and images.dim() in (3, 4):
        return images.reshape(-1, height, width, channels).permute(0, 3, 1, 2)
    if channels == 1 and there[-2:] == (height, width) and images.dim() in (2, 3):
        return images.reshape(-1, *shape)
    raise UsageError(
        f"images have shape {there}, this model takes {channels} × {height} × {width} (channels,"
        " height, width): resize them, or give PIL images, which are fitted"
    )


def _scaled(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return pixels.floats(images)
    if not images.is_floating_point():
        raise UsageError(
            f"images are of type {str(images.dtype).removeprefix('torch.')}: {EXPECTED}"
        )
    floats = images.float()
    if floats.numel() and not bool(floats.isfinite().all()):
        raise DataError("images hold numbers that are not finite: leave them out")
    if floats.numel() and float(floats.abs().max()) > 1 + SLACK:
        raise UsageError(
            f"images reach from {float(floats.min()):.4g} to {float(floats.max()):.4g}: {EXPECTED}"
        )
    return floats


def _fitted(image: Image.Image, shape: Shape, fit: Fit) -> Pixels:  # -> [C, H, W]
    from udl_dist.data.images.decoders import upright

    raster = np.asarray(upright(image))
    return fit_pixels(
        raster[None] if raster.ndim == 2 else raster.transpose(2, 0, 1), shape, fit
    ).copy()
