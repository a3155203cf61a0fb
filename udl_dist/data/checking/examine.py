"""Examines one shard: yields each whole record, and each damage with its byte and key.

The shard is compared with its index: headers, keys, labels, sizes, and the checksum of each image.
A record whose header is damaged is still read where the index says that it lies.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import xxhash

from udl_dist.data.checking.duplicates import Looks, look
from udl_dist.data.checking.findings import Damaged
from udl_dist.data.checking.sources import ShardJob
from udl_dist.data.images.headers import HIGHEST_LIMIT, MOST_PIXELS, Shape, read_header
from udl_dist.data.shards.index import shown
from udl_dist.data.shards.indexing import checksum_of
from udl_dist.data.shards.naming import Naming
from udl_dist.data.shards.reading import opened
from udl_dist.data.shards.records import (
    LARGEST_IMAGE,
    Group,
    Hashed,
    grouped,
    key_at,
    label_of,
    wrong_with,
)
from udl_dist.data.shards.tar import BLOCK, Damage, Data, salvage
from udl_dist.errors import DataError
from udl_dist.storage.uris import name_of

# What stays in memory of each record while a set is checked: 50 bytes.
TABLE = np.dtype(
    [
        ("shard", "<u4"),
        ("held_out", "?"),
        ("offset", "<u8"),
        ("length", "<u4"),
        ("checksum", "<u4"),
        ("key_hash", "<u8"),
        ("label", "<i4"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("channels", "u1"),
        ("constant", "?"),
        ("hash", "<u8"),
    ]
)
CHANGED = (
    "bytes outside of images and headers were changed since it was indexed: copy it again, or run"
    " udl index --again"
)


class Whole(NamedTuple):
    """A record that can be read."""

    key: bytes
    extension: bytes
    offset: int
    length: int
    checksum: int
    label: int
    indexed: bool
    group: Group | None  # None: found by the index alone
    looks: Looks | None  # None: not decoded

    def as_row(self, job: ShardJob) -> tuple[int, ...]:
        """The record as a row of TABLE."""
        key_hash = xxhash.xxh3_64_intdigest(self.key)
        held_out = job.part not in ("train", "")
        place = (job.number, held_out, self.offset, self.length, self.checksum)
        return *place, key_hash, self.label, *(self.looks or Looks(0, 0, 0, False, 0))


@dataclass
class Examination:
    """One pass over one shard. `decode`: every image; `decode_unknown`: those without checksum."""

    job: ShardJob
    shape: Shape | None  # of bare pixels
    decode: bool = False
    decode_unknown: bool = False
    near: bool = False
    most_pixels: int = MOST_PIXELS
    data: Data = b""  # the shard, while `run` is in it
    shard_bytes: int = 0  # once it is open
    bad_headers: set[int] = field(default_factory=set)  # bytes where headers are damaged
    seen: set[int] = field(default_factory=set)  # hashes of keys
    rows: dict[int, Any] = field(default_factory=dict)  # of the index, by offset, until found
    keys: set[int] = field(default_factory=set)  # hashes of the keys in the index
    offsets: list[tuple[int, int]] = field(default_factory=list)  # (offset, record), ordered

    def run(self) -> Iterator[Whole | Damaged]:
        """All records and damage, each record of the index exactly once: whole or lost."""
        try:
            yield from self._load_rows()
            with opened(self.job.path) as (data, _):
                self.data = hashed = Hashed(data)
                self.shard_bytes, whole = len(data), True
                for found in self._walk():
                    whole = whole and isinstance(found, Whole)
                    yield found
                digest = self.job.indexed_shard.digest if self.job.indexed_shard else ""
                if whole and digest not in ("", hashed.hexdigest()):
                    yield self._damaged(0, b"", CHANGED)
        except DataError as error:
            # The shard is missing or unreadable: what is left of its rows is lost.
            yield self._damaged(0, b"", str(error), len(self.rows))

    def _walk(self) -> Iterator[Whole | Damaged]:
        size, indexed = self.shard_bytes, self.job.indexed_shard
        if indexed and size != indexed.shard_bytes:
            says = f"its index says {indexed.shard_bytes}"
            yield self._damaged(0, b"", f"has {size} bytes, {says}")
        for found in grouped(salvage(self.data), self.naming):
            if isinstance(found, Damage):
                self.bad_headers.add(found.at)
                yield self._damaged(found.at, self._key_near(found.at), found.what)
            else:
                yield from self._record(found)
        if not (self.seen or self.bad_headers or self.keys):
            yield self._damaged(0, b"", "holds no record")
        yield from self._rest()

    @property
    def naming(self) -> Naming:
        return self.job.index.about.naming if self.job.index else Naming()

    def _load_rows(self) -> Iterator[Damaged]:
        """Load the rows of the index, if they are whole."""
        index, shard = self.job.index, self.job.shard
        if index is None:
            return
        first, last = int(index.starts[shard]), int(index.starts[shard + 1])
        try:
            index.check_rows(shard)
        except DataError as error:
            yield self._damaged(0, b"", str(error), last - first)
            return
        for record, row in enumerate(index.rows[first:last].tolist(), first):
            fields = dict(zip(index.rows.dtype.names or (), row, strict=True)) | {"record": record}
            if fields["offset"] in self.rows:
                yield self._damaged(0, b"", "two records of the index begin at one byte", 1)
            self.rows[fields["offset"]] = fields
            self.keys.add(fields["key_hash"])
        self.offsets = sorted((offset, row["record"]) for offset, row in self.rows.items())

    def _record(self, group: Group) -> Iterator[Whole | Damaged]:
        """A group of members is a record, or damage."""
        fault, row = wrong_with(group, self.shape is not None), None
        wrong = fault.what if fault else ""
        if len(group.images) == 1:
            # By its place: the name may be what is damaged.
            row = self.rows.pop(group.images[0][1].offset, None)
        hashed = xxhash.xxh3_64_intdigest(group.key)
        if not wrong and hashed in self.seen:
            wrong = "comes a second time"
        self.seen.add(hashed)
        if wrong:
            # the rest of a group whose damaged header was reported already
            if not (self.bad_headers and row is None and self.job.index):
                yield self._damaged(group.at, group.key, wrong, int(row is not None))
            return
        label = label_of(self.data, group)
        if row is None and self.keys:
            yield self._damaged(group.at, group.key, "is not in the index")
        if differs := self._differs(group, hashed, label, row):
            yield self._damaged(group.at, group.key, differs)
        label = row["label"] if row is not None else label
        extension = group.images[0][0]
        yield self._verified(group, group.key, extension, -1 if label is None else label, row)

    def _differs(self, group: Group, hashed: int, label: int | None, row: Any) -> str:
        """How a record differs from its row, apart from the image."""
        if label is None:
            return "its label is not a whole number"
        if row is None:
            return ""
        if row["key_hash"] != hashed:
            return f"the index calls it {shown(self._index_key(row['record']))}"
        has_label = len(group.members) > 1 and label >= 0  # its header may be the damaged one
        if label != row["label"] and (has_label or not self.bad_headers):
            return f"its label is {label}, its index says {row['label']}"
        return ""

    def _verified(
        self, group: Group | None, key: bytes, extension: bytes, label: int, row: Any
    ) -> Whole | Damaged:
        """Read the image of a record, compare its checksum, and decode it if that is asked for."""
        image, indexed = group.images[0][1] if group else None, row is not None
        offset, length = (row["offset"], row["length"]) if image is None or indexed else image[1:3]
        at = group.at if group else offset - BLOCK
        if image and image.length != length:
            return self._damaged(at, key, f"has {image.length} bytes, its index says {length}", 1)
        if offset + length > self.shard_bytes or not 0 < length <= LARGEST_IMAGE:
            return self._damaged(at, key, f"its {length} bytes reach past the end of the shard", 1)
        payload = self.data[offset : offset + length]
        checksum = checksum_of(payload)
        if indexed and checksum != row["checksum"]:
            return self._damaged(at, key, "its bytes do not match their checksum", 1)
        looks = None
        try:
            if self.decode or (self.decode_unknown and not indexed):
                raw_shape = self.shape if extension == b"raw" else None
                looks = look(payload, raw_shape, self.near, self.most_pixels)
            if not extension:  # its name is lost
                kind = read_header(payload, HIGHEST_LIMIT).kind
                extension = b"jpg" if kind == "jpeg" else kind.encode()
        except DataError as error:
            return self._damaged(at, key, str(error), int(indexed))
        return Whole(key, extension, offset, length, checksum, label, indexed, group, looks)

    def _rest(self) -> Iterator[Whole | Damaged]:
        """The records of the index without a member: their images may be whole all the same."""
        raw = self.job.index is not None and self.job.index.about.format == "raw"
        # from front to back: in object storage a piece of 8 MiB is then read twice at most
        for row in sorted(self.rows.values(), key=itemgetter("offset")):
            key, at = self._index_key(row["record"]), row["offset"] - BLOCK
            found = self._verified(None, key, b"raw" if raw else b"", row["label"], row)
            if isinstance(found, Whole) and at not in self.bad_headers:
                yield self._damaged(at, key, "the image that is indexed has no header")
            yield found

    def _key_near(self, at: int) -> bytes:
        """The key at a damaged header: its own, if the index has it, else that of the next row."""
        key = key_at(self.data, at, self.naming)
        if not self.keys or xxhash.xxh3_64_intdigest(key) in self.keys:
            return key
        place = bisect.bisect_left(self.offsets, (at + BLOCK, -1))  # the content follows its header
        return self._index_key(self.offsets[place][1]) if place < len(self.offsets) else b""

    def _index_key(self, record: int) -> bytes:
        assert self.job.index is not None, "a row has an index"
        return self.job.index.key(record).encode("utf-8", "replace")

    def _damaged(self, at: int, key: bytes, what: str, lost: int = 0) -> Damaged:
        return Damaged(name_of(self.job.path), at, shown(key) if key else "", what, lost)
