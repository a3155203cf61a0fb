"""Payloads of records out of shards on disk or in object storage, each checked against its
checksum. Knows no image.

Shards on disk are mapped, those in object storage are read by ranges; any number of threads may
read at once. What does not match is a fault that names shard, byte and key: whoever asked decides
whether it stops a run.
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
from typing import Any, NamedTuple, Protocol

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
# shards held open at a time: each takes a file descriptor, and a process has 1,024 as a rule
MOST_OPEN = 256
LOOKED_AT = 16  # records of a shard whose time has changed
COPY = "copy or pack the shard again"


class Loaded(NamedTuple):
    """Encoded images as they lie in their shards, their rows of the index, and what is wrong with
    which of them.
    """

    payloads: list[bytes]  # empty where there is a fault
    rows: NDArray[Any]  # [B] of ROW
    faults: dict[int, str]  # by place in the batch


class Handle(Protocol):
    """An opened shard."""

    size: int
    stamp: str

    def cut(self, starts: list[int], ends: list[int]) -> list[bytes]:
        """The bytes of each range; a range past the end of a shard that was cut off since is
        short.
        """

    def changed(self) -> str:
        """How the shard differs from when it was opened, or ""."""


@dataclass
class RemoteAccess:
    """How object storage is read: its time limits, what was asked of it, and a local copy of what
    it gave.
    """

    limits: Limits = field(default_factory=Limits)
    traffic: Traffic = field(default_factory=Traffic)
    cache: RangeCache | None = None


class Mapped:
    """A shard on disk, mapped into memory."""

    def __init__(self, path: str) -> None:
        try:
            with Path(path).open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_size == 0:
                    raise DataError(f"shard {path!r} is empty: copy it again, or leave it out")
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._file = os.dup(file.fileno())
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
        # To touch a page past the end of a file that has become shorter is a SIGBUS, which nothing
        # can catch.
        size = os.fstat(self._file).st_size
        data = self.data
        if size < self.size:
            return [
                data[start : min(end, size)] if start < size else b""
                for start, end in zip(starts, ends)  # noqa: B905
            ]
        # strict=True would cost a tenth of the time
        return [data[start:end] for start, end in zip(starts, ends)]  # noqa: B905

    def changed(self) -> str:
        size = os.fstat(self._file).st_size
        return (
            ""
            if size == self.size
            else f"it has {size} bytes now, it had {self.size} when it was opened"
        )

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._file)


class Remote:
    """A shard in object storage."""

    def __init__(self, address: str, remote: RemoteAccess) -> None:
        self.blob = Object(address, remote.limits, remote.traffic)
        self._cache = remote.cache
        self.size, self.stamp = self.blob.size, self.blob.stamp

    def cut(self, starts: list[int], ends: list[int]) -> list[bytes]:
        ranges = [(start, end - start) for start, end in zip(starts, ends, strict=True)]
        return read_ranges(self.blob, ranges, self._cache)

    def changed(self) -> str:
        return ""  # each read is refused if the object was written again


@contextlib.contextmanager
def opened(path: str, empty: bool = False) -> Iterator[tuple[Data, str]]:
    """A shard to be walked once from its start, and its stamp; with `empty` one of no bytes may be
    opened.
    """
    if empty and not is_remote(path) and os.path.isfile(path) and not os.path.getsize(path):
        yield b"", f"mtime:{os.stat(path).st_mtime_ns}"
    elif is_remote(path):
        blob = Remote(path, RemoteAccess()).blob
        yield Window(blob), blob.stamp
    else:
        mapped = Mapped(path)
        with mapped.data:
            yield mapped.data, mapped.stamp


def cut_out(path: str, start: int, end: int) -> bytes:
    """Some bytes of a shard, on disk or in object storage."""
    return (Remote(path, RemoteAccess()) if is_remote(path) else Mapped(path)).cut([start], [end])[
        0
    ]


class Shards:
    """The shards of an index, opened when they are first read; the ones not read for longest are
    let go.
    """

    def __init__(self, index: Index, access: RemoteAccess | None = None) -> None:
        self.index, self.access = index, access or RemoteAccess()
        self.remote = is_remote(index.shard_path(0))
        self._open: OrderedDict[int, Handle] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, records: I64) -> Loaded:
        """Read records and check them against their checksums."""
        payloads, faults = self.fetch(records)
        return self.check(records, payloads, faults)

    def fetch(self, records: I64) -> tuple[list[bytes], dict[int, str]]:
        """What lies where each record should be, not checked yet; faults are of whole shards.
        [B]
        """
        shards = self.index.shard_of(records)
        rows, faults = self.index.rows[records], dict[int, str]()
        starts, ends = rows["offset"].tolist(), (rows["offset"] + rows["length"]).tolist()
        payloads: list[bytes] = [b""] * len(records)
        distinct = sorted(set(shards.tolist()))
        for shard in distinct:
            places = (
                range(len(records))
                if len(distinct) == 1
                else np.flatnonzero(shards == shard).tolist()
            )
            try:
                handle = self._handle(shard)
                cut = handle.cut(
                    [starts[place] for place in places], [ends[place] for place in places]
                )
            except DataError as error:
                faults.update(dict.fromkeys(places, str(error)))
                continue
            for place, payload in zip(places, cut, strict=True):
                payloads[place] = payload
        return payloads, faults

    def check(self, records: I64, payloads: list[bytes], faults: dict[int, str]) -> Loaded:
        """Compare payloads with their checksums; adds the faults it finds."""
        for shard in set(self.index.shard_of(records).tolist()):
            self.index.check_rows(shard)
        rows = self.index.rows[records]
        checksums = np.fromiter(map(google_crc32c.value, payloads), np.uint32, len(payloads))
        for place in np.flatnonzero(checksums != rows["checksum"]).tolist():
            faults.setdefault(place, self._mismatch(int(records[place])))
            payloads[place] = b""
        return Loaded(payloads, rows, faults)

    def where(self, record: int) -> str:
        """A record in words: its shard, the byte where it starts, its key."""
        shard = int(self.index.shard_of(np.array([record]))[0])
        key, offset = shown(self.index.key(record)), int(self.index.rows["offset"][record])
        return f"shard {name_of(self.index.shard_path(shard))!r} at byte {offset}, key {key}"

    def _mismatch(self, record: int) -> str:
        shard = int(self.index.shard_of(np.array([record]))[0])
        with contextlib.suppress(DataError):
            if changed := self._handle(shard).changed():
                return (
                    f"{self.where(record)}: the shard was changed while it was read ({changed}):"
                    f" {COPY}"
                )
        return f"{self.where(record)}: what is there does not match its checksum: {COPY}"

    def _handle(self, shard: int) -> Handle:
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
        handle = self._checked(shard)  # without the lock: object storage may take its time
        with self._lock:
            self._open[shard] = handle
            while len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        return handle

    def _checked(self, shard: int) -> Handle:
        """Open a shard, refusing one that is not the indexed one: by size, by ETag, or by a look
        into it.
        """
        where, expected = self.index.shard_path(shard), self.index.shards[shard]
        handle: Handle = Remote(where, self.access) if self.remote else Mapped(where)
        path = name_of(where)
        again = f"copy it again, or delete {str(self.index.path)!r} and index again"
        if handle.size != expected.shard_bytes:
            raise DataError(
                f"shard {path!r} has {handle.size} bytes, its index says {expected.shard_bytes}:"
                f" {again}"
            )
        if expected.stamp in ("", handle.stamp):
            return handle
        if self.remote:
            raise DataError(
                f"shard {path!r} has {handle.stamp}, its index says {expected.stamp}: {again}"
            )
        rows = self.index.rows[self.index.starts[shard] : self.index.starts[shard + 1]]
        rows = rows[np.linspace(0, len(rows) - 1, min(LOOKED_AT, len(rows))).astype(int)]
        cut = handle.cut(rows["offset"].tolist(), (rows["offset"] + rows["length"]).tolist())
        differing = sum(
            google_crc32c.value(data) != row["checksum"]
            for data, row in zip(cut, rows, strict=True)
        )
        if differing > len(rows) / 2:  # fewer are damage, which is named record by record
            raise DataError(f"shard {path!r} was changed after it was indexed: {again}")
        return handle
