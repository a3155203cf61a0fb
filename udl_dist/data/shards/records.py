"""Groups the members of a shard by key into records, and names what is wrong with a group.

Continues after damage, so that one pass lists all of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import xxhash

from udl_dist.data.shards import tar
from udl_dist.data.shards.index import Fault, shown
from udl_dist.data.shards.naming import IMAGES, LABEL, UNREAD, Naming, kind_of
from udl_dist.data.shards.tar import BLOCK, LONGEST_NAME, REPACK, Damage, Data, Member
from udl_dist.errors import DataError
from udl_dist.storage.uris import name_of, split

# 256 MiB: a false length must not make this process allocate more.
LARGEST_IMAGE = 2**28  # bytes, encoded
# A slice of a map or window copies, so a whole shard is never hashed in one piece.
HASHED = 2**20  # bytes hashed at a time
LISTED = 8  # extensions that an error message names
NAMED = 3  # faults that an error message names
SKIP = "data.damaged = skip leaves out what cannot be read, udl check --fix writes a clean copy"


class Hashed:
    """A shard whose bytes are hashed once, in order, while it is walked from its start."""

    def __init__(self, data: Data) -> None:
        self._data, self._at, self._hash = data, 0, xxhash.xxh3_128()

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, span: slice) -> bytes:
        # The walk jumps over the content of members: what it skips is hashed here, in order.
        if span.stop > self._at:
            self._reach(span.stop)
        return self._data[span]

    def hexdigest(self) -> str:
        """XXH3-128 of all bytes."""
        # What follows the end mark is part of the file too.
        self._reach(len(self._data))
        return self._hash.hexdigest()

    def _reach(self, stop: int) -> None:
        stop = min(stop, len(self._data))
        while self._at < stop:
            part = self._data[self._at : min(stop, self._at + HASHED)]
            self._hash.update(part)
            self._at += len(part)


class Group(NamedTuple):
    """Neighbouring members with one key."""

    key: bytes
    members: tuple[tuple[bytes, Member], ...]  # (extension, member)
    # Immutable, so one instance may serve all groups.
    naming: Naming = Naming()

    @property
    def at(self) -> int:
        """The byte where its first header begins."""
        return self.members[0][1].offset - BLOCK

    @property
    def images(self) -> list[tuple[bytes, Member]]:
        """The members that are its image: one, unless the group is damaged."""
        # The usual case first: indexing asks this twice per record.
        usual = [] if self.naming.image else [each for each in self.members if each[0] in IMAGES]
        # With several of them the record is refused later, by name.
        if usual:
            return usual
        found = self.naming.images([extension for extension, _ in self.members])
        return [entry for entry in self.members if entry[0] in found]

    def last(self, extension: bytes) -> Member | None:
        """The last member with an extension."""
        return next((member for name, member in reversed(self.members) if name == extension), None)


def grouped(found: Iterable[Member | Damage], naming: Naming) -> Iterator[Group | Damage]:
    """The records of a shard and the damage between their members, about in order of bytes."""
    key, members = b"", list[tuple[bytes, Member]]()
    for each in found:
        # It does not end the group: members on both sides of a damaged header may be one record.
        if isinstance(each, Damage):
            yield each
            continue
        parts = naming.parts(each.name)
        if parts is None:
            continue
        # A new key ends a record. As in webdataset, members of a record must be neighbours.
        if parts[0] != key and members:
            yield Group(key, tuple(members), naming)
            members = []
        key = parts[0]
        members.append((parts[1], each))
    if members:
        yield Group(key, tuple(members), naming)


def key_at(data: Data, at: int, naming: Naming) -> bytes:
    """The key in a damaged header; empty if it has none."""
    parts = naming.parts(tar.name_of(data[at : at + BLOCK]))
    return parts[0] if parts else b""


def wrong_with(group: Group, raw: bool) -> Fault | None:
    """What keeps a group from being a record, if anything. `raw`: bare pixels are images."""
    images = group.images
    if len(group.key) > LONGEST_NAME:
        return Fault(group.at, f"a key of {len(group.key)} bytes", REPACK)
    if len(images) != 1:
        return _not_one_image(group, [extension for extension, _ in images])
    extension, image = images[0]
    if kind_of(extension) == b"raw" and not raw:
        what = "is raw pixels, whose shape only an index by `udl pack` has"
        return Fault(group.at, what, "pack the images again")
    # An empty image is named here, not when it is decoded.
    if not 0 < image.length <= LARGEST_IMAGE:
        return Fault(image.offset, f"its image has {image.length} bytes", REPACK)
    # Two labels: which one holds cannot be known.
    if sum(name == LABEL for name, _ in group.members) > 1:
        return Fault(group.at, "has more than one label", REPACK)
    return None


def label_of(data: Data, group: Group) -> int | None:
    """The label of a group: -1 if it has none, None if it is not a whole number."""
    member = group.last(LABEL)
    if member is None:
        return -1
    text = _label_text(data, member)
    # At most nine digits fit the signed 32 bits of a row.
    # -1 means no label, so other negative numbers become that too.
    return max(-1, int(text)) if re.fullmatch(rb"-?\d{1,9}", text) else None


def _label_text(data: Data, member: Member) -> bytes:
    # 32 bytes show any number and enough of a name for a message.
    return data[member.offset : member.offset + min(member.length, 32)].strip()


def label_or_fault(data: Data, group: Group, raw: bool, seen: set[bytes]) -> int | Fault:
    """The label of a record, or what is wrong with its group; `seen` collects keys."""
    fault, label, member = wrong_with(group, raw), -1, group.last(LABEL)
    # Members of one record that others separate are two groups with one key.
    if group.key in seen:
        offset = group.members[0][1].offset
        fault = Fault(offset, "comes a second time", "keep the members of a record together")
    elif not fault and member:
        found = label_of(data, group)
        if found is None:
            text = shown(_label_text(data, member))
            cure = "write class numbers into .cls, and names elsewhere"
            fault = Fault(member.offset, f"its label is {text}, not a whole number", cure)
        else:
            label = found
    # Also of a faulty group, so that its second half does not pass for a record.
    seen.add(group.key)
    return fault._replace(what=f"key {shown(group.key)}: {fault.what}") if fault else label


def _not_one_image(group: Group, images: list[bytes]) -> Fault:
    """The fault of no image or several, with the cure of the likely cause."""
    extensions = images or [extension for extension, _ in group.members]
    kinds = ", ".join(shown(extension) for extension in extensions[:LISTED])
    what = f"has {len(images)} images, not one ({kinds})"
    if len(images) > 1:
        # Without the quotes: the setting is typed without them.
        cure = f"set data.image to one of them, such as {shown(images[0])[1:-1]}"
        if any(b"." in extension for extension in images):
            cure += ", or data.key_dot = last if the dots belong to the keys"
        elif len(set(images)) < len(images):
            cure = "give each image a key of its own"
        return Fault(group.at, what, cure)
    if group.naming.image:
        what += f"; data.image is {group.naming.image!r}"
        return Fault(group.at, what, "let data.image name a member that it has")
    unread = any(kind_of(extension) in UNREAD for extension in extensions)
    convert = "convert its images to PNG, JPEG or WebP"
    return Fault(
        group.at, what, convert if unread else "let data.image name the member that is the image"
    )


def refusal(faults: Sequence[tuple[str, Fault]], total: int) -> DataError:
    """The error for shards with `total` unreadable records; `faults` are (shard, fault)."""
    if total == 1:
        shard, (at, what, cure) = faults[0]
        return DataError(f"shard {name_of(shard)!r} at byte {at}: {what}: {cure}; or {SKIP}")
    named = "; ".join(
        f"{split(shard)[1]!r} at byte {at}: {what}" for shard, (at, what, _) in faults[:NAMED]
    )
    more = f"; and {total - NAMED:,} more (udl check lists all)" if total > NAMED else ""
    cures = {fault.cure for _, fault in faults}
    cure = f"{cures.pop()}; or {SKIP}" if len(cures) == 1 else SKIP
    folder = name_of(split(faults[0][0])[0])
    return DataError(f"{folder!r} has {total:,} things that cannot be read: {named}{more}: {cure}")
