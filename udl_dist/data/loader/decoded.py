"""Decoded pixels in memory: filled as records are first read, copied from there in later epochs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from udl_dist.data.images.fitting import Pixels
from udl_dist.data.images.headers import Shape
from udl_dist.data.loader.records import I64
from udl_dist.data.settings import DataSettings

# Of a number of bytes zeros, as many or fewer; ranks of one machine may share them.
Zeros = Callable[[int], NDArray[np.uint8]]
CHECK_BYTES = 2**26  # filled between two looks at what memory is left
RESERVE = 1 / 8  # of the memory, which decoded rows leave to others


class DecodedRows:
    """The first records of a stream as pixels, as many as fit into its memory.

    Safe for any number of threads and, in shared memory, processes: two that fill the same row
    write the same bytes, and a row counts as filled only after its bytes are there.
    """

    on_device = False  # a batch is complete when it is loaded

    def __init__(self, records: int, shape: Shape, zeros: Zeros) -> None:
        row_bytes = int(np.prod(shape)) + 1  # and the mark that it is filled
        memory = zeros(records * row_bytes)
        self.rows = len(memory) // row_bytes  # the records 0 … rows - 1 have a place
        self._marks = memory[: self.rows]
        self._pixels = memory[self.rows : self.rows * row_bytes].reshape(self.rows, *shape)
        self._unchecked, self._closed = 0, not self.rows

    def has(self, numbers: I64) -> NDArray[np.bool_]:
        """Which records are here. [B] -> [B]"""
        if not self.rows:
            return np.zeros(len(numbers), bool)
        found: NDArray[np.bool_] = np.take(self._marks, numbers, mode="clip") > 0
        return found & (numbers < self.rows)

    def take(self, numbers: I64, images: Pixels, rows: I64) -> None:
        """Copy records that are here into rows of a batch. [B], [N, C, H, W], [B]"""
        if len(rows) < len(images):
            images[rows] = self._pixels[numbers]
        else:  # all rows, the usual case: copied once; with mode "raise" NumPy would copy twice
            np.take(self._pixels, numbers, axis=0, out=images, mode="clip")

    def put(self, numbers: I64, images: Pixels, rows: I64) -> None:
        """Fill the places of records with rows of a batch, while memory is left. [B], …, [B]"""
        if self._closed:
            return
        inside = numbers < self.rows
        numbers = numbers[inside]
        self._pixels[numbers] = images[rows[inside]]
        self._marks[numbers] = 1  # last: another thread may look at any time
        self._unchecked += numbers.size * images[0].size
        # Zeros take memory only when they are written, and others may want it meanwhile.
        if self._unchecked > CHECK_BYTES:
            self._unchecked = 0
            free, whole = memory_bytes()
            self._closed = free < RESERVE * whole


# Of a number of records and their shape, a place for them.
MakeRows = Callable[[int, Shape], DecodedRows]


def nothing_decoded(records: int, shape: Shape) -> DecodedRows:
    """Nothing stays decoded, as where each record is read once."""
    return DecodedRows(records, shape, lambda _: np.zeros(0, np.uint8))


def decoded_bytes(settings: DataSettings, wanted: int, free: int | None = None) -> int:
    """How many of the `wanted` bytes decoded rows may take of the memory that is free.

    Without `free`, of this machine's memory now.
    """
    # A random crop is cut from the whole image, which only its encoded bytes have.
    if settings.random_crop < 1:
        return 0
    free = memory_bytes()[0] if free is None else free
    if isinstance(settings.decoded_bytes, str):  # auto
        return min(wanted, free // 2)
    asked = min(wanted, settings.decoded_bytes)
    return asked if asked <= free else 0


def decoded_here(settings: DataSettings) -> MakeRows:
    """Rows in memory of this process alone."""

    def zeros(wanted: int) -> NDArray[np.uint8]:
        return np.zeros(decoded_bytes(settings, wanted), np.uint8)

    return lambda records, shape: DecodedRows(records, shape, zeros)


def memory_bytes() -> tuple[int, int]:
    """Free memory and all memory of this machine, or of the container that this process is in."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free, whole = (int(lines[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError):  # not Linux: what is free is not known
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return whole // 4, whole
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        # Pages of files count as used, but the kernel gives them back when memory is short.
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(stat["inactive_file"])
    except (OSError, ValueError, KeyError):  # no such limit ("max"), or an older kernel's
        return free, whole
    return min(free, max(0, limit - used)), min(whole, limit)
