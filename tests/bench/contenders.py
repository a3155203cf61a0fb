"""Ways to get batches of images out of a folder of shards, each an endless iterator of uint8 [B, C,
H, W].

Ours through the public way in; webdataset's usual pipeline; the bare loop that knows where the
images lie.
"""

import itertools
import mmap
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from udl_dist.data.images.coding import decode_into
from udl_dist.data.images.headers import Shape
from udl_dist.data.loader.decoded import decoded_here, nothing_decoded
from udl_dist.data.loader.opening import open_streams
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.settings import DataSettings

BATCH = 64
Batches = Iterator[Any]


def ours(source: Path, shape: Shape, readers: int = 0, seen: bool = False) -> Batches:
    """udl_dist, checksums on and order mixed, as always; `seen`: from the second epoch on."""
    settings = DataSettings(
        str(source),
        size=shape[1],
        channels=shape[0],  # type: ignore[arg-type]
        readers=readers,
        held_out_fraction=0.0,
    )
    stream, _ = open_streams(
        prepare(settings), 0, decoded=decoded_here(settings) if seen else nothing_decoded
    )
    batches = (records.images for records in stream.batches(0, BATCH))
    yield from itertools.islice(batches, stream.records // BATCH + 1 if seen else 0, None)


def fitted(image: Image.Image, shape: Shape) -> np.ndarray[Any, Any]:
    """The middle square, resized with antialiasing: what people write around webdataset, but in one
    step.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.convert("L" if shape[0] == 1 else "RGB")
    if image.size != shape[:0:-1]:
        image = image.resize(
            shape[:0:-1], Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
        )
    pixels = np.asarray(image)
    return pixels[None] if shape[0] == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def webdataset(source: Path, shape: Shape, workers: int = 0, key: str = "jpg") -> Batches:
    """Its usual pipeline, in its favour: without a shuffle buffer, and uint8, not floats. It checks
    nothing.
    """
    import webdataset as wds

    warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files to the garbage collector
    urls = [str(path) for path in sorted(source.rglob("*.tar"))]
    pixels = (lambda value: value) if key == "npy" else (lambda value: fitted(value, shape))
    records = wds.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple(key).map_tuple(pixels)
    batches = records.repeat().batched(BATCH)
    loader = wds.WebLoader(batches, batch_size=None, num_workers=workers) if workers else batches
    yield from (batch[0] for batch in loader)


def bare(source: Path, shape: Shape) -> Batches:
    """Our decoder and nothing else: shards mapped, places known, one image after the other, no
    checksum.
    """
    places: list[tuple[mmap.mmap, int, int]] = []
    for path in sorted(source.rglob("*.tar")):
        with path.open("rb") as file, tarfile.open(path) as members:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            places += [
                (mapped, each.offset_data, each.offset_data + each.size)
                for each in members.getmembers()
                if not each.name.endswith(".cls")
            ]
    endless = itertools.cycle(places)
    while True:
        images = np.empty((BATCH, *shape), np.uint8)
        for row, (mapped, start, end) in zip(images, itertools.islice(endless, BATCH), strict=True):
            decode_into(row, mapped[start:end], "crop")
        yield images
