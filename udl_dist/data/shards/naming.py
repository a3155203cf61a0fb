"""Where the key ends in the name of a tar's member, and which member of a record is the image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# "raw" is last: bare pixels count only by their whole extension (see `images`).
IMAGES = (b"jpg", b"jpeg", b"png", b"webp", b"npy", b"raw")
# images of kinds that are not decoded
UNREAD = (b"gif", b"bmp", b"tif", b"tiff", b"avif", b"heic", b"heif", b"jp2", b"ppm", b"pgm")
# webdataset's name for a class number.
LABEL = b"cls"
META = re.compile(rb"__[^/]*__($|/)")  # webdataset's skip_meta, on bytes
KeyDot = Literal["first", "last"]
IMAGE_IN_WORDS = (
    "member of a record that is its image, by its extension, such as left.jpg; empty: the only"
    " image"
)
KEY_DOT_IN_WORDS = (
    "dot of a file name at which the key of its record ends; first is WebDataset's rule"
)


@dataclass(frozen=True)
class Naming:
    """The naming rules of one set of shards, by default those of webdataset."""

    image: str = ""  # extension of the image; empty: the only member that is one
    key_dot: KeyDot = "first"

    def parts(self, name: bytes) -> tuple[bytes, bytes] | None:
        """Key and lower-case extension of a member's name; None for what is not of a record.

        Those are names without a dot, meta files and hidden files, such as `._x.jpg` and
        `.DS_Store` of macOS. A key may contain folders.
        """
        # By default as webdataset's base_plus_ext, `^((?:.*/|)[^.]+)[.]([^/]*)$`, a pattern that
        # needs 0.3 s for 4 kB of slashes.
        folder, slash, file = name.rpartition(b"/")
        # The last dot is for keys that contain dots, such as photo.2024.jpg.
        split = file.partition if self.key_dot == "first" else file.rpartition
        stem, dot, extension = split(b".")
        if not dot or file.startswith(b".") or META.match(name):
            return None
        # Lower case as in webdataset; a key keeps its case.
        return folder + slash + stem, extension.lower()

    def images(self, extensions: Sequence[bytes]) -> list[bytes]:
        """Those of a record's extensions that are its image: exactly one in a valid record."""
        if self.image:
            # Written with or without its dot.
            wanted = self.image.lower().lstrip(".").encode()
            return [extension for extension in extensions if extension == wanted]
        # A whole extension counts first, then what follows its last dot, as in `x.input.jpg`.
        whole = [extension for extension in extensions if extension in IMAGES]
        # Not raw: bare pixels count by their whole extension only.
        return whole or [extension for extension in extensions if kind_of(extension) in IMAGES[:-1]]


def kind_of(extension: bytes) -> bytes:
    """What follows the last dot of an extension."""
    return extension.rpartition(b".")[2]
