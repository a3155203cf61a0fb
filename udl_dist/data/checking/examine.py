"""One shard gone through: each record that is whole, and each thing that is not, with its byte and
key.

What an index has of the shard is compared with what is there: headers, keys, labels, sizes, and the
checksum of each image. A record whose header is damaged is still read where the index says that it
lies.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import xxhash

from udl_dist.data.checking.looks import Looks, look
from udl_dist.data.checking.sources import Job
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
from udl_dist.storage.places import name_of

# What is kept of each record while a set is checked: 49 bytes.
TABLE = np.dtype(
    [
        ("shard", "<u4"),
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


class Damaged(NamedTuple):
    """Something that is not as it should be."""

    shard: str
    at: int  # byte
    key: str  # escaped; empty if it is not known
    what: str
    lost: int  # records of the index that cannot be read because of it

    def line(self) -> str:
        """All of it in one line."""
        key = f", key {self.key}" if self.key else ""
        return f"shard {self.shard!r} at byte {self.at}{key}: {self.what}"


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


@dataclass
class Examination:
    """One pass over one shard. `decode`: every image; `decode_unknown`: those that no checksum
    vouches for.
    """

    job: Job
    shape: Shape | None  # of bare pixels
    decode: bool = False
    decode_unknown: bool = False
    near: bool = False
    most_pixels: int = MOST_PIXELS
    wounds: set[int] = field(default_factory=set)  # bytes where headers are damaged
    seen: set[int] = field(default_factory=set)  # hashes of keys
    # rows of the index that were not met yet, by offset
    rows: dict[int, Any] = field(default_factory=dict)
    keys: set[int] = field(default_factory=set)  # hashes of the keys that the index has
    # (offset, record) of the index, in order of offsets
    places: list[tuple[int, int]] = field(default_factory=list)

    shard_bytes: int = 0  # once it is open

    def run(self) -> Iterator[Whole | Damaged]:
        """Everything that is found, each record of the index exactly once: as `Whole` or as
        lost.
        """
        try:
            yield from self._load_rows()
            with opened(self.job.path) as (data, _):
                self.shard_bytes = len(data)
                hashed, whole = Hashed(data), True
                for found in self._run(hashed):
                    whole = whole and isinstance(found, Whole)
                    yield found
                digest = self.job.index.shards[self.job.shard].digest if self.job.index else ""
                if whole and digest not in ("", hashed.hexdigest()):
                    yield self._damaged(0, b"", CHANGED)
        except DataError as error:
            yield self._damaged(0, b"", str(error), len(self.rows))

    def _run(self, data: Data) -> Iterator[Whole | Damaged]:
        expected = (
            self.job.index.shards[self.job.shard].shard_bytes if self.job.index else len(data)
        )
        if len(data) != expected:
            yield self._damaged(0, b"", f"has {len(data)} bytes, its index says {expected}")
        for found in grouped(salvage(data), self.naming):
            if isinstance(found, Damage):
                self.wounds.add(found.at)
                yield self._damaged(found.at, self._key_near(data, found.at), found.what)
            else:
                yield from self._record(data, found)
        if not (self.seen or self.wounds or self.rows_known):
            yield self._damaged(0, b"", "holds no record")
        yield from self._unmet(data)

    @property
    def naming(self) -> Naming:
        """How its members become records."""
        return self.job.index.about.naming if self.job.index else Naming()

    def _load_rows(self) -> Iterator[Damaged]:
        """The rows of the index, if they are whole."""
        index, shard = self.job.index, self.job.shard
        if index is None:
            return
        first, last = int(index.starts[shard]), int(index.starts[shard + 1])
        try:
            index.check_rows(shard)
        except DataError as error:
            yield self._damaged(0, b"", str(error), last - first)
            return
        for record, row in zip(range(first, last), index.rows[first:last].tolist(), strict=True):
            fields = dict(zip(index.rows.dtype.names or (), row, strict=True)) | {"record": record}
            self.rows[fields["offset"]] = fields
            self.keys.add(fields["key_hash"])
            self.places.append((fields["offset"], record))
        self.places.sort()
        for _ in range(last - first - len(self.rows)):
            yield self._damaged(0, b"", "two records of the index begin at one byte", 1)

    def _record(self, data: Data, group: Group) -> Iterator[Whole | Damaged]:
        """What a group of members is: a record, or damage."""
        fault, row = wrong_with(group, self.shape is not None), None
        wrong = fault.what if fault else ""
        if len(group.images) == 1:
            row = self.rows.pop(group.images[0][1].offset, None)
        hashed = xxhash.xxh3_64_intdigest(group.key)
        if not wrong and hashed in self.seen:
            wrong = "comes a second time"
        self.seen.add(hashed)
        if wrong:
            # what is left of a group was named by its header
            if not (self.wounds and row is None and self.job.index):
                yield self._damaged(group.at, group.key, wrong, int(row is not None))
            return
        label = label_of(data, group)
        if row is None and self.rows_known:
            yield self._damaged(group.at, group.key, "is not in the index")
        odd = self._differs(group, hashed, label, row)
        if odd:
            yield self._damaged(group.at, group.key, odd)
        label = row["label"] if row is not None else label
        yield self._verified(
            data, group, group.key, group.images[0][0], -1 if label is None else label, row
        )

    @property
    def rows_known(self) -> bool:
        """Whether an index with whole rows says what should be there."""
        return bool(self.keys)

    def _differs(self, group: Group, hashed: int, label: int | None, row: Any) -> str:
        """How the members of a record differ from its row, short of the image itself."""
        if label is None:
            return "its label is no whole number"
        if row is None:
            return ""
        if row["key_hash"] != hashed:
            return f"the index calls it {shown(self._index_key(row['record']))}"
        has_label = len(group.members) > 1 and label >= 0
        if label != row["label"] and (has_label or not self.wounds):
            return f"its label is {label}, its index says {row['label']}"
        return ""

    def _verified(
        self, data: Data, group: Group | None, key: bytes, extension: bytes, label: int, row: Any
    ) -> Whole | Damaged:
        """A record whose image was read, compared with its checksum, and decoded if that is asked
        for.
        """
        image = group.images[0][1] if group else None
        if row is not None:
            offset, length = row["offset"], row["length"]
        else:
            assert image is not None
            offset, length = image.offset, image.length
        at, indexed = group.at if group else offset - BLOCK, row is not None
        if image and image.length != length:
            return self._damaged(at, key, f"has {image.length} bytes, its index says {length}", 1)
        if offset + length > len(data) or not 0 < length <= LARGEST_IMAGE:
            return self._damaged(at, key, f"its {length} bytes reach past the end of the shard", 1)
        payload = data[offset : offset + length]
        checksum = checksum_of(payload)
        if row is not None and checksum != row["checksum"]:
            return self._damaged(at, key, "what is there does not match its checksum", 1)
        try:
            wanted = self.decode or (self.decode_unknown and not indexed)
            looks = self._look(payload, extension) if wanted else None
            extension = extension or _extension(payload)
        except DataError as error:
            return self._damaged(at, key, str(error), int(indexed))
        return Whole(key, extension, offset, length, checksum, label, indexed, group, looks)

    def _look(self, payload: bytes, extension: bytes) -> Looks:
        return look(
            payload, self.shape if extension == b"raw" else None, self.near, self.most_pixels
        )

    def _unmet(self, data: Data) -> Iterator[Whole | Damaged]:
        """The records of the index that no member was found for; their images may be whole all the
        same.
        """
        # From front to back: in object storage a piece of 8 MiB is then fetched a second time at
        # most.
        for row in sorted(self.rows.values(), key=itemgetter("offset")):
            key = self._index_key(row["record"])
            found = self._verified(
                data, None, key, b"raw" if self._is_raw else b"", row["label"], row
            )
            if isinstance(found, Whole) and row["offset"] - BLOCK not in self.wounds:
                yield self._damaged(
                    row["offset"] - BLOCK, key, "no header is there, but the image that is indexed"
                )
            yield found

    @property
    def _is_raw(self) -> bool:
        return self.job.index is not None and self.job.index.about.format == "raw"

    def _key_near(self, data: Data, at: int) -> bytes:
        """The key of the record that a damaged header is of: as it says itself, if the index
        agrees, else by place.
        """
        key = key_at(data, at, self.naming)
        if not self.rows_known or xxhash.xxh3_64_intdigest(key) in self.keys:
            return key
        place = bisect.bisect_left(self.places, (at + BLOCK, -1))
        return self._index_key(self.places[place][1]) if place < len(self.places) else b""

    def _index_key(self, record: int) -> bytes:
        assert self.job.index is not None, "a row has an index"
        return self.job.index.key(record).encode("utf-8", "replace")

    def _damaged(self, at: int, key: bytes, what: str, lost: int = 0) -> Damaged:
        return Damaged(name_of(self.job.path), at, shown(key) if key else "", what, lost)


def _extension(payload: bytes) -> bytes:
    """The extension of an image whose name is lost."""
    kind = read_header(payload, HIGHEST_LIMIT).kind
    return b"jpg" if kind == "jpeg" else kind.encode()


def as_row(whole: Whole, job: Job) -> tuple[int, ...]:
    """A record as a row of TABLE."""
    looks = whole.looks or Looks(0, 0, 0, False, 0)
    return (
        job.number,
        whole.offset,
        whole.length,
        whole.checksum,
        xxhash.xxh3_64_intdigest(whole.key),
        whole.label,
        looks.width,
        looks.height,
        looks.channels,
        looks.constant,
        looks.hash,
    )
