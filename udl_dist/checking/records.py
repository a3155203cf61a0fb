"""The records of a shard that may be damaged: members grouped by key as indexing does, and what is wrong with a group.

Where indexing stops at the first thing out of order, this goes on. Knows no index.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from udl_dist.shards.index import shown
from udl_dist.shards.indexing import IMAGES, LABEL, LARGEST_IMAGE, key_and_extension
from udl_dist.shards.tar import BLOCK, LONGEST_NAME, Damage, Data, Member, name_of, salvage


class Group(NamedTuple):
    """A run of members with one key."""

    key: bytes
    members: tuple[tuple[bytes, Member], ...]  # (extension, member)

    @property
    def at(self) -> int:
        """The byte where its first header begins."""
        return self.members[0][1].offset - BLOCK

    @property
    def images(self) -> list[tuple[bytes, Member]]:
        """Those members that are images by their extension."""
        return [entry for entry in self.members if entry[0] in IMAGES]

    def last(self, extension: bytes) -> Member | None:
        """The last member with an extension."""
        return next((member for name, member in reversed(self.members) if name == extension), None)


def grouped(data: Data) -> Iterator[Group | Damage]:
    """The records of a shard and the damage between their members, in order of their bytes as nearly as can be."""
    key, members = b"", list[tuple[bytes, Member]]()
    for found in salvage(data):
        if isinstance(found, Damage):
            yield found
            continue
        parts = key_and_extension(found.name)
        if parts is None:
            continue
        if parts[0] != key and members:
            yield Group(key, tuple(members))
            members = []
        key = parts[0]
        members.append((parts[1], found))
    if members:
        yield Group(key, tuple(members))


def key_at(data: Data, at: int) -> bytes:
    """The key that a damaged header still shows; empty if it shows none."""
    parts = key_and_extension(name_of(data[at : at + BLOCK]))
    return parts[0] if parts else b""


def wrong_with(group: Group, raw: bool) -> str:
    """What keeps a group from being a record, in words; empty if nothing does. `raw`: bare pixels are images."""
    images = group.images
    if len(group.key) > LONGEST_NAME:
        return f"a key of {len(group.key)} bytes"
    if len(images) != 1:
        kinds = ", ".join(shown(extension) for extension, _ in (images or group.members)[:8])
        return f"has {len(images)} images, not one ({kinds})"
    extension, image = images[0]
    if extension == b"raw" and not raw:
        return "is raw pixels, whose shape only an index by `udl pack` knows"
    if not 0 < image.length <= LARGEST_IMAGE:
        return f"its image has {image.length} bytes"
    return "has more than one label" if sum(name == LABEL for name, _ in group.members) > 1 else ""


def label_of(data: Data, group: Group) -> int | None:
    """The label of a group, -1 if it has none, None if it is no whole number."""
    member = group.last(LABEL)
    if member is None:
        return -1
    text = data[member.offset : member.offset + min(member.length, 32)].strip()
    return max(-1, int(text)) if re.fullmatch(rb"-?\d{1,9}", text) else None
