"""The selected records of one index."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udl_dist.data.loader import order
from udl_dist.data.loader.records import I64
from udl_dist.data.shards.index import Index
from udl_dist.data.shards.reading import Loaded, RemoteAccess, Shards
from udl_dist.errors import DataError

LOOKED_AT = 256  # records whose lengths are averaged: each is a page of the index on disk


class Dataset:
    """The selected records of an index, numbered 0 … `records`-1, and its shards."""

    def __init__(
        self,
        index: Index,
        selection: NDArray[Any] | None = None,
        name: str = "all",
        access: RemoteAccess | None = None,
    ) -> None:
        self.index, self._selection = index, selection
        self.fingerprint = f"{index.fingerprint} {name}"  # a name for exactly these records
        self.shards = Shards(index, access)
        self.records = index.records if selection is None else len(selection)
        if not self.records:
            raise DataError(
                f"{str(index.path)!r}: no record is left to read: change data.held_out_fraction,"
                " data.keys or data.without_labels"
            )

    def part(self, records: int) -> Dataset:
        """A random subset of its records, the same for every seed."""
        # Sorted, so that a pass reads the shards from front to back.
        drawn = np.sort(order.record_at(0, 0, np.arange(records), self.records))
        part = copy.copy(self)
        part._selection, part.records = self.chosen(drawn), records
        part.fingerprint = f"{self.fingerprint} {records}"
        return part

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of labels 0, 1, …; the numbers where they have no names; () without labels."""
        # In a source all records have labels or none has, so the first one tells.
        if self.index.about.classes or self.index.read_rows(0, 1)["label"][0] < 0:
            return self.index.about.classes
        labels = self.index.read_rows(0, self.index.records)["label"]
        return tuple(map(str, range(int(labels.max()) + 1)))

    @property
    def record_bytes(self) -> float:
        """The mean length of an encoded image, estimated from some of them."""
        looked = self.index.rows["length"][:: max(1, self.index.records // LOOKED_AT)]
        return float(looked.mean())

    def chosen(self, numbers: I64) -> I64:
        """The records of the index with these numbers. [B] -> [B]"""
        return numbers if self._selection is None else self._selection[numbers].astype(np.int64)

    def load(self, numbers: I64) -> Loaded:
        """Read records by their numbers, and verify them."""
        return self.shards.load(self.chosen(numbers))
