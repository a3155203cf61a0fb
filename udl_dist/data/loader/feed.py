"""What training asks of whatever gives it images, and the toll that damage takes of it: the same
for every feed.

There are two: a `Stream` of indexed records, exact, and a `Sequential`, which can only be read from
start to end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from udl_dist.data.images.headers import Shape
from udl_dist.data.loader.loading import Records, Spent
from udl_dist.data.settings import DataSettings
from udl_dist.errors import DataError


class Feed(Protocol):
    """Endless batches of one data set, whichever way they are come by."""

    settings: DataSettings
    shape: Shape
    records: int  # 0: unknown
    lost: str  # the promises that this feed cannot give, for people; "": it gives all

    @property
    def spent(self) -> Spent: ...

    @property
    def damage(self) -> Mapping[str, None]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def slow_storage(self) -> str:
        """What to do when reading, not decoding, is what training waits for."""
        ...

    def shards(self) -> dict[str, str]:
        """What is known of each shard, to be compared with on a resume."""
        ...

    def batches(
        self, position: int, batch_images: int, rank: int = 0, world: int = 1
    ) -> Iterator[Records]: ...

    def once(self, batch_images: int, rank: int = 0, world: int = 1) -> Iterator[Records]: ...

    def refuse_damage(self, damaged: int, images: int) -> None: ...


class Toll:
    """What was wrong with records that others stood in for, and when it is too much."""

    def __init__(self, settings: DataSettings) -> None:
        self._settings, self._in_a_row = settings, 0
        self.lines: dict[str, None] = {}  # in order

    def counted(self, batches: Iterator[Records]) -> Iterator[Records]:
        """Keep what was damaged, and stop at too many one after the other: a limit in parts of all
        comes too late.
        """
        for records in batches:
            self._count(records)
            yield records

    def refuse(self, damaged: int, records: int) -> None:
        """Raise DataError if so many damaged ones among so many records, over all ranks, are too
        many.
        """
        if damaged > self._settings.damaged_limit * records:
            raise DataError(
                f"{damaged} of {records:,} records were damaged, more than data.damaged_limit = "
                f"{self._settings.damaged_limit:g} allows: run udl check"
            )

    def _count(self, records: Records) -> None:
        for place in range(len(records.records)) if records.damaged else ():
            self._in_a_row = self._in_a_row + 1 if place in records.damaged else 0
            if self._in_a_row >= self._settings.damaged_in_a_row:
                raise DataError(
                    f"{records.damaged[place]} ({self._in_a_row} damaged records in a row: run udl"
                    " check)"
                )
        self.lines.update(dict.fromkeys(records.damaged.values()))
        if not records.damaged:
            self._in_a_row = 0
