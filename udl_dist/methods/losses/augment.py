"""Augmentation of all that a discriminator sees, so that few images do not teach it by heart.

DiffAugment (Zhao et al. 2020): random colors, shifts and cutouts that gradients pass, of real and
generated images alike. Each is applied to an image with a chance p; a generator that learns from
them does not make augmented images as long as p < 1 (Karras et al. 2020, section 2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from udl_dist.core import rng

AugmentKind = Literal["none", "diffaug", "ada"]
SHIFT = 0.125  # of a side, the farthest
CUT = 0.5  # of a side, the length of the square that is blanked


# [B, C, H, W], [B] int64 -> [B, C, H, W]; likewise `translation` and `cutout`
def color(images: Tensor, keys: Tensor, draw: str) -> Tensor:
    """Brightness by ±0.5 of [-1, 1], saturation by 0 to 2 times, contrast by 0.5 to 1.5 times."""
    drawn = rng.uniform(keys, f"{draw} color", (3, 1, 1, 1)).to(images.dtype)
    brightness, saturation, contrast = drawn.unbind(1)
    images = images + (brightness - 0.5)
    gray = images.mean(1, keepdim=True)
    images = gray + (images - gray) * (2 * saturation)
    level = images.mean((1, 2, 3), keepdim=True)
    return level + (images - level) * (contrast + 0.5)


def translation(images: Tensor, keys: Tensor, draw: str) -> Tensor:
    """A shift by whole pixels, at most an eighth of each side; what comes in is gray, 0."""
    places = []
    for axis, side in enumerate(images.shape[2:]):
        most = int(side * SHIFT + 0.5)
        shift = _whole(keys, f"{draw} translation {axis}", 2 * most + 1) - most
        places.append(torch.arange(side, device=keys.device) - shift[:, None])  # [B, side]
    rows, columns = places[0][:, None, :, None], places[1][:, None, None, :]
    height, width = images.shape[2:]
    inside = _within(rows, 0, height) & _within(columns, 0, width)  # [B, 1, H, W]
    batch = torch.arange(len(images), device=keys.device)[:, None, None, None]
    channels = torch.arange(images.shape[1], device=keys.device)[:, None, None]
    shifted = images[batch, channels, rows.clamp(0, height - 1), columns.clamp(0, width - 1)]
    return shifted * inside


def cutout(images: Tensor, keys: Tensor, draw: str) -> Tensor:
    """A rectangle of half of each side anywhere, also across an edge, becomes gray, 0."""
    outside = []
    for axis, side in enumerate(images.shape[2:]):
        length = int(side * CUT + 0.5)
        # The middle lies anywhere in the image.
        start = _whole(keys, f"{draw} cutout {axis}", side + 1 - length % 2) - length // 2
        places = torch.arange(side, device=keys.device) - start[:, None]
        outside.append(~_within(places, 0, length))
    return images * (outside[0][:, None, :, None] | outside[1][:, None, None, :])


CHANGES: Mapping[str, Callable[[Tensor, Tensor, str], Tensor]] = {
    "color": color,
    "translation": translation,
    "cutout": cutout,
}


# [B, C, H, W], [B] int64, a number or [] -> [B, C, H, W]
def augmented(
    images: Tensor, keys: Tensor, draw: str, kinds: tuple[str, ...], chance: float | Tensor
) -> Tensor:
    """Images changed by each of `kinds` with that chance, by their keys and the name of a draw."""
    for kind in kinds:
        chosen = rng.uniform(keys, f"{draw} {kind} chosen", (1, 1, 1)) < chance
        images = torch.where(chosen, CHANGES[kind](images, keys, draw), images)
    return images


# [], [], the signs of D's logits of real images summed and their number -> []
def next_chance(
    chance: Tensor, signs: Tensor, images: Tensor, target: float, over_images: int
) -> Tensor:
    """The chance of the next step: up if the discriminator is too sure of real images, else down.

    It goes from 0 to 1 in `over_images` images at the least (Karras et al. 2020, section 3).
    """
    move = torch.sign(signs / images - target) * images / over_images
    return (chance + move).clamp(0, 1)


def _whole(keys: Tensor, draw: str, below: int) -> Tensor:  # [B] int64 -> [B] int64
    """Whole numbers from 0 up to and without `below`."""
    return (rng.uniform(keys, draw, ()) * below).long()


def _within(places: Tensor, first: int, end: int) -> Tensor:
    return (places >= first) & (places < end)
