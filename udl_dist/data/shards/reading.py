"""Reads the payloads of records from shards, and verifies each against its checksum.

Shards on disk are mapped, those in object storage are read by ranges, by any number of threads. A
mismatch is a fault that names shard, byte and key; the caller decides whether it stops a run.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from udl_dist.data.shards.index import Index, shown
from udl_dist.data.shards.tar import Data
from udl_dist.errors import DataError
from udl_dist.storage.objects import Object
from udl_dist.storage.range_cache import RangeCache
from udl_dist.storage.ranges import Window, read_ranges
from udl_dist.storage.transfers import Limits, Traffic
from udl_dist.storage.uris import is_remote, name_of

I64 = NDArray[np.int64]
# Well below the limit: data sets, logs and sockets need descriptors too.
MOST_OPEN = 256  # shards: each takes a file descriptor, and a process usually has 1,024
# Enough to tell another file (none agrees) from one with some damage (most agree).
LOOKED_AT = 16  # records compared in a shard whose mtime has changed
COPY = "copy or pack the shard again"


class Loaded(NamedTuple):
    """Encoded images, their rows of the index, and the faults among them."""

    payloads: list[bytes]  # empty where there is a fault
    rows: NDArray[Any]  # [B] of ROW
    faults: dict[int, str]  # by place in the batch


@dataclass
class RemoteAccess:
    """How object storage is read: time limits, counters, and the local copies if there are any."""

    limits: Limits = field(default_factory=Limits)
    traffic: Traffic = field(default_factory=Traffic)
    cache: RangeCache | None = None


class Mapped:
    """A shard on disk, mapped into memory."""

    def __init__(self, path: str) -> None:
        try:
            with Path(path).open("rb") as file:
                status = os.fstat(file.fileno())
                # mmap refuses an empty file without naming it.
                if status.st_size == 0:
                    raise DataError(f"shard {path!r} is empty: copy it again, or leave it out")
                # A map has no position that threads would share, and the kernel caches its
                # pages for all processes of a machine.
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise DataError(
                f"shard {path!r} is missing: check the path, or copy the shard again"
            ) from None
        except (OSError, ValueError) as error:
            raise DataError(
                f"shard {path!r} cannot be read ({getattr(error, 'strerror', error)})"
            ) from None
        self.size, self.stamp = status.st_size, f"mtime:{status.st_mtime_ns}"

    def cut(self, starts: list[int], ends: list[int]) -> list[bytes]:
        """The bytes of each range; short ones past the end of a file that was cut off since."""
        # Touching a page past the end of a shortened file is a SIGBUS, which nothing can catch.
        # `size()` asks for the length of the file, not of the map.
        if (size := self.data.size()) < self.size:
            starts, ends = ([min(edge, size) for edge in edges] for edges in (starts, ends))
        # strict=True would cost a tenth of the time
        return [self.data[start:end] for start, end in zip(starts, ends)]  # noqa: B905

    def changed(self) -> str:
        """How the file differs from when it was opened, or ""."""
        size = self.data.size()
        return f"it has {size} bytes now, it had {self.size}" if size != self.size else ""


class Remote:
    """A shard in object storage."""

    def __init__(self, uri: str, access: RemoteAccess) -> None:
        self.blob = Object(uri, access.limits, access.traffic)
        self._cache = access.cache
        self.size, self.stamp = self.blob.size, self.blob.stamp

    def cut(self, starts: list[int], ends: list[int]) -> list[bytes]:
        ranges = [(start, end - start) for start, end in zip(starts, ends, strict=True)]
        return read_ranges(self.blob, ranges, self._cache)

    def changed(self) -> str:
        return ""  # a read of an object that was written again raises


@contextlib.contextmanager
def opened(path: str, empty: bool = False) -> Iterator[tuple[Data, str]]:
    """A shard to be walked once from its start, and its stamp; `empty` allows one of 0 bytes."""
    if empty and not is_remote(path) and os.path.isfile(path) and not os.path.getsize(path):
        # An empty file cannot be mapped; an index names it as a fault instead of failing.
        yield b"", f"mtime:{os.stat(path).st_mtime_ns}"
    elif is_remote(path):
        blob = Remote(path, RemoteAccess()).blob
        # One request after the other ahead of the walk, instead of a request per header.
        yield Window(blob), blob.stamp
    else:
        mapped = Mapped(path)
        # Unmapped at once: an index walks over any number of shards.
        with mapped.data:
            yield mapped.data, mapped.stamp


def cut_out(path: str, start: int, end: int) -> bytes:
    """The bytes of one range of a shard, by path or URI."""
    # Opened for one range: only the few records that look like copies are read again.
    return _opened(path, RemoteAccess()).cut([start], [end])[0]


def _opened(path: str, access: RemoteAccess) -> Mapped | Remote:
    return Remote(path, access) if is_remote(path) else Mapped(path)


class Shards:
    """The shards of an index, opened at their first read; the least recently read are closed."""

    def __init__(self, index: Index, access: RemoteAccess | None = None) -> None:
        self.index, self.access = index, access or RemoteAccess()
        # All shards of an index are on one side: the first one tells.
        self.remote = is_remote(index.shard_path(0))
        self._open: OrderedDict[int, Mapped | Remote] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, records: I64) -> Loaded:
        """Read records and verify their checksums."""
        payloads, faults = self.fetch(records)
        return self.check(records, payloads, faults)

    def fetch(self, records: I64) -> tuple[list[bytes], dict[int, str]]:
        """The bytes at the place of each record, not verified; faults are of whole shards. [B]"""
        shards = self.index.shard_of(records)
        rows, faults = self.index.rows[records], dict[int, str]()
        starts, ends = rows["offset"].tolist(), (rows["offset"] + rows["length"]).tolist()
        payloads: list[bytes] = [b""] * len(records)
        # A set of numbers is faster than np.unique for the few of a batch.
        for shard in sorted(set(shards.tolist())):
            places = np.flatnonzero(shards == shard).tolist()
            try:
                # All ranges of a shard at once: remote ones are joined into few requests.
                found = self._handle(shard).cut(
                    [starts[place] for place in places], [ends[place] for place in places]
                )
            except DataError as error:
                # Only the records of this shard are lost; whether that stops a run is a setting.
                faults.update(dict.fromkeys(places, str(error)))
                continue
            for place, payload in zip(places, found, strict=True):
                payloads[place] = payload
        return payloads, faults

    def check(self, records: I64, payloads: list[bytes], faults: dict[int, str]) -> Loaded:
        """Verify the checksums of payloads; adds to `faults`."""
        rows = self.rows(records)  # first: with damaged rows every checksum would look wrong
        # Of 500 bits flipped in JPEGs 469 decode without an error: only a checksum notices.
        # CRC32C of a 52 KB record takes 3.2 µs, zlib's CRC 12.2 µs.
        checksums = np.fromiter(map(google_crc32c.value, payloads), np.uint32, len(payloads))
        for place in np.flatnonzero(checksums != rows["checksum"]).tolist():
            faults.setdefault(place, self._mismatch(int(records[place])))
            # Never decoded: damaged bytes are where decoders have their holes.
            payloads[place] = b""
        return Loaded(payloads, rows, faults)

    def rows(self, records: I64) -> NDArray[Any]:
        """The verified rows of records in the index. [B] -> [B] of ROW"""
        for shard in set(self.index.shard_of(records).tolist()):
            self.index.check_rows(shard)
        rows: NDArray[Any] = self.index.rows[records]
        return rows

    def where(self, record: int) -> str:
        """Shard, first byte and key of a record, for messages."""
        shard = int(self.index.shard_of(np.array([record]))[0])
        key, offset = shown(self.index.key(record)), int(self.index.rows["offset"][record])
        return f"shard {name_of(self.index.shard_path(shard))!r} at byte {offset}, key {key}"

    def _mismatch(self, record: int) -> str:
        what, shard = "does not match its checksum", int(self.index.shard_of(np.array([record]))[0])
        with contextlib.suppress(DataError):
            if changed := self._handle(shard).changed():
                what = f"the shard was changed while it was read ({changed})"
        return f"{self.where(record)}: {what}: {COPY}"

    def _handle(self, shard: int) -> Mapped | Remote:
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
        handle = self._checked(shard)  # without the lock: object storage may be slow
        with self._lock:
            # Two threads may open a shard at once; both handles are good, and the later one stays.
            self._open[shard] = handle
            # Not closed: another thread may be reading. The last reference unmaps it.
            while len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        return handle

    def _checked(self, shard: int) -> Mapped | Remote:
        """Open a shard; raise DataError if it is not the indexed one, by size, ETag or content."""
        where, expected = self.index.shard_path(shard), self.index.shards[shard]
        handle = _opened(where, self.access)
        # From the cheapest test to the dearest: size, stamp, then some records.
        if handle.size != expected.shard_bytes:
            what = f"has {handle.size} bytes, its index says {expected.shard_bytes}"
        elif expected.stamp in ("", handle.stamp):
            return handle
        # An ETag changes with the content only, so a difference is final.
        elif self.remote:
            what = f"has {handle.stamp}, its index says {expected.stamp}"
        elif self._is_unchanged(shard, handle):
            return handle
        else:
            what = "was changed after it was indexed"
        again = f"copy it again, or delete {str(self.index.path)!r} and index again"
        raise DataError(f"shard {name_of(where)!r} {what}: {again}")

    def _is_unchanged(self, shard: int, handle: Mapped | Remote) -> bool:
        """Whether some records are as indexed: a copied shard has another mtime, too."""
        rows = self.index.rows[self.index.starts[shard] : self.index.starts[shard + 1]]
        # Spread over the whole shard.
        rows = rows[np.linspace(0, len(rows) - 1, min(LOOKED_AT, len(rows))).astype(int)]
        found = handle.cut(rows["offset"].tolist(), (rows["offset"] + rows["length"]).tolist())
        differing = np.array([*map(google_crc32c.value, found)]) != rows["checksum"]
        # Up to half may be damage, which is named record by record.
        return int(differing.sum()) <= len(rows) / 2
