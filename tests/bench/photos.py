"""Photographic JPEGs for the benches, cut out of photos in scikit-image's wheel (CC0 or public
domain).
"""

import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from tests.data.loader.made import tar

WIDTH, HEIGHT, QUALITY = 500, 375, 90  # the commonest shape of ImageNet
SOURCES = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field")


@lru_cache(1)
def sources() -> list[Image.Image]:
    """The photos whole; needs the extra `bench`."""
    import skimage.data

    return [Image.fromarray(getattr(skimage.data, name)()).convert("RGB") for name in SOURCES]


def photo(number: int) -> Image.Image:
    """A crop of one of the photos, never the same twice: place, size, side and light are drawn by
    `number`.
    """
    chance = np.random.default_rng(number)
    image = sources()[number % len(SOURCES)]
    scale = min(image.width / WIDTH, image.height / HEIGHT) * chance.uniform(0.7, 1.0)
    width, height = scale * WIDTH, scale * HEIGHT
    left, top = chance.uniform(0, image.width - width), chance.uniform(0, image.height - height)
    cut = image.resize(
        (WIDTH, HEIGHT), Image.Resampling.LANCZOS, box=(left, top, left + width, top + height)
    )
    if chance.random() < 0.5:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return ImageEnhance.Brightness(cut).enhance(chance.uniform(0.8, 1.2))


def jpeg(number: int, **options: Any) -> bytes:
    """A photo as a JPEG of 500 x 375 pixels, quality 90: some 50 KB."""
    stream = io.BytesIO()
    photo(number).save(stream, "JPEG", quality=QUALITY, **options)
    return stream.getvalue()


def jpeg_shards(folder: Path, shards: int, records: int) -> list[Path]:
    """Plain tars of photos with labels, as img2dataset or webdataset's writer leave them."""
    paths = []
    for shard in range(shards):
        members: dict[str, bytes] = {}
        for number in range(shard * records, (shard + 1) * records):
            members[f"{number:06d}.jpg"] = jpeg(number)
            members[f"{number:06d}.cls"] = str(number % len(SOURCES)).encode()
        paths.append(tar(folder / f"{shard:06d}.tar", members))
    return paths
