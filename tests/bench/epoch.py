"""python -m tests.bench.epoch: an epoch of 1 G records shared by 512 ranks, each record once; exits
1 if not.

What each rank plans to load is worked out by the stream's own code for the whole epoch, and each
number is marked in a bitmap of a bit a record: as many numbers as records, all of them below that,
and every bit set is each record once. Also, for single ranks in a process each: seconds and
memory from opening the index to the first plan.

The index is virtual: a real header of 10,000 shards over a file of 36 GB that is holes, but for the
rows whose lengths a stream looks at. No payload is read. `--records 1e6 --order blocks --world 64`
makes it small.
"""

import argparse
import dataclasses
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udl_dist.data.loader.dataset import LOOKED_AT, Dataset
from udl_dist.data.loader.reader import Stream
from udl_dist.data.settings import DataSettings
from udl_dist.data.shards.index import NAME, ROW, About, Index, Shard
from udl_dist.data.shards.indexing import _write_header

WORLD, IMAGES = 512, 128  # ranks, and images of one of them in a step
RECORDS, SHARDS, KEY_BYTES, RECORD_BYTES = 1_000_000_000, 10_000, 4, 100_000
LOOKED = (0, 255, 511)  # ranks measured alone
MOST_BYTES, MOST_SECONDS = 100e6, 1.0


def virtual(folder: Path, records: int, shards: int) -> Path:
    """An index of so many records that takes next to no disk."""
    edges = np.arange(shards + 1) * records // shards
    each = enumerate(np.diff(edges).tolist())
    listed = [
        dataclasses.astuple(
            Shard(f"{number:06d}.tar", RECORD_BYTES * count, count, KEY_BYTES * count, "", 0)
        )
        for number, count in each
    ]
    header = {
        "about": dataclasses.asdict(About(source="made")),
        "fingerprint": "0" * 32,
        "shards": listed,
    }
    with (folder / NAME).open("wb") as file:
        _write_header(file, header)
        file.truncate(file.tell() + records * (ROW.itemsize + KEY_BYTES))
    start = Index.open(folder)._rows_start
    row = np.zeros(1, ROW)
    row["length"] = RECORD_BYTES
    with (folder / NAME).open("r+b") as file:
        for record in range(0, records, max(1, records // LOOKED_AT)):
            file.seek(start + record * ROW.itemsize)
            file.write(row.tobytes())
    return folder


def opened(folder: Path, order: str) -> Stream:
    settings = DataSettings(str(folder), size=64, channels=1, readers=0, order=order)  # type: ignore[arg-type]
    return Stream([Dataset(Index.open(folder))], settings, 0)


def shares(stream: Stream, rank: int, world: int, batch: int) -> NDArray[np.int64]:
    """The numbers that a rank loads in the first epoch, in order; its last batch may reach into the
    next one.
    """
    steps = -(-stream.records // batch)
    plans = stream._plans(0, batch, rank, world)
    both = [(plan.numbers[plan.epochs == 0]) for plan, _ in zip(plans, range(steps), strict=False)]
    return np.concatenate(both)


def marked(
    folder: Path, order: str, world: int, batch: int, ranks: range
) -> tuple[NDArray[np.uint8], int, list[float]]:
    """The bitmap of what some ranks load, how many numbers that were, and the seconds of each
    rank.
    """
    stream = opened(folder, order)
    bits, count, taken = np.zeros(-(-stream.records // 8), np.uint8), 0, []
    for rank in ranks:
        began = time.process_time()
        numbers = shares(stream, rank, world, batch)
        taken.append(time.process_time() - began)
        assert numbers.min() >= 0 and numbers.max() < stream.records
        np.bitwise_or.at(bits, numbers >> 3, (1 << (numbers & 7)).astype(np.uint8))
        count += len(numbers)
    return bits, count, taken


def counted(
    folder: Path, order: str, world: int, batch: int, processes: int
) -> tuple[int, int, list[float]]:
    """Records that are loaded by any rank, numbers that are loaded in all, and the CPU seconds of
    each rank.
    """
    parts = [
        range(world * part // processes, world * (part + 1) // processes)
        for part in range(processes)
    ]
    if processes == 1:
        found = [marked(folder, order, world, batch, parts[0])]
    else:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(partial(marked, folder, order, world, batch), parts))
    bits = np.bitwise_or.reduce([part[0] for part in found])
    return (
        int(np.bitwise_count(bits).sum()),
        sum(part[1] for part in found),
        [each for part in found for each in part[2]],
    )


def private_bytes() -> int:
    """Memory that is this process's alone: pages of mapped files are the kernel's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def starting(folder: Path, order: str, rank: int, world: int, batch: int) -> tuple[float, int]:
    """Seconds and growth of own memory from nothing to the first plan in the middle of the
    epoch.
    """
    before, began = private_bytes(), time.perf_counter()
    stream = opened(folder, order)
    next(stream._plans(stream.records // 2, batch, rank, world))
    return time.perf_counter() - began, private_bytes() - before


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--records", type=float, default=RECORDS)
    asked.add_argument("--world", type=int, default=WORLD)
    asked.add_argument("--order", choices=("full", "blocks"), action="append")
    asked.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = asked.parse_args()
    records, world, missed = int(given.records), given.world, 0
    with tempfile.TemporaryDirectory() as name:
        folder = virtual(Path(name), records, min(SHARDS, records // 100))
        file = (folder / NAME).stat()
        print(
            f"{records:,} records, {world} ranks of {IMAGES} images a step; an index of"
            f" {file.st_size / 1e9:.1f} GB, {file.st_blocks * 512 / 1e6:.1f} MB of it on disk; load"
            f" {os.getloadavg()[0]:.0f}"
        )
        for order in given.order or ("full", "blocks"):
            for rank in [rank for rank in LOOKED if rank < world]:
                seconds, grown = in_process(starting, folder, order, rank, world, world * IMAGES)
                fine = seconds < MOST_SECONDS and grown < MOST_BYTES
                missed += not fine
                print(
                    f"{order:7} rank {rank:3}: first plan {seconds:.3f} s, {grown / 1e6:.1f} MB of"
                    f" own memory{'' if fine else '  MISSED'}",
                    flush=True,
                )
            began = time.perf_counter()
            distinct, loaded, taken = counted(folder, order, world, world * IMAGES, given.processes)
            fine = distinct == loaded == records
            missed += not fine
            print(
                f"{order:7} {loaded:,} loaded, {distinct:,} different, {records - distinct:,}"
                f" missing: {'each once' if fine else 'MISSED'}; the order takes a rank"
                f" {np.median(taken):.2f} s of CPU, at most {max(taken):.2f}"
                f" ({time.perf_counter() - began:.0f} s here)",
                flush=True,
            )
    print(f"missed: {missed}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
