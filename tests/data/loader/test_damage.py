"""Damaged records: named and fatal, or replaced by a rule that every world follows, counted,
listed, limited.
"""

import os
from collections import Counter
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.loader import made
from udl_dist.data.loader.dataset import Dataset
from udl_dist.data.loader.reader import Stream
from udl_dist.data.settings import DataSettings
from udl_dist.data.shards.index import Index
from udl_dist.data.shards.indexing import index_shards
from udl_dist.errors import DataError

COUNTS = [20, 20, 20]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    index_shards(made.shards(tmp_path, COUNTS))
    return tmp_path


def opened(folder: Path, **changes: Any) -> Stream:
    settings: dict[str, Any] = {
        "size": 8,
        "channels": 1,
        "readers": 0,
        "damaged": "skip",
        "damaged_limit": 1.0,
        **changes,
    }
    return Stream([Dataset(Index.open(folder))], DataSettings(**settings), 0)


def flip(folder: Path, *records: int) -> None:
    """Change one bit of the payload of each record, leaving the time of the shard as it was."""
    index = Index.open(folder)
    for record in records:
        path = index.shard_path(int(index.shard_of(np.array([record]))[0]))
        status = os.stat(path)
        with open(path, "r+b") as file:
            file.seek(int(index.rows["offset"][record]) + 30)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 16]))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def records_of(stream: Stream, steps: int, world: int = 1, batch: int = 12) -> list[list[int]]:
    ranks = [stream.batches(0, batch, rank, world) for rank in range(world)]
    return [[int(record) for rank in ranks for record in next(rank).records] for _ in range(steps)]


@pytest.mark.parametrize("readers", [0, 2])
def test_skipped_records_are_replaced_alike_in_every_world(folder: Path, readers: int) -> None:
    before = records_of(opened(folder), 10)
    flip(folder, 3, 44)
    stream = opened(folder, readers=readers)
    after = records_of(stream, 10)
    assert {3, 44} <= set(chain.from_iterable(before)) and not {3, 44} & set(
        chain.from_iterable(after)
    )
    replaced = {
        one: other
        for old, new in zip(before, after, strict=True)
        for one, other in zip(old, new, strict=True)
        if one != other
    }
    assert set(replaced) == {3, 44}
    for world in (2, 5):
        assert records_of(opened(folder, readers=readers), 10, world) == after
    assert sorted(line.split("key ")[1][:8] for line in stream.damage) == ["'000003'", "'000044'"]
    assert Counter(Counter(list(chain.from_iterable(after[:5]))).values())[1] >= 56


def test_substitutes_may_be_damaged_too(folder: Path) -> None:
    flip(folder, *range(0, 60, 2))
    stream = opened(folder)
    batches = list(islice(stream.batches(0, 12), 5))
    assert all(int(record) % 2 for batch in batches for record in batch.records)
    assert all(
        np.array_equal(image[0], made.pixels(int(record), 8, 8))
        for batch in batches
        for image, record in zip(batch.images, batch.records, strict=True)
    )
    assert sum(len(batch.damaged) for batch in batches) == 30 == len(stream.damage)


def test_too_many_damaged_records_are_refused(folder: Path) -> None:
    stream = opened(folder, damaged_limit=0.05)
    stream.refuse_damage(3, 10)
    with made.refusal(DataError, "4 of 60", "data.damaged_limit", "udl check"):
        stream.refuse_damage(4, 10)
    stream.refuse_damage(4, 100)


def test_damage_in_a_row_stops_across_batches(folder: Path) -> None:
    flip(folder, *range(10, 30))
    for most, passes in ((21, True), (20, False)):
        stream = opened(folder, damaged_in_a_row=most)
        if passes:
            assert sum(len(part.records) for part in stream.once(7)) == 60
        else:
            with pytest.raises(DataError, match="20 damaged records in a row: run udl check"):
                list(stream.once(7))


def test_a_shard_that_is_cut_off_while_it_is_read_loses_what_is_gone_and_nothing_else(
    folder: Path,
) -> None:
    """Touching a mapped page past the end of a file would kill the process: a SIGBUS."""
    path, index = folder / "000001.tar", Index.open(folder)
    stream = opened(folder)
    batches = stream.once(5)
    whole = list(islice(batches, 5))  # the shard is open now
    os.truncate(path, int(index.rows["offset"][30]) + 10)
    rest = list(batches)
    damaged = [
        5 * number + place + 25
        for number, batch in enumerate(rest)
        for place in sorted(batch.damaged)
    ]
    assert damaged == list(range(30, 40)) and not any(batch.damaged for batch in whole)
    assert all("was changed while it was read" in line for line in stream.damage)


def test_a_missing_or_shortened_shard_is_skipped_whole_and_named_once_a_record(
    folder: Path,
) -> None:
    (folder / "000002.tar").unlink()
    stream = opened(folder)
    parts = list(stream.once(6))
    assert sum(len(part.damaged) for part in parts) == 20
    assert len(stream.damage) == 1 and "is missing" in next(iter(stream.damage))


def test_a_shard_written_again_is_refused_and_a_copied_one_is_read(folder: Path) -> None:
    path = folder / "000000.tar"
    os.utime(path, (1, 1))
    assert sum(len(part.records) for part in opened(folder, damaged="stop").once(6)) == 60
    data = bytearray(path.read_bytes())
    rows = Index.open(folder).rows[:20]
    for row in rows:  # other images of the same sizes
        data[int(row["offset"]) + 30] ^= 1
    path.write_bytes(data)
    with made.refusal(
        DataError, repr(str(path)), "was changed after it was indexed", "index again"
    ):
        next(opened(folder, damaged="stop").once(6))
