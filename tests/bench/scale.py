"""python -m tests.bench.scale: an index of 100 M records in 10,000 shards, opened, ordered,
resumed; exits 1 on a miss.

The index is written as `udl index` joins it, from parts; the shards are 10,000 links to one real
tar of 10,000 tiny images, so that a resume reads real records. Only the keys' hashes are drawn
instead of computed. Each figure comes from a process of its own; "cold" has the index dropped from
the page cache before. Takes 5 GB below the folder for temporary files, and a few minutes.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from tests.bench import resume
from udl_dist.core.rng import mix64
from udl_dist.data.loader.opening import Prepared, open_streams
from udl_dist.data.loader.reader import Stream
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.settings import DataSettings
from udl_dist.data.shards.index import NAME, About, Index, Shard
from udl_dist.data.shards.indexing import Part, index_shards, write_index, write_part

SHARDS, EACH = 10_000, 10_000
BATCH, TURNS = 64, 5
OPEN_SECONDS, OPEN_BYTES, RESUME_SECONDS, PLACE_SECONDS = 1.0, 100e6, 0.05, 20e-6


def written(folder: Path, shards: int = SHARDS) -> None:
    """The links and their index."""
    (folder / "one").mkdir(parents=True)
    tar = resume.tar_of(folder / "one" / "0.tar", 0, EACH)
    one = index_shards([tar])
    (folder / "parts").mkdir()
    (folder / "shards").mkdir()
    parts = []
    for number in range(shards):
        (folder / "shards" / f"{number:06d}.tar").symlink_to(tar)
        parts.append(folder / "parts" / f"{number:06d}.part")
        _part(parts[-1], number, one)
    write_index(
        folder / "shards" / NAME, About(source="made", format="npy", shape=(1, 8, 8)), parts
    )
    shutil.rmtree(folder / "parts")


def _part(path: Path, number: int, one: Index) -> None:
    rows = one.rows.copy()
    numbers = np.arange(number * EACH, (number + 1) * EACH)
    rows["key_hash"] = mix64(numbers.astype(np.uint64))
    rows["key_end"] = np.arange(9, 9 * EACH + 1, 9)
    keys = (
        (numbers[:, None] // 10 ** np.arange(8, -1, -1) % 10 + ord("0")).astype(np.uint8).tobytes()
    )
    shard = Shard(
        f"{number:06d}.tar",
        one.shards[0].shard_bytes,
        EACH,
        len(keys),
        xxhash.xxh3_64_hexdigest(rows.tobytes()),
        0,
        one.shards[0].stamp,
    )
    write_part(path, Part(shard, rows.tobytes(), keys))


def resident() -> int:
    """Bytes that the process has in memory, mapped pages included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def own() -> int:
    """Bytes that the process has for itself: pages of mapped files are the kernel's, and it may
    take them back.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measured(act: Callable[[], Any]) -> tuple[float, int]:
    """Seconds, and growth of memory."""
    before, began = resident(), time.perf_counter()
    kept = act()
    taken = time.perf_counter() - began
    grown = resident() - before
    del kept
    return taken, grown


def forgotten(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def remembered(path: Path) -> None:
    """Bring a file into the page cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(2**24):
            pass


def prepared(folder: Path, fraction: float, order: str) -> Prepared:
    settings = DataSettings(
        str(folder / "shards"),
        size=8,
        channels=1,
        readers=0,
        held_out_fraction=fraction,
        order=order,  # type: ignore[arg-type]
        cache=str(folder / "cache"),
    )
    return Prepared(settings, (str(folder / "shards" / NAME),), ("",), (fraction,))


def opening(folder: Path) -> tuple[float, int]:
    return measured(lambda: Index.open(folder / "shards"))


def preparing(folder: Path) -> tuple[float, int]:
    return measured(lambda: prepare(prepared(folder, 0.0, "full").settings))


def constructing(folder: Path, fraction: float, order: str) -> tuple[float, int]:
    return measured(lambda: open_streams(prepared(folder, fraction, order), 0))


