"""How long a resume takes within an epoch of a million records: opening the index, the order, and
the first batch.
"""

from __future__ import annotations

import io
import statistics
import time
from pathlib import Path

import numpy as np

from udl_dist.data.loader.opening import open_streams
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.settings import DataSettings

RECORDS, SHARDS, TURNS, BATCH = 1_000_000, 10, 5, 64
RECORD_BYTES = 1024  # a header and one block


def million(folder: Path) -> Path:
    """A million tiny npy images in ten tars, laid out by arithmetic: a tar writer would take
    minutes.
    """
    folder.mkdir(parents=True)
    each = RECORDS // SHARDS
    for shard in range(SHARDS):
        tar_of(folder / f"{shard:06d}.tar", shard * each, each)
    return folder


def tar_of(path: Path, first: int, records: int) -> Path:
    """A tar of numbered images."""
    stream = io.BytesIO()
    np.save(stream, np.arange(64, dtype=np.uint8).reshape(1, 8, 8))
    payload = stream.getvalue()
    table = np.zeros((records, RECORD_BYTES), np.uint8)
    table[:, 512 : 512 + len(payload)] = np.frombuffer(payload, np.uint8)
    table[:, :512] = np.frombuffer(header(len(payload)), np.uint8)
    numbers = np.arange(first, first + records)
    table[:, :7] = numbers[:, None] // 10 ** np.arange(6, -1, -1) % 10 + ord("0")
    sums = table[:, :148].sum(1, dtype=np.int64) + 8 * 32 + table[:, 156:512].sum(1, dtype=np.int64)
    table[:, 148:154] = sums[:, None] // 8 ** np.arange(5, -1, -1) % 8 + ord("0")
    path.write_bytes(table.tobytes() + bytes(1024))
    return path


def header(size: int) -> bytes:
    """An ustar header but for its number and its checksum."""
    fields = (
        b"0000000.npy".ljust(100, b"\0")
        + b"0000644\0"
        + b"0000000\0" * 2
        + f"{size:011o}\0".encode()
    )
    return (
        (fields + b"00000000000\0" + b"000000\0 " + b"0").ljust(257, b"\0")
        + b"ustar\x0000"
        + bytes(247)
    )


def resume_seconds(source: Path) -> dict[int, float]:
    """Median seconds to the first batch, by percent of the epoch; prepared once, as every start
    does.
    """
    prepared = prepare(DataSettings(str(source), size=8, readers=0, held_out_fraction=0.0))
    taken: dict[int, list[float]] = {1: [], 50: [], 99: []}
    for _ in range(TURNS):
        for percent, times in taken.items():
            began = time.perf_counter()
            stream, _ = open_streams(prepared, 0)
            batches = stream.batches(RECORDS * percent // 100, BATCH)
            assert next(batches).images.shape == (BATCH, 1, 8, 8)
            times.append(time.perf_counter() - began)
            assert stream.records == RECORDS
    return {percent: statistics.median(times) for percent, times in taken.items()}
