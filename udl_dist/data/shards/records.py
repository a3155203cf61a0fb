"""The records of a shard that may be damaged: members grouped by key, and what is wrong with a
group.

Goes on behind damage, so that all of it can be listed at once. Knows no index.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import xxhash

from udl_dist.data.shards.index import Fault, shown
from udl_dist.data.shards.naming import IMAGES, LABEL, UNREAD, Naming, kind_of
from udl_dist.data.shards.tar import BLOCK, LONGEST_NAME, REPACK, Damage, Data, Member, name_of

LARGEST_IMAGE = 2**28  # bytes, encoded
HASHED = 2**20  # bytes at a time
LISTED = 8  # extensions that a refusal names


class Hashed:
    """A shard each of whose bytes is hashed once and in order, while somebody walks through it from
    its start.
    """

    def __init__(self, data: Data) -> None:
        self._data, self._at, self._hash = data, 0, xxhash.xxh3_128()

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, span: slice) -> bytes:
        if span.stop > self._at:
            self._reach(span.stop)
        return self._data[span]

    def hexdigest(self) -> str:
        """XXH3-128 of all bytes."""
        self._reach(len(self._data))
        return self._hash.hexdigest()

    def _reach(self, stop: int) -> None:
        stop = min(stop, len(self._data))
        while self._at < stop:
            part = self._data[self._at : min(stop, self._at + HASHED)]
            self._hash.update(part)
            self._at += len(part)


class Group(NamedTuple):
    """A run of members with one key."""

    key: bytes
    members: tuple[tuple[bytes, Member], ...]  # (extension, member)
    naming: Naming = Naming()

    @property
    def at(self) -> int:
        """The byte where its first header begins."""
        return self.members[0][1].offset - BLOCK

    @property
    def images(self) -> list[tuple[bytes, Member]]:
        """Those members that are its image: one, if all is well."""
        usual = (
            [entry for entry in self.members if entry[0] in IMAGES] if not self.naming.image else []
        )
        if usual:
            return usual
        found = set(self.naming.images(extension for extension, _ in self.members))
        return [entry for entry in self.members if entry[0] in found]

    def last(self, extension: bytes) -> Member | None:
        """The last member with an extension."""
        return next((member for name, member in reversed(self.members) if name == extension), None)


def grouped(found: Iterable[Member | Damage], naming: Naming) -> Iterator[Group | Damage]:
    """The records of a shard and the damage between their members, in order of their bytes as
    nearly as can be.
    """
    key, members = b"", list[tuple[bytes, Member]]()
    for each in found:
        if isinstance(each, Damage):
            yield each
            continue
        parts = naming.parts(each.name)
        if parts is None:
            continue
        if parts[0] != key and members:
            yield Group(key, tuple(members), naming)
            members = []
        key = parts[0]
        members.append((parts[1], each))
    if members:
        yield Group(key, tuple(members), naming)


def key_at(data: Data, at: int, naming: Naming) -> bytes:
    """The key that a damaged header still shows; empty if it shows none."""
    parts = naming.parts(name_of(data[at : at + BLOCK]))
    return parts[0] if parts else b""


def wrong_with(group: Group, raw: bool) -> Fault | None:
    """What keeps a group from being a record; None if nothing does. `raw`: bare pixels are
    images.
    """
    images = group.images
    if len(group.key) > LONGEST_NAME:
        return Fault(group.at, f"a key of {len(group.key)} bytes", REPACK)
    if len(images) != 1:
        return _not_one_image(group, [extension for extension, _ in images])
    extension, image = images[0]
    if kind_of(extension) == b"raw" and not raw:
        return Fault(
            group.at,
            "is raw pixels, whose shape only an index by `udl pack` knows",
            "pack the images again",
        )
    if not 0 < image.length <= LARGEST_IMAGE:
        return Fault(image.offset, f"its image has {image.length} bytes", REPACK)
    if sum(name == LABEL for name, _ in group.members) > 1:
        return Fault(group.at, "has more than one label", REPACK)
    return None


def label_of(data: Data, group: Group) -> int | None:
    """The label of a group, -1 if it has none, None if it is no whole number."""
    member = group.last(LABEL)
    if member is None:
        return -1
    text = data[member.offset : member.offset + min(member.length, 32)].strip()
    return max(-1, int(text)) if re.fullmatch(rb"-?\d{1,9}", text) else None


def _not_one_image(group: Group, images: list[bytes]) -> Fault:
    """No image or several, and the cure for the likely cause."""
    extensions = images or [extension for extension, _ in group.members]
    kinds = ", ".join(shown(extension) for extension in extensions[:LISTED])
    what = f"has {len(images)} images, not one ({kinds})"
    if len(images) > 1:
        cure = f"set data.image to one of them, such as {shown(images[0])[1:-1]}"
        if any(b"." in extension for extension in images):
            cure += ", or data.key_dot = last if the dots belong to the keys"
        elif len(set(images)) < len(images):
            cure = "give each image a key of its own"
        return Fault(group.at, what, cure)
    if group.naming.image:
        return Fault(
            group.at,
            f"{what}; data.image is {group.naming.image!r}",
            "let data.image name a member that it has",
        )
    if any(kind_of(extension) in UNREAD for extension in extensions):
        return Fault(group.at, what, "convert its images to PNG, JPEG or WebP")
    return Fault(group.at, what, "let data.image name the member that is the image")
