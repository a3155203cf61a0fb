"""python -m tests.bench.fuzz --count 100000: mutated shards and indexes through everything that
reads them.

Each case mutates a tiny shard (headers, with their checksums put right half of the time; payloads;
its length) or its index, then indexes it, opens the index, reads and decodes the records, and
checks both. Only UdlError may come out, and a case may take 5 seconds at most. Each thousand has
a process of its own, whose crash or hang ends the bench; a seed makes the same cases again (--seed,
--first to see one again). Prints counts; ends with 1 if anything was found.
"""

import argparse
import contextlib
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import xxhash

from tests.data.loader.made import encoded, pixels, tar, walk
from udl_dist.data.checking.check import check
from udl_dist.data.images.coding import decode, encode
from udl_dist.data.settings import CheckSettings
from udl_dist.data.shards.index import NAME, PREAMBLE, Index
from udl_dist.data.shards.indexing import index_shards
from udl_dist.data.shards.reading import Shards, opened
from udl_dist.data.shards.tar import BLOCK
from udl_dist.errors import DataError, UdlError

MOST_SECONDS, EACH = 5.0, 1000
SHAPE = (1, 6, 6)
TELLING = [
    b"\0",
    b"\xff",
    b"\x80",
    b"/",
    b"0",
    b"7",
    b"L",
    b"x",
    b"g",
    b"S",
    b"5",
    b" ",
    b"9",
    b"../",
    b"\n",
    b"\xff" * 11,
    b"\x80" + bytes(6) + b"\xff" * 4,
    b"77777777777\0",
    b"00000000000\0",
]


def makings(folder: Path) -> list[tuple[bytes, bytes, list[int]]]:
    """Tiny shards, each with its index and the places of its headers."""
    small = pixels(1, 6, 6)
    images = {
        "png": encoded(small),
        "jpg": encoded(small, "JPEG"),
        "webp": encoded(small, "WEBP"),
        "npy": encode(small[None], "npy", 90),
    }
    made = []
    for place, (format, kinds) in enumerate(
        [(0, ["png", "npy"]), (1, ["jpg", "png"]), (2, ["webp", "npy", "png"])]
    ):
        members: dict[str, bytes] = {}
        for number, kind in enumerate(kinds):
            key = f"k{number}" + "long" * 30 * (number == 1 and format > 0)
            members |= {f"{key}.{kind}": images[kind], f"{key}.cls": str(number).encode()}
        path = tar(folder / f"{place}" / "0.tar", members, format)
        index = index_shards([path]).path.read_bytes()
        with opened(str(path)) as (data, _):
            headers = [member.offset - BLOCK for member in walk(path, data)]
        data_bytes = path.read_bytes()
        made.append(
            (
                data_bytes[: len(data_bytes.rstrip(b"\0")) // BLOCK * BLOCK + 3 * BLOCK],
                index,
                headers,
            )
        )
    return made


def mutate(data: bytearray, chance: Random, low: int, high: int) -> None:
    """Change some bytes between two places: flipped, set, or copied from elsewhere."""
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        at = chance.randrange(low, high)
        kind = chance.randrange(4)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at] = chance.randrange(256)
        elif kind == 2:
            telling = chance.choice(TELLING)[: high - at]
            data[at : at + len(telling)] = telling
        else:
            length, start = chance.randrange(1, 64), chance.randrange(len(data))
            piece = bytes(data[start : start + min(length, high - at)])
            data[at : at + len(piece)] = piece


def mutated_header(data: bytearray, headers: list[int], chance: Random) -> None:
    """A header, in its fields mostly, with the checksum put right half of the time."""
    at = chance.choice([0, *headers])
    low, high = chance.choice(
        [(0, 100), (100, 156), (124, 136), (124, 136), (156, 157), (257, 265), (345, 500)]
    )
    mutate(data, chance, at + low, at + high)
    if chance.random() < 0.5:
        block = data[at : at + BLOCK]
        total = sum(block) - sum(block[148:156]) + 8 * 32
        data[at + 148 : at + 156] = b"%06o\0 " % total


