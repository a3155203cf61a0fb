"""Small real files for the tests of the stream: images, folders, IDX files, tars."""

import gc
import gzip
import io
import struct
import tarfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from udl_dist.data.loader.dataset import Dataset
from udl_dist.data.loader.reader import Stream
from udl_dist.data.settings import DataSettings
from udl_dist.data.shards.indexing import index_shards
from udl_dist.data.shards.tar import Damage, Data, Member, salvage
from udl_dist.errors import DataError, UdlError


def pixels(seed: int, *shape: int) -> NDArray[np.uint8]:
    """Smooth random pixels: no two alike, and they survive a JPEG."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, *shape[2:]), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def encoded(image: NDArray[Any] | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        stream, kind, **options
    )
    return stream.getvalue()


def folder_of_images(root: Path, names: list[str], size: int = 16) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        kind = "JPEG" if name.endswith((".jpg", ".jpeg")) else name.rsplit(".", 1)[1].upper()
        (root / name).write_bytes(encoded(pixels(number, size, size), kind))
    return root


def idx(path: Path, values: NDArray[np.uint8]) -> Path:
    data = (
        bytes((0, 0, 8, values.ndim))
        + struct.pack(f">{values.ndim}I", *values.shape)
        + values.tobytes()
    )
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
    return path


def mnist_like(root: Path, train: int = 60, test: int = 20) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("t10k", test)):
        images = np.stack(
            [pixels(number + 1000 * (part == "t10k"), 28, 28) for number in range(count)]
        )
        idx(root / f"{part}-images-idx3-ubyte.gz", images)
        idx(root / f"{part}-labels-idx1-ubyte.gz", (np.arange(count) % 10).astype(np.uint8))
    return root


def tar(path: Path, members: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def walk(name: Path | str, data: Data) -> Iterator[Member]:
    """The members of a tar; raise DataError at the first damage."""
    for found in salvage(data):
        if isinstance(found, Damage):
            raise DataError(f"shard {str(name)!r} at byte {found.at}: {found.what}")
        yield found


def shards(root: Path, counts: list[int], size: int = 8) -> list[Path]:
    """Tars of numbered PNGs, with the number of the record as its label."""
    paths, number = [], 0
    for shard, count in enumerate(counts):
        members = {}
        for _ in range(count):
            members[f"{number:06d}.png"] = encoded(pixels(number, size, size))
            members[f"{number:06d}.cls"] = str(number).encode()
            number += 1
        paths.append(tar(root / f"{shard:06d}.tar", members))
    return paths


def seen_by_webdataset(*paths: Path) -> list[dict[str, Any]]:
    """The records as webdataset's own reader gives them; it leaves its files to the garbage
    collector.
    """
    import webdataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        records = list(webdataset.WebDataset([str(path) for path in paths], shardshuffle=False))
        gc.collect()
    return records


def stream(root: Path, counts: list[int], seed: int = 0, **settings: Any) -> Stream:
    index = index_shards(shards(root, counts))
    return Stream(
        [Dataset(index)], DataSettings(**{"size": 8, "channels": 1, "readers": 0, **settings}), seed
    )


@contextmanager
def refusal(kind: type[UdlError], *parts: object) -> Iterator[None]:
    """The block raises an error of this kind, in one printable line that names each of `parts`."""
    with pytest.raises(kind) as raised:
        yield
    one_line(raised.value, *parts)


def one_line(error: UdlError, *parts: object) -> None:
    """Hold a refusal to one printable line that names each of `parts`."""
    text = str(error)
    assert text.isprintable(), text
    assert len(text) < 500
    for part in parts:
        assert str(part) in text, text
