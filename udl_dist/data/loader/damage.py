"""Counts damaged records, and stops a run when they are too many."""

from __future__ import annotations

from collections.abc import Iterator

from udl_dist.data.loader.records import Records
from udl_dist.data.settings import DataSettings
from udl_dist.errors import DataError


class BadRecordCounter:
    """Counts damaged records that are replaced, and stops the run when they are too many."""

    def __init__(self, settings: DataSettings) -> None:
        self._settings, self._in_a_row = settings, 0
        # What was wrong, in order: a dict, as a record comes again in every epoch.
        # They go into damaged.txt.
        self.lines: dict[str, None] = {}

    def counted(self, batches: Iterator[Records]) -> Iterator[Records]:
        """Pass batches on; raise DataError at too many damaged records in a row.

        A limit on their share alone would stop a run of wholly damaged shards much later.
        """
        for records in batches:
            # The usual batch costs nothing.
            if not records.damaged:
                self._in_a_row = 0
            for row in range(len(records.records)) if records.damaged else ():
                self._in_a_row = self._in_a_row + 1 if row in records.damaged else 0
                if self._in_a_row >= self._settings.damaged_in_a_row:
                    raise DataError(
                        f"{records.damaged[row]} ({self._in_a_row} damaged records in a row: run"
                        " udl check)"
                    )
            self.lines.update(dict.fromkeys(records.damaged.values()))
            yield records

    def refuse(self, damaged: int, records: int) -> None:
        """Raise DataError if `damaged` of `records`, over all ranks, are too many."""
        # Counted over all ranks, so that all of them stop at the same step.
        if damaged > self._settings.damaged_limit * records:
            limit = f"data.damaged_limit = {self._settings.damaged_limit:g}"
            raise DataError(
                f"{damaged} of {records:,} records were damaged, more than {limit} allows: run udl"
                " check"
            )
