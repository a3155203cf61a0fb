"""Decoded rows: the same batches and the same damage as without them, from less work."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.loader import made
from tests.data.loader.test_damage import COUNTS, flip
from tests.data.loader.test_reader import same
from udl_dist.data.iterables import Batches
from udl_dist.data.loader.dataset import Dataset
from udl_dist.data.loader.decoded import (
    DecodedRows,
    MakeRows,
    decoded_bytes,
    memory_bytes,
    nothing_decoded,
)
from udl_dist.data.loader.reader import Stream
from udl_dist.data.loader.records import Records
from udl_dist.data.settings import DataSettings
from udl_dist.data.shards.index import Index
from udl_dist.data.shards.indexing import index_shards
from udl_dist.errors import DataError, UsageError

RECORDS, BATCH = sum(COUNTS), 14  # no epoch ends with a batch
ROW = 6 * 6 + 1  # bytes of a record with its mark


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    index_shards(made.shards(tmp_path, COUNTS))
    return tmp_path


def opened(folder: Path, decoded: MakeRows, **changes: Any) -> Stream:
    # Resized, so that a mirrored image would differ from the mirror of a decoded one.
    settings: dict[str, Any] = {"size": 6, "channels": 1, "readers": 0, "flip": True, **changes}
    return Stream([Dataset(Index.open(folder))], DataSettings(**settings), 0, decoded=decoded)


def some(records: int) -> MakeRows:
    """Memory for so many records, whatever is asked for."""
    return lambda asked, shape: DecodedRows(
        asked, shape, lambda wanted: np.zeros(min(wanted, records * ROW), np.uint8)
    )


def batches(stream: Stream, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Records]:
    return stream.batches(start, BATCH, rank, world)


@pytest.mark.parametrize(("records", "world", "readers"), [(17, 3, 2), (RECORDS, 1, 0)])
def test_batches_are_the_same_from_the_start_and_from_the_middle(
    folder: Path, records: int, world: int, readers: int
) -> None:
    for rank in range(world):
        without = [*islice(batches(opened(folder, nothing_decoded), 0, rank, world), 14)]
        for start in (0, 5):
            stream = opened(folder, some(records), readers=readers)
            now = islice(batches(stream, start * BATCH, rank, world), 14 - start)
            assert all(same(one, two) for one, two in zip(without[start:], now, strict=True))


def test_later_epochs_read_nothing_and_a_pass_in_order_neither(folder: Path) -> None:
    straight = [*opened(folder, nothing_decoded).once(BATCH)]
    stream = opened(folder, some(RECORDS))
    reader = batches(stream)
    list(islice(reader, RECORDS // BATCH + 1))
    flip(folder, *range(RECORDS))  # noticed where a record enters, and not again
    assert len([*islice(reader, 10)]) == 10
    assert all(same(one, two) for one, two in zip(straight, stream.once(BATCH), strict=True))
    with pytest.raises(DataError):
        next(batches(opened(folder, nothing_decoded)))


def test_damage_is_noticed_at_the_first_read_and_replaced_alike_in_each_epoch(folder: Path) -> None:
    flip(folder, 3, 44)
    skip: dict[str, Any] = {"damaged": "skip", "damaged_limit": 1.0}
    streams = [opened(folder, rows, **skip) for rows in (nothing_decoded, some(RECORDS))]
    for one, two in zip(*(islice(batches(stream), 20) for stream in streams), strict=True):
        assert same(one, two)
    assert list(streams[0].damage) == list(streams[1].damage) != []
    with pytest.raises(DataError, match="does not match its checksum"):
        list(islice(batches(opened(folder, some(RECORDS))), 5))


def test_another_epoch_of_a_weighted_mixture_is_the_same_too(folder: Path, tmp_path: Path) -> None:
    sets = [Dataset(Index.open(folder)), Dataset(Index.open(folder)).part(20)]
    settings = DataSettings(size=6, channels=1, readers=0)
    with_and_without = (
        islice(batches(Stream(sets, settings, 0, (1.0, 3.0), decoded=rows)), 30)
        for rows in (nothing_decoded, some(70))
    )
    assert all(same(one, two) for one, two in zip(*with_and_without, strict=True))


def test_memory_is_asked_for_within_what_is_free() -> None:
    free, whole = memory_bytes()
    assert 0 < free <= whole
    few, many = 1000, 1 << 60
    assert decoded_bytes(DataSettings(), few) == few
    assert 0 < decoded_bytes(DataSettings(), many) < free * 0.6
    assert decoded_bytes(DataSettings(decoded_bytes=400), few) == 400
    assert decoded_bytes(DataSettings(decoded_bytes=many), few) == few
    assert decoded_bytes(DataSettings(decoded_bytes=many), many) == 0
    assert decoded_bytes(DataSettings(decoded_bytes=0), few) == 0
    # A random crop is of the whole image.
    assert decoded_bytes(DataSettings(random_crop=0.5), few) == 0
    with pytest.raises(UsageError, match=r"data\.decoded_bytes = 'half': say a number, or auto"):
        DataSettings(decoded_bytes="half")


def test_batches_for_other_loops_keep_decoded_rows(folder: Path) -> None:
    made = Batches(str(folder), BATCH, size=6, channels=1)
    list(islice(made, RECORDS // BATCH + 1))
    assert made.stream.loader.decoded.has(np.arange(RECORDS)).all()
