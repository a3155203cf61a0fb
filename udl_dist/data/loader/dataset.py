"""A set of records that is read as one: an index, a selection of its records, and its shards. Knows
no pixel.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udl_dist.data.loader import order
from udl_dist.data.shards.index import Index
from udl_dist.data.shards.reading import Loaded, RemoteAccess, Shards
from udl_dist.errors import DataError

I64 = NDArray[np.int64]
LOOKED_AT = 256  # records: each is a page of the index, read from a disk


class Dataset:
    """Numbered records 0 … `records`-1 of an index."""

    def __init__(
        self,
        index: Index,
        selection: NDArray[Any] | None = None,
        name: str = "all",
        access: RemoteAccess | None = None,
    ) -> None:
        self.index, self._selection, self._name = index, selection, name
        self.shards = Shards(index, access)
        self.records = index.records if selection is None else len(selection)
        if not self.records:
            raise DataError(
                f"{str(index.path)!r}: no record is left to read: change data.held_out_fraction,"
                " data.keys or data.without_labels"
            )

    def part(self, records: int) -> Dataset:
        """So many of its records, drawn at random once for all seeds."""
        drawn = np.sort(order.record_at(0, 0, np.arange(records), self.records))
        part = copy.copy(self)
        part._selection, part.records, part._name = (
            self.chosen(drawn),
            records,
            f"{self._name} {records}",
        )
        return part

    @property
    def fingerprint(self) -> str:
        """A name for exactly these records."""
        return f"{self.index.fingerprint} {self._name}"

    @property
    def record_bytes(self) -> float:
        """The mean length of an encoded image, from a look at some of them."""
        looked = self.index.rows["length"][:: max(1, self.index.records // LOOKED_AT)]
        return float(looked.mean())

    def chosen(self, numbers: I64) -> I64:
        """The records in the index that bear these numbers. [B] -> [B]"""
        return numbers if self._selection is None else self._selection[numbers].astype(np.int64)

    def load(self, numbers: I64) -> Loaded:
        """Read records by their numbers, checked."""
        return self.shards.load(self.chosen(numbers))
