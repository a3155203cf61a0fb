"""Shards with one damage each, of five kinds, and what a check of them must say; for `damage` and
for the tests.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np

from tests.data.loader.made import encoded, pixels, tar, walk
from udl_dist.data.checking.check import check
from udl_dist.data.settings import CheckSettings
from udl_dist.data.shards.index import NAME, Index
from udl_dist.data.shards.indexing import index_shards
from udl_dist.data.shards.reading import opened
from udl_dist.data.shards.tar import BLOCK


class Base(NamedTuple):
    """A whole indexed shard: where it is, its bytes, its headers' places, and its records."""

    path: Path
    data: bytes
    headers: list[int]
    spans: list[tuple[int, int]]  # of images
    keys: list[str]


class Outcome(NamedTuple):
    """What a check of a damaged shard said."""

    noticed: bool
    named: bool  # shard and byte or key are those that were damaged
    # readable by the index + lost = indexed, and readable are those whose bytes are the same
    exact: bool


def base(folder: Path, records: int = 24) -> Base:
    """A shard of PNGs and labels, among them long keys, and its index."""
    members = {}
    for number in range(records):
        key = f"{number:04d}" if number % 6 else f"{number:04d}-{'long' * 40}"
        members[f"{key}.png"] = encoded(pixels(number, 20, 20))
        members[f"{key}.cls"] = str(number).encode()
    path = tar(folder / "000000.tar", members)
    index = index_shards([path])
    with opened(str(path)) as (data, _):
        headers = [member.offset - BLOCK for member in walk(path, data)]
    spans = [(int(row["offset"]), int(row["offset"] + row["length"])) for row in index.rows]
    return Base(
        path, path.read_bytes(), headers, spans, [index.key(record) for record in range(records)]
    )


def flipped_header(base: Base, chance: Random) -> tuple[bytes, int]:
    """One byte of a header, in a field that carries something."""
    data, at = bytearray(base.data), chance.choice(base.headers)
    place = at + chance.choice(
        [*range(4), *range(100, 107), *range(124, 135), *range(148, 154), 156, *range(257, 262)]
    )
    data[place] ^= chance.randrange(1, 256)
    # the checksum's leading zero as a blank: the same number
    if place == at + 148 and data[place] in b" \t\n\r\v\f":
        return flipped_header(base, chance)
    return bytes(data), at


def zeroed_block(base: Base, chance: Random) -> tuple[bytes, int]:
    """A block that was not zeros."""
    while True:
        at = chance.randrange(len(base.data) // BLOCK) * BLOCK
        if any(base.data[at : at + BLOCK]):
            return base.data[:at] + bytes(BLOCK) + base.data[at + BLOCK :], at


def truncated(base: Base, chance: Random) -> tuple[bytes, int]:
    at = chance.randrange(1, len(base.data))
    return base.data[:at], at


def without_end_mark(base: Base, chance: Random) -> tuple[bytes, int]:
    end = len(base.data.rstrip(b"\0"))
    at = -(-end // BLOCK) * BLOCK + chance.choice([0, BLOCK])
    return base.data[:at], at


def flipped_payload(base: Base, chance: Random) -> tuple[bytes, int]:
    start, end = chance.choice(base.spans)
    data, at = bytearray(base.data), chance.randrange(start, end)
    data[at] ^= 1 << chance.randrange(8)
    return bytes(data), at


KINDS: dict[str, Callable[[Base, Random], tuple[bytes, int]]] = {
    "one byte of a header flipped": flipped_header,
    "a block zeroed": zeroed_block,
    "truncated at any byte": truncated,
    "no end mark": without_end_mark,
    "one bit of a payload flipped": flipped_payload,
}


def inflict(base: Base, kind: str, folder: Path, seed: int) -> Outcome:
    """Damage a copy of the shard and check it against the index of the whole one."""
    data, at = KINDS[kind](base, Random(seed))
    folder.mkdir(exist_ok=True)
    shutil.copy(base.path.parent / NAME, folder)
    (folder / base.path.name).write_bytes(data)
    found = check(str(folder), CheckSettings(threads=1))
    same = np.array([data[start:end] == base.data[start:end] for start, end in base.spans])
    lost = {entry.key.strip("'") for entry in found.damage if entry.lost}
    keys = {
        key if len(key) <= 60 else key[:50] + "..."
        for key, whole in zip(base.keys, same, strict=True)
        if not whole
    }
    named = all(str(folder / base.path.name) == entry.shard for entry in found.damage)
    # a cut is named by sizes; its byte is where the last whole member ends
    if len(data) == len(base.data):
        named &= any(entry.at <= at for entry in found.damage)
    exact = (
        found.readable + found.lost == found.indexed == len(base.keys)
        and found.readable == same.sum()
    )
    return Outcome(found.exit_code == 3, named and lost == keys, bool(exact))


def rows_of(base: Base) -> Index:
    """The index of the whole shard."""
    return Index.open(base.path.parent)
