"""Picture grids: originals over reconstructions, generated images next to real ones."""

from __future__ import annotations

import textwrap

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from udl_dist.methods.method import Batch, Method
from udl_dist.methods.pixels import levels

LEAST_TILE = 56  # pixels; smaller images are enlarged, each pixel a square
GAP = 2
LETTER_WIDTH, LINE_HEIGHT = 7, 13  # of Pillow's own font, at most


def draw(method: Method, batch: Batch, keys: Tensor, columns: int) -> dict[str, Image.Image]:
    """The pictures this method can have: `reconstruction` and `samples`, by name.

    `batch` holds real held-out images, at least one; the input of a denoising method has a row of
    its own. `keys` are the random keys of the samples, [columns**2] int64.
    """
    pictures = {}
    if method.can("reconstruct"):
        # `damage` returns the same tensor where a method does not corrupt its input.
        corrupted = method.damage(batch)
        labels = None if batch.labels is None else batch.labels[:columns]
        rows = [batch.images[:columns], method.reconstruct(corrupted[:columns], labels)]
        if corrupted is not batch.images:
            rows.insert(1, corrupted[:columns])
        pictures["reconstruction"] = grid(torch.cat(rows), len(rows[0]))
    if method.can("sample"):
        # A row of each class in turn, in a conditional method.
        places = torch.arange(len(keys), device=keys.device) // columns
        generated = method.sample(keys, places % max(1, len(method.classes)))
        real = batch.images[: columns * columns]
        pictures["samples"] = _joined(grid(generated, columns), grid(real, columns))
    return pictures


def captioned(picture: Image.Image, text: str) -> Image.Image:
    """A picture with lines of small text below it."""
    lines = textwrap.wrap(text, max(20, picture.width // LETTER_WIDTH))
    height = picture.height + GAP + LINE_HEIGHT * len(lines)
    whole = Image.new(picture.mode, (picture.width, height), "white")
    whole.paste(picture, (0, 0))
    canvas = ImageDraw.Draw(whole)
    for number, line in enumerate(lines):
        canvas.text((GAP, picture.height + GAP + LINE_HEIGHT * number), line, fill="black")
    return whole


def grid(images: Tensor, columns: int) -> Image.Image:
    """Images in rows of `columns`, [N, C, H, W] floats in [-1, 1]."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    scale = max(1, -(-LEAST_TILE // max(height, width)))
    tiles = levels(images).numpy().repeat(scale, axis=2).repeat(scale, axis=3).transpose(0, 2, 3, 1)
    tall, wide = height * scale + GAP, width * scale + GAP
    # 96 of 255: a grey that images with a black or white background stand out from.
    canvas = np.full((rows * tall + GAP, columns * wide + GAP, channels), 96, dtype=np.uint8)
    for number, tile in enumerate(tiles):
        top, left = GAP + number // columns * tall, GAP + number % columns * wide
        canvas[top : top + height * scale, left : left + width * scale] = tile
    return Image.fromarray(canvas.squeeze(2) if channels == 1 else canvas)


def _joined(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures with a gap between them."""
    start = left.width + 8 * GAP
    height = max(left.height, right.height)
    both = Image.new(left.mode, (start + right.width, height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (start, 0))
    return both
