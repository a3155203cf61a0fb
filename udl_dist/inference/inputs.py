"""Images as users hold them, to what a method takes: [N, C, H, W] floats in [-1, 1].

    uint8 (NumPy or tensor)   0 to 255; [N, C, H, W], [N, H, W, C], [C, H, W], [H, W, C];
                              gray also [N, H, W], [H, W]
    float (NumPy or tensor)   already in [-1, 1], of the same shapes
    PIL images, or a list     made gray or RGB and of the model's size, as the run's `data.fit`

Anything else is refused.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from udl_dist.core.config_schema import nearest
from udl_dist.data.images.fitting import Pixels, fit_pixels
from udl_dist.data.images.headers import Fit, Shape
from udl_dist.errors import DataError, UsageError
from udl_dist.methods import pixels

SLACK = 1e-3  # beyond -1 and 1: the rounding of a tanh
Labels = str | int | Sequence[str | int] | None  # of images: one class for all, or of each
EXPECTED = "give uint8 from 0 to 255, floats in [-1, 1], or PIL images"


def as_images(given: Any, shape: Shape, fit: Fit = "crop") -> Tensor:  # -> [N, C, H, W] float32
    """Images as a method takes them, in [-1, 1].

    Raises UsageError for another shape or type, DataError for values that are not finite. Warns
    once of images without a pixel below 0: they are most likely floats in [0, 1].
    """
    images = _converted(given, shape, fit)
    if images.numel() and 0 <= float(images.min()) < float(images.max()):
        # Only a warning: a batch of bright images in [-1, 1] is possible.
        warnings.warn(
            "no pixel of these images is below 0, and floats are taken to be in [-1, 1]: if yours "
            "are in [0, 1], give 2 * images - 1, or uint8",
            stacklevel=2,
        )
    return images


def as_latents(given: Any, shape: tuple[int, ...]) -> Tensor:  # -> [N, *shape] float32
    """Latents as a method takes them; raise UsageError for another shape, DataError for a NaN.

    Rows of as many numbers are taken too, and a single latent without the first axis.
    """
    latents = torch.as_tensor(given).float()
    rows = (math.prod(shape),)
    # One latent without its batch dimension.
    if latents.shape in (shape, rows):
        latents = latents[None]
    if latents.shape[1:] not in (shape, rows):
        wanted = ", ".join(map(str, ("N", *shape)))
        raise UsageError(f"latents have shape {tuple(latents.shape)}, this model takes [{wanted}]")
    latents = latents.reshape(-1, *shape)
    if not bool(latents.isfinite().all()):
        raise DataError("latents hold numbers that are not finite: leave them out")
    return latents


def as_labels(given: str | int | Sequence[str | int], count: int, classes: Sequence[str]) -> Tensor:
    """Classes by name or number as their numbers, [count] int64; raise UsageError for others."""
    listed = [given] * count if isinstance(given, str | int) else list(given)
    if len(listed) != count:
        raise UsageError(f"{len(listed)} labels for {count} images: give one for each, or one")
    for label in listed:
        if isinstance(label, str) and label not in classes:
            raise UsageError(f"there is no class {label!r}: {nearest(label, list(classes))}")
        if not isinstance(label, str) and not 0 <= label < len(classes):
            raise UsageError(
                f"there is no class {label}: their numbers are 0 to {len(classes) - 1}"
            )
    numbers = [classes.index(label) if isinstance(label, str) else label for label in listed]
    return torch.tensor(numbers, dtype=torch.int64)


def scaled(raster: Pixels) -> Tensor:  # [N, C, H, W] uint8 -> the same, float32 in [-1, 1]
    """Pixels as training scales them."""
    return pixels.floats(torch.from_numpy(raster))


def _converted(given: Any, shape: Shape, fit: Fit) -> Tensor:
    if isinstance(given, list | tuple):
        # Each by itself: a list may mix kinds and sizes.
        images = [_converted(one, shape, fit) for one in given]
        return torch.cat(images) if images else torch.empty(0, *shape)
    # By its methods, so that Pillow is imported only for those who use it.
    if hasattr(given, "convert") and hasattr(given, "getbands"):  # a PIL image
        from udl_dist.data.images.decoders import upright

        raster = np.asarray(upright(given))
        raster = raster[None] if raster.ndim == 2 else raster.transpose(2, 0, 1)
        # A copy: what Pillow gives is read-only, and torch warns of such memory.
        return scaled(fit_pixels(raster, shape, fit).copy())[None]
    if isinstance(given, np.ndarray):
        # Other whole numbers have no agreed range: int64 may hold 0 to 255, or 0 to 1.
        if given.dtype != np.uint8 and given.dtype.kind != "f":
            raise UsageError(f"images are of type {given.dtype}: {EXPECTED}")
        # torch cannot wrap negative strides, as of a mirrored array.
        given = torch.from_numpy(np.ascontiguousarray(given))
    if not isinstance(given, Tensor):
        raise UsageError(f"a {type(given).__name__} is not an image: {EXPECTED}")
    return _in_range(_shaped(given, shape))


def _shaped(images: Tensor, shape: Shape) -> Tensor:  # -> [N, C, H, W]
    channels, height, width = shape
    there = tuple(images.shape)
    # Channels first wins where both would fit, as for 3 × 3 pixels in colour.
    if there[-3:] == shape and images.dim() in (3, 4):
        return images.reshape(-1, *shape)
    if there[-3:] == (height, width, channels) and images.dim() in (3, 4):
        return images.reshape(-1, height, width, channels).permute(0, 3, 1, 2)
    if channels == 1 and there[-2:] == (height, width) and images.dim() in (2, 3):
        return images.reshape(-1, *shape)
    raise UsageError(
        f"images have shape {there}, this model takes {channels} × {height} × {width} (channels, "
        "height, width): resize them, or give PIL images, which are fitted"
    )


def _in_range(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return pixels.floats(images)
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise UsageError(f"images are of type {kind}: {EXPECTED}")
    floats = images.float()
    if not bool(floats.isfinite().all()):
        raise DataError("images hold numbers that are not finite: leave them out")
    # Floats from 0 to 255 give numbers without an error, and wrong ones.
    if floats.numel() and float(floats.abs().max()) > 1 + SLACK:
        low, high = float(floats.min()), float(floats.max())
        raise UsageError(f"images reach from {low:.4g} to {high:.4g}: {EXPECTED}")
    return floats


def as_device(name: str) -> torch.device:
    """The device cpu, cuda or auto; raise UsageError for one that is not here."""
    try:
        if name == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        device = torch.device(name)
        # A name may be valid and the device absent; torch without CUDA raises AssertionError.
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise UsageError(
            f"there is no device {name!r} here ({why}): give cpu, cuda or auto"
        ) from None
    return device