def ordering(folder: Path, order: str) -> tuple[float, float]:
    """Seconds of one place asked for alone, and of one among 4,096."""
    stream, _ = open_streams(prepared(folder, 0.0, order), 0)
    chance = np.random.default_rng(0)

    def each(places: int, times: int) -> float:
        wanted = [chance.integers(0, stream.records, places) for _ in range(times)]
        stream._at(wanted[0])
        began = time.perf_counter()
        for positions in wanted:
            stream._at(positions)
        return (time.perf_counter() - began) / times / places

    return each(1, 200), each(4096, 20)


def resuming(folder: Path, fraction: float, order: str) -> tuple[dict[int, float], int]:
    """Median seconds from the opened index to the first batch by percent of the epoch, and growth
    of own memory.
    """
    before, taken = own(), {}
    index_and_all = open_streams(prepared(folder, fraction, order), 0)[0]
    for percent in (1, 50, 99):
        times = []
        for turn in range(TURNS):
            stream = Stream(index_and_all.datasets, index_and_all.settings, turn)
            began = time.perf_counter()
            batch = next(stream.batches(stream.records * percent // 100, BATCH))
            times.append(time.perf_counter() - began)
            assert batch.images.shape == (BATCH, 1, 8, 8)
        taken[percent] = sorted(times)[TURNS // 2]
    return taken, own() - before


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


class Table:
    """Lines with a verdict."""

    missed = 0

    def line(self, name: str, text: str, fine: bool) -> None:
        self.missed += not fine
        print(f"{name:44}{text:44}{'reached' if fine else 'MISSED'}", flush=True)

    def opened(self, name: str, figures: tuple[float, int], bounded: bool = True) -> None:
        """A line of seconds and memory; `bounded`: both have goals."""
        seconds, grown = figures
        self.line(
            name,
            f"{seconds:8.3f} s {grown / 1e6:8.1f} MB",
            not bounded or (seconds < OPEN_SECONDS and grown < OPEN_BYTES),
        )

    def resumed(self, name: str, found: tuple[dict[int, float], int], bounded: bool = True) -> None:
        """A line of seconds by percent, and of memory after all of them."""
        taken, grown = found
        figures = ", ".join(f"{percent} %: {1000 * each:.0f}" for percent, each in taken.items())
        self.line(
            name,
            f"{figures} ms {grown / 1e6:8.1f} MB",
            grown < OPEN_BYTES and (not bounded or max(taken.values()) < RESUME_SECONDS),
        )


def main() -> None:
    table = Table()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds, grown = apart(_making, folder)
        table.line(
            "writing parts and joining them",
            f"{seconds:8.1f} s {grown / 1e6:8.1f} MB",
            grown < OPEN_BYTES,
        )
        forgotten(folder / "shards" / NAME)
        table.opened("Index.open, cold", apart(opening, folder))
        table.opened("Index.open", apart(opening, folder))
        table.opened("prepare", apart(preparing, folder))
        for fraction in (0.0, 0.1):
            if fraction:
                table.opened(
                    "both selections made, 10 % held out",
                    apart(constructing, folder, 0.1, "full"),
                    False,
                )
            for order in ("full", "blocks"):
                forgotten(folder / "shards" / NAME)
                label = f"{order}, {fraction:.0%} held out"
                table.opened(
                    f"open_streams, cold, {label}", apart(constructing, folder, fraction, order)
                )
                table.opened(f"open_streams, {label}", apart(constructing, folder, fraction, order))
                forgotten(folder / "shards" / NAME)
                table.resumed(
                    f"resume, cold, {label}",
                    apart(resuming, folder, fraction, order),
                    bounded=False,
                )
                remembered(folder / "shards" / NAME)
                table.resumed(f"resume, {label}", apart(resuming, folder, fraction, order))
        for order in ("full", "blocks"):
            alone, among = apart(ordering, folder, order)
            table.line(
                f"a place of {order}",
                f"alone {alone * 1e6:.0f} µs, among 4,096 {among * 1e6:.2f} µs",
                among < PLACE_SECONDS,
            )
    print(f"missed: {table.missed}")
    sys.exit(bool(table.missed))


def _making(folder: Path) -> tuple[float, int]:
    return measured(lambda: written(folder))


if __name__ == "__main__":
    main()
