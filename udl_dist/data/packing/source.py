"""What can be packed: images with a key and perhaps a label, in parts called train, val and test.
Knows no shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from udl_dist.data.images.coding import Pixels
from udl_dist.data.images.headers import MOST_PIXELS
from udl_dist.data.images.kinds import Fit, Shape

LICENSES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "license.txt")
LONGEST_LICENSE = 64 * 2**10  # bytes
SHOWN = 12  # names of classes


class Images(Protocol):
    """One part of a source: numbered images."""

    def __len__(self) -> int: ...

    def key(self, number: int) -> str:
        """A WebDataset key: unique within the part, without dots, the same whatever else the part
        holds.
        """

    def label(self, number: int) -> int:
        """The class, or -1 if there is none."""

    # -> [C, H, W]
    def pixels(self, number: int, shape: Shape, fit: Fit, most_pixels: int = MOST_PIXELS) -> Pixels:
        """The decoded image; raise DataError that names it if it cannot be read."""

    def shape(self, number: int, most_pixels: int) -> Shape:
        """Channels, height and width as they are stored; raise DataError if the image cannot be
        read.
        """

    def name(self, number: int) -> str:
        """The image in words, for people."""


@dataclass(frozen=True)
class Source:
    """Something that can be packed."""

    name: str
    license: str
    classes: tuple[str, ...]
    parts: dict[str, Images]
    ignored: dict[str, int]  # files that are no images we read: how many of each extension


def in_words(classes: tuple[str, ...]) -> str:
    """The names of classes in one line, the first of many."""
    names = ", ".join(name if name.isprintable() else ascii(name) for name in classes[:SHOWN])
    return names + (", …" if len(classes) > SHOWN else "")


def find_license(root: Path) -> str:
    """The text of a licence file that lies in the folder, or ""."""
    for name in LICENSES:
        if (root / name).is_file():
            return (root / name).read_bytes()[:LONGEST_LICENSE].decode("utf-8", "replace")
    return ""
