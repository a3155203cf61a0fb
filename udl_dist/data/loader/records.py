"""A batch of images as the stream yields it, counts of damaged records, and timing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from udl_dist.data.images.fitting import Pixels
from udl_dist.data.settings import DataSettings
from udl_dist.errors import DataError

I64 = NDArray[np.int64]
Allocate = Callable[[tuple[int, ...]], Pixels]
# More of them were slower on 16 cores: decoders hold Python's lock between two images.
MOST_THREADS = 4


@dataclass(frozen=True)
# Images stay bytes: a quarter of the memory and of the copy to the GPU of float32.
class Records:
    """One rank's share of a global batch."""

    images: Pixels  # uint8 [B, C, H, W]
    records: I64  # [B] record numbers over the indexes of all data sets
    keys: I64  # [B] random, from (seed, epoch, record)
    record_keys: I64  # [B] random, from (seed, record)
    labels: I64  # [B], -1: none
    damaged: dict[int, str] = field(default_factory=dict)  # cause by row, of replaced records


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


def unpinned(shape: tuple[int, ...]) -> Pixels:
    """Ordinary memory for a batch, not pinned for a GPU."""
    # Not zeroed: every row is written, or the batch is never used.
    return np.empty(shape, np.uint8)


def decode_threads(readers: int | str, workers: int = 0) -> int:
    """data.readers as a number, for each of the `workers` on this machine; 0: Ray says how many."""
    if isinstance(readers, int):
        return readers
    workers = workers or int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun sets it, too
    return max(1, min(MOST_THREADS, ((os.cpu_count() or 1) - 1) // workers))


class StageSeconds:
    """Seconds that all threads spent in each stage."""

    def __init__(self) -> None:
        self.seconds = {"read": 0.0, "decode": 0.0}
        self._lock = threading.Lock()

    def add(self, stage: str, since: float) -> float:
        """Add the time since `since` to a stage; return now."""
        now = time.perf_counter()
        # += on a dict entry is not atomic between threads.
        with self._lock:
            self.seconds[stage] += now - since
        return now

    def advice(self, settings: DataSettings, remote: bool, wait_share: float) -> str:
        """One line that names the slowest stage and what to change."""
        # What the readers are busy with, not what training waits for.
        stage, cores = max(self.seconds, key=self.seconds.__getitem__), os.cpu_count() or 1
        if stage == "read" and remote:
            cure = (
                "raise data.block_bytes or data.read_ahead_bytes, or set data.storage_cache_bytes"
            )
        elif stage == "read":
            cure = "put the shards on a faster disk, or set data.order = 'blocks'"
        elif (threads := decode_threads(settings.readers)) < cores:
            cure = f"raise data.readers from {threads} (there are {cores} cores)"
        else:
            sides = [settings.size] if isinstance(settings.size, int) else settings.size
            size = ",".join(map(str, sides))
            cure = f"pack the images at their training size: udl pack --size {size} --format raw"
        share = self.seconds[stage] / (sum(self.seconds.values()) or 1.0)
        waits = f"training waits {wait_share:.0%} of its time for data"
        return f"{waits}, the readers spend {share:.0%} of theirs to {stage}: {cure}"
