"""A fixed descriptor of an image at every scale, about a hundred numbers, to compare sets by.

No network is learned: the filters are small integers, so the descriptor is the same on every rank
and machine. An image is described by

    layout    means of 4×4 fields of each channel
    texture   at each scale (halved until a side is below 16) the log energy behind eight of the
              3×3 filters of Laws (1980), all but the mean, in brightness; of their sum in each
              quarter of the image; and in colour
    edges     at each scale how the energy is spread: few strong edges, or a little everywhere
    grids     the log energy that repeats with a period of 2, 4 or 8 pixels at fixed positions:
              real images have almost none, upsampling networks leave it as a grid of dots

Energies are logarithms because blur and noise multiply them: each then costs the same distance in
dark and in bright images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NAME = "multi-scale descriptor 1"  # the number changes whenever a value of the descriptor does
FIELDS = 4
# Weight of a mean, whose std over images is 0.1 to 0.5; that of the logarithms is about 0.5.
LAYOUT = 3.0
LEAST_SIDE = 8  # pixels of the coarsest scale
PERIODS = (2, 4, 8)
LEAST_ENERGY = 1e-4  # about the square of one level of 256: what lies below cannot be seen
LEAST_GRID = 1e-6
# Logarithms are of multiples of these, so that they lie about 0, as a polynomial kernel needs.
TYPICAL_ENERGY, TYPICAL_GRID = 1e-2, 1e-5
FILTERS = ((1, 2, 1), (-1, 0, 1), (-1, 2, -1))  # level, edge, spot


# [B, C, H, W] in [-1, 1] -> [B, F] float32, or float64 for float64 images
def describe(images: Tensor) -> Tensor:
    """The descriptor of each image; F depends on the shape alone."""
    import torch
    from torch.nn import functional

    # In bfloat16 (autocast) the logarithms of small energies would be noise.
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    found = [LAYOUT * functional.adaptive_avg_pool2d(images, FIELDS).flatten(1)]
    found += [
        _grid(images.mean(1, keepdim=True), period)
        for period in PERIODS
        if min(images.shape[2:]) >= 2 * period
    ]
    while True:
        found += _texture(images)
        if min(images.shape[2:]) < 2 * LEAST_SIDE:
            return torch.cat(found, 1)
        images = functional.avg_pool2d(images, 2)


def fine_energy(images: Tensor) -> Tensor:  # [B, C, H, W] -> [B]
    """The mean square of what a mean over 3×3 pixels removes."""
    from torch.nn import functional

    coarse = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return (images - coarse).square().flatten(1).mean(1)


def _texture(images: Tensor) -> list[Tensor]:  # -> [B, ...] each
    from torch.nn import functional

    brightness = _responses(images.mean(1, keepdim=True))
    energy = brightness.square()
    detail = energy.mean(1, keepdim=True)  # [B, 1, H, W]
    whole = detail.mean((2, 3))
    # By Jensen (E|x|)² ≤ E x², equal where |x| is the same everywhere: their ratio shows edges.
    even = brightness.abs().mean((1, 2, 3))[:, None].square()
    found = [
        _log(energy.mean((2, 3))),
        _log(functional.adaptive_avg_pool2d(detail, 2).flatten(1)),
        _log(whole) - _log(even),
    ]
    if images.shape[1] > 1:
        colour = _responses((images - images.mean(1, keepdim=True)).flatten(0, 1)[:, None])
        energies = colour.square().mean((1, 2, 3)).view(len(images), -1)
        found.append(_log(energies.sum(1, keepdim=True)))
    return found


def _responses(plane: Tensor) -> Tensor:  # [B, 1, H, W] -> [B, 8, H, W]
    """The response of each of the eight filters, of unit length, at each pixel."""
    import torch
    from torch.nn import functional

    # Outer products of the three vectors; the first, level × level, is a mean and left out.
    kernels = torch.tensor(
        [[[a * b for b in across] for a in down] for down in FILTERS for across in FILTERS][1:],
        dtype=plane.dtype,
        device=plane.device,
    )
    kernels = kernels / kernels.square().sum((1, 2), keepdim=True).sqrt()
    return functional.conv2d(
        functional.pad(plane, (1, 1, 1, 1), mode="replicate"), kernels[:, None]
    )


def _grid(plane: Tensor, period: int) -> Tensor:  # [B, 1, H, W] -> [B, 1]
    """The log energy of the mean over all cells of `period` × `period` pixels."""
    import torch
    from torch.nn import functional

    height, width = (side // period * period for side in plane.shape[2:])
    plane = plane[:, :, :height, :width]
    # Without what is coarser than a cell, such as an object that is always in the middle.
    padded = functional.pad(plane, (period // 2,) * 4, mode="replicate")
    fine = plane - functional.avg_pool2d(padded, period + 1, 1)  # a window with a centre
    cells = fine.reshape(len(fine), 1, height // period, period, width // period, period)
    repeated = cells.mean((1, 2, 4)).square().mean((1, 2))
    return torch.log((repeated + LEAST_GRID) / TYPICAL_GRID)[:, None]


def _log(energy: Tensor) -> Tensor:
    return ((energy + LEAST_ENERGY) / TYPICAL_ENERGY).log()
