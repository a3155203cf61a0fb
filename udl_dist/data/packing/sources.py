"""What a name stands for, and folders of images.

`open_source` finds out what a name stands for: the embedded digits, IDX files, an array or a folder
of images. Knows no shard; the folder of images is here, all that comes as one array is in `arrays`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import xxhash

from udl_dist.core.config_schema import as_path
from udl_dist.data.images.coding import Pixels, decode, stored_shape
from udl_dist.data.images.headers import MOST_PIXELS
from udl_dist.data.images.kinds import Fit, Shape
from udl_dist.data.packing import arrays
from udl_dist.data.packing.parts import divided, part_named, refuse_nested
from udl_dist.data.packing.source import LICENSES, Images, Source, find_license
from udl_dist.errors import DataError

READ = (".png", ".jpg", ".jpeg", ".webp", ".npy")
UNREAD = (
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
    ".heic",
    ".heif",
    ".jp2",
    ".ppm",
    ".pgm",
    ".ico",
)
COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
UNPACK = "unpack them (gunzip, for instance): positions within compressed tars cannot be found"
UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


class Folder:
    """Images of a folder, sorted by their paths below `root`."""

    def __init__(self, root: Path, names: list[str], labels: list[int]) -> None:
        self.root, self.names, self.labels = root, names, labels

    def __len__(self) -> int:
        return len(self.names)

    def key(self, number: int) -> str:
        """The path, made safe and short, and a hash of it that keeps it unique."""
        name = self.names[number]
        readable = UNSAFE.sub("_", os.path.splitext(name)[0])[-60:]
        return f"{readable}-{xxhash.xxh3_64_hexdigest(os.fsencode(name))}"

    def label(self, number: int) -> int:
        return self.labels[number]

    def pixels(self, number: int, shape: Shape, fit: Fit, most_pixels: int = MOST_PIXELS) -> Pixels:
        with self._named(number) as path:
            return decode(path.read_bytes(), shape, fit, most_pixels=most_pixels)

    def shape(self, number: int, most_pixels: int) -> Shape:
        with self._named(number) as path:
            return stored_shape(path.read_bytes(), most_pixels)

    @contextlib.contextmanager
    def _named(self, number: int) -> Iterator[Path]:
        """The path of an image; what is wrong with it is said with its name."""
        path = self.root / self.names[number]
        try:
            yield path
        except DataError as error:
            raise DataError(
                f"image {str(path)!r} {error}: repair or remove it, or pack with --skip-damaged"
            ) from error
        except OSError as error:
            raise DataError(f"image {str(path)!r} cannot be read ({error.strerror})") from None

    def name(self, number: int) -> str:
        return str(self.root / self.names[number])


def open_source(source: str) -> Source:
    """Find out what `source` is and list its images, decoding none; raise DataError if there is
    nothing to pack.
    """
    if source == "digits":
        return arrays.digits()
    path = as_path(source)
    if not path.exists():
        raise DataError(f"there is no file or folder {source!r}: check the path")
    if path.is_dir():
        return arrays.idx_folder(path) if arrays.idx_files(path) else image_folder(path)
    if arrays.is_idx(path):
        return arrays.idx_file(path)
    if path.suffix in (".npy", ".npz"):
        return arrays.array_file(path)
    raise DataError(
        f"{source!r} is none of what can be packed: an image folder, IDX files, .npy or .npz, or"
        " 'digits'"
    )


def image_folder(root: Path) -> Source:
    """A folder of images; the first folder below the root, or below its train, val and test, names
    the class.

    Raises DataError if it holds none, or if it cannot be told which are held out.
    """
    names, ignored = _listed(root)
    if not names:
        raise DataError(
            f"folder {str(root)!r} holds no image we read ({', '.join(READ)}){_instead(ignored)}"
        )
    parts: dict[str, list[str]] = {}
    split = divided(
        str(root),
        {name.split("/")[0] for name in names if "/" in name},
        [name for name in names if "/" not in name],
    )
    if not split:
        refuse_nested(str(root), names)
    for name in names:
        parts.setdefault(part_named(name.split("/")[0]) if split else "train", []).append(name)
    depth = 1 if split else 0
    classes = sorted(
        {name.split("/")[depth] for name in names if name.count("/") > depth}, key=os.fsencode
    )
    numbers = {name: number for number, name in enumerate(classes)}
    labels = {
        part: [
            numbers[name.split("/")[depth]] if name.count("/") > depth else -1 for name in listed
        ]
        for part, listed in parts.items()
    }
    images: dict[str, Images] = {
        part: Folder(root, listed, labels[part]) for part, listed in parts.items()
    }
    safe = tuple(os.fsencode(name).decode("utf-8", "replace") for name in classes)
    return Source(root.name, find_license(root), safe, images, ignored)


def files_below(folder: Path) -> list[str]:
    """The image files of a folder of images, whatever part they are of, by their paths below it;
    none of IDX files.
    """
    return [] if arrays.idx_files(folder) else _listed(folder)[0]


def identify(source: str) -> str:
    """A hash that changes whenever the images of a source do: of names, sizes and times, without
    opening a file.
    """
    if source == "digits":
        return arrays.digits_identity()
    path = as_path(source)
    if not path.exists():
        raise DataError(f"there is no file or folder {source!r}: check the path")
    if path.is_dir() and not arrays.idx_files(path):
        return _hashed(path / name for name in _listed(path)[0])
    folder, beside = (
        (path, path.iterdir()) if path.is_dir() else (path, path.parent.glob("*idx1-ubyte*"))
    )
    return _hashed(sorted({folder, *beside}))


def _hashed(paths: Iterable[Path]) -> str:
    hashed = xxhash.xxh3_128()
    for path in paths:
        status = path.stat()
        hashed.update(os.fsencode(path) + b"\0%d %d\n" % (status.st_size, status.st_mtime_ns))
    return hashed.hexdigest()


def _listed(root: Path) -> tuple[list[str], dict[str, int]]:
    """Paths below the root of all images, sorted by bytes, and the counts of other files but hidden
    ones.
    """
    names, ignored = [], Counter[str]()
    for folder, file in _files(root):
        extension = os.path.splitext(file)[1].lower()
        if extension in READ:
            names.append(os.path.relpath(os.path.join(folder, file), root))
        elif file not in LICENSES:
            ignored[extension or file] += 1
    return sorted(names, key=os.fsencode), dict(ignored)


def _files(root: Path) -> Iterator[tuple[str, str]]:
    """Every file below the root that is not hidden; links to folders are followed, but no folder is
    entered twice.
    """
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


def _instead(ignored: dict[str, int]) -> str:
    """What to do about a folder without images, by what else it holds."""
    if not ignored:
        return ": it is empty"
    counts = ", ".join(f"{count} {kind!a}" for kind, count in sorted(ignored.items())[:5])
    if any(f".tar{kind}".endswith(COMPRESSED) for kind in ignored):
        return f" but {counts}, compressed tars: {UNPACK}"
    convertible = any(kind in UNREAD for kind in ignored)
    return f" but {counts}: " + (
        "convert them to PNG, JPEG or WebP" if convertible else "check the path"
    )
