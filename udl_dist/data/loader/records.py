"""A batch of images as the stream yields it, and timing."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from udl_dist.data.images.fitting import Pixels
from udl_dist.data.images.headers import Shape
from udl_dist.data.settings import DataSettings

I64 = NDArray[np.int64]
Allocate = Callable[[tuple[int, ...]], Pixels]
# More of them were slower on 16 cores: decoders hold Python's lock between two images.
MOST_THREADS = 4


@dataclass(frozen=True)
class KeysAhead:
    """The keys of several batches, one of which begins at `start`, to draw noise for all."""

    keys: I64
    start: int


@dataclass(frozen=True)
class OnDevice:
    """How decoded rows in a device's memory complete a batch there."""

    places: I64  # [B] of the records among those rows; -1: none
    stored: I64  # [B] 1: the row has the pixels, and the batch has none
    flipped: I64  # [B] 1: to be mirrored


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
    block: Pixels | None = None  # all of the above, numbers first, as it goes to a device
    on_device: OnDevice | None = None
    ahead: KeysAhead | None = None

    @staticmethod
    def empty(
        count: int,
        shape: Shape,
        allocate: Allocate,
        on_device: bool = False,
        ahead: KeysAhead | None = None,
    ) -> Records:
        """A batch to be filled, in one block of memory."""
        columns = 7 if on_device else 4
        numbers = columns * count * 8
        block = allocate((numbers + count * math.prod(shape),))
        rows = block[:numbers].view(np.int64).reshape(columns, count)
        images = block[numbers:].reshape(count, *shape)
        records, keys, record_keys, labels = rows[:4]
        rest = OnDevice(*rows[4:]) if on_device else None
        return Records(images, records, keys, record_keys, labels, {}, block, rest, ahead)


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
