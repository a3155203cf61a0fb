"""Payloads of records out of mapped shards, each checked against its checksum. Knows no image.

Any number of threads may read at once.
"""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from udl_dist.errors import DataError
from udl_dist.stream.index import Index, shown
from udl_dist.stream.tar import open_shard

MOST_OPEN = 256  # shards mapped at a time: each holds a file descriptor, and a process has 1,024 as a rule


class Shards:
    """The shards of an index, mapped when they are first read; the ones not read for longest are let go."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._open: OrderedDict[int, mmap.mmap] = OrderedDict()
        self._lock = threading.Lock()

    def payloads(self, records: NDArray[np.int64]) -> tuple[list[bytes], NDArray[np.uint64], NDArray[np.int64]]:
        """The encoded images of records, their key hashes and labels; raise DataError for what does not match. [B]"""
        shards = self.index.shard_of(records).tolist()
        mapped = {shard: self._map(shard) for shard in set(shards)}
        rows = self.index.rows_of(records, mapped)
        starts, ends = rows["offset"].tolist(), (rows["offset"] + rows["length"]).tolist()
        if len(mapped) == 1:  # as in all small sets: half the time for small images
            data = next(iter(mapped.values()))
            payloads = [data[start:end] for start, end in zip(starts, ends, strict=True)]
        else:
            places = zip(shards, starts, ends, strict=True)
            payloads = [mapped[shard][start:end] for shard, start, end in places]
        checksums = np.fromiter(map(google_crc32c.value, payloads), np.uint32, len(payloads))
        for place in np.flatnonzero(checksums != rows["checksum"])[:1].tolist():
            where = self.where(int(records[place]))
            raise DataError(f"{where}: what is there does not match its checksum: copy or pack the shard again")
        return payloads, rows["key_hash"].copy(), rows["label"].astype(np.int64)

    def where(self, record: int) -> str:
        """A record in words: its shard, the byte where it starts, its key."""
        shard = int(self.index.shard_of(np.array([record]))[0])
        key = shown(self.index.key(record))
        offset = int(self.index.rows["offset"][record])
        return f"shard {str(self.index.shard_path(shard))!r} at byte {offset}, key {key}"

    def _map(self, shard: int) -> mmap.mmap:
        with self._lock:
            if shard not in self._open:
                self._open[shard] = self._checked(shard)
            self._open.move_to_end(shard)
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
            return self._open[shard]

    def _checked(self, shard: int) -> mmap.mmap:
        path, expected = self.index.shard_path(shard), self.index.shards[shard].shard_bytes
        data = open_shard(path)
        if len(data) != expected:
            raise DataError(f"shard {str(path)!r} has {len(data)} bytes, its index says {expected}: "
                            f"copy it again, or delete {str(self.index.path)!r} and index it anew")  # fmt: skip
        return data