def mutated_blocks(data: bytearray, chance: Random) -> None:
    """The shard as a whole: cut, a block wiped, left out, doubled or put elsewhere."""
    kind, at = chance.randrange(5), chance.randrange(len(data) // BLOCK) * BLOCK
    other = chance.randrange(len(data) // BLOCK) * BLOCK
    if kind == 0:
        del data[chance.randrange(len(data)) :]
    elif kind == 1:
        data[at : at + BLOCK] = bytes(BLOCK)
    elif kind == 2:
        del data[at : at + BLOCK]
    elif kind == 3:
        data[at:at] = data[other : other + BLOCK]
    else:
        data[at : at + BLOCK] = data[other : other + BLOCK]


def mutated_index(index: bytearray, chance: Random) -> None:
    """The index; half of the time with the header's checksum put right, so that what it says is
    believed.
    """
    header_bytes = PREAMBLE.unpack(index[: PREAMBLE.size])[2]
    end = PREAMBLE.size + header_bytes
    kind = chance.randrange(4)
    if kind == 0:
        del index[chance.randrange(len(index)) :]
    elif kind == 1:
        mutate(index, chance, end, len(index))
    else:
        mutate(index, chance, PREAMBLE.size if kind == 2 else 0, end)
        if kind == 2:
            index[16:24] = xxhash.xxh3_64_intdigest(bytes(index[PREAMBLE.size : end])).to_bytes(
                8, "little"
            )


def case(
    made: list[tuple[bytes, bytes, list[int]]], folder: Path, chance: Random
) -> list[Callable[[], Any]]:
    """Write a mutated shard and its index; give what is to be tried on them."""
    shard, written, headers = chance.choice(made)
    data, index = bytearray(shard), bytearray(written)
    kind = chance.randrange(4)
    if kind == 0:
        mutated_header(data, headers, chance)
    elif kind == 1:
        mutate(data, chance, 0, len(data))
    elif kind == 2:
        mutated_blocks(data, chance)
    else:
        mutated_index(index, chance)
    path = folder / "0.tar"
    path.write_bytes(data)
    (folder / NAME).write_bytes(index)
    decoded = kind < 2 or chance.random() < 0.1
    tries: list[Callable[[], Any]] = [
        lambda: check(str(folder), CheckSettings(decode=decoded, threads=1))
    ]
    if kind == 3:
        return [lambda: read(folder), *tries]
    return [lambda: index_shards([path], folder / "again.udl"), lambda: read_again(path), *tries]


def read(folder: Path) -> None:
    """Every record of an index as training reads it."""
    index = Index.open(folder)
    loaded = Shards(index).load(np.arange(min(index.records, 9)))
    for record, payload in enumerate(loaded.payloads):
        index.key(record)
        if record in loaded.faults:
            raise DataError(loaded.faults[record])
        decode(payload, SHAPE, "crop")


def read_again(path: Path) -> None:
    """What a mutated shard holds, decoded without the checksums that would stop it."""
    with opened(str(path)) as (data, _):
        for member in walk(path, data):
            with contextlib.suppress(UdlError):
                decode(
                    data[member.offset : member.offset + min(member.length, 2**20)], SHAPE, "crop"
                )


def run_cases(seed: int, first: int, count: int) -> dict[str, int]:
    """Run cases in this process; what is foreign or slow is printed with its number."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        made = makings(Path(folder))
        for number in range(first, first + count):
            began = time.monotonic()
            for attempt in case(made, Path(folder), Random(seed * 2**32 + number)):
                counts[_outcome(attempt, number)] += 1
            if time.monotonic() - began > MOST_SECONDS:
                counts["slow"] += 1
                print(f"case {number} took {time.monotonic() - began:.1f} s", file=sys.stderr)
            counts["cases"] += 1
    return counts


def _outcome(attempt: Callable[[], Any], number: int) -> str:
    try:
        attempt()
    except UdlError as error:
        if str(error).isprintable():
            return "refused"
        print(f"case {number}: {error!r} is not one printable line", file=sys.stderr)
        return "unprintable"
    except Exception:
        print(f"case {number}: {traceback.format_exc()}", file=sys.stderr)
        return "foreign"
    return "accepted"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("--count", 100_000), ("--seed", 0), ("--first", 0)):
        parser.add_argument(name, type=int, default=default)
    asked = parser.parse_args()
    counts, began, end = Counter[str](), time.monotonic(), asked.first + asked.count
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
        for first in range(asked.first, end, EACH):
            print(f"cases from {first}", file=sys.stderr)
            cases = pool.submit(run_cases, asked.seed, first, min(EACH, end - first))
            counts.update(cases.result(60 + EACH))
    print(f"{dict(counts)} in {time.monotonic() - began:.0f} s")
    sys.exit(any(counts[bad] for bad in ("slow", "foreign", "unprintable")))


if __name__ == "__main__":
    main()
