"""The reader: the same global batches at any world size, from any position, with any number of
readers, or an error.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.loader import made
from tests.data.loader.made import pixels, refusal
from udl_dist.data.loader import order
from udl_dist.data.loader.dataset import Dataset
from udl_dist.data.loader.loading import BatchPlan, RecordSource
from udl_dist.data.loader.reader import Stream
from udl_dist.data.loader.records import Records
from udl_dist.data.packing.pack import pack
from udl_dist.data.settings import DataSettings, PackSettings
from udl_dist.data.shards.index import Index
from udl_dist.data.shards.indexing import index_shards
from udl_dist.errors import DataError

COUNTS = [7, 1, 13, 8]  # 29 records: no batch size here divides them
RECORDS = sum(COUNTS)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return index_shards(made.shards(tmp_path_factory.mktemp("shards"), COUNTS))


def open_stream(index: Index, seed: int = 0, **changes: Any) -> Stream:
    settings = {"size": 8, "channels": 1, "readers": 0, **changes}
    return Stream([Dataset(index)], DataSettings(**settings), seed)


def take(stream: Stream, position: int, batch: int, steps: int, world: int = 1) -> list[Records]:
    """The global batches of some steps, the shares of all ranks joined."""
    shares = [
        list(islice(stream.batches(position, batch, rank, world), steps)) for rank in range(world)
    ]
    return [joined([share[step] for share in shares]) for step in range(steps)]


def joined(parts: list[Records]) -> Records:
    names = ("images", "records", "keys", "record_keys", "labels")
    images, *rest = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
    return Records(images, rest[0], rest[1], rest[2], rest[3])


def same(first: Records, second: Records) -> bool:
    names = ("images", "records", "keys", "record_keys", "labels")
    arrays = all(np.array_equal(getattr(first, name), getattr(second, name)) for name in names)
    return arrays and first.damaged == second.damaged


def test_images_are_those_of_their_records(index: Index) -> None:
    for batch in take(open_stream(index), 0, 10, 6):
        assert batch.images.shape == (10, 1, 8, 8) and batch.images.dtype == np.uint8
        for image, record, label in zip(batch.images, batch.records, batch.labels, strict=True):
            assert label == record
            assert np.array_equal(image[0], pixels(int(record), 8, 8))


@pytest.mark.parametrize("readers", [0, 1, 3])
@pytest.mark.parametrize("world", [2, 3, 4, 7, 12])
def test_global_batch_is_the_same_at_any_world_size(index: Index, world: int, readers: int) -> None:
    alone = take(open_stream(index), 5, 10, 8)
    together = take(open_stream(index, readers=readers), 5, 10, 8, world)
    assert all(same(one, other) for one, other in zip(alone, together, strict=True))


def test_every_record_comes_once_an_epoch(index: Index) -> None:
    counted = np.concatenate([batch.records for batch in take(open_stream(index), 0, 10, RECORDS)])
    epochs = counted.reshape(-1, RECORDS)
    assert len(epochs) == 10
    assert all(Counter(epoch.tolist()) == Counter(range(RECORDS)) for epoch in epochs)
    assert len({epoch.tobytes() for epoch in epochs}) == 10


@pytest.mark.parametrize("position", [0, 1, 28, 29, 30, 1000, 29 * 10**12 + 7])
def test_resume_at_any_position_gives_the_tail(index: Index, position: int) -> None:
    stream = open_stream(index, flip=True)
    whole = take(stream, position, 3, 20)
    for step in (1, 7, 19):
        tail = take(stream, position + 3 * step, 3, 20 - step)
        assert all(same(one, other) for one, other in zip(whole[step:], tail, strict=True))


def test_places_planned_together_are_the_places_planned_alone(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = take(open_stream(index), 3, 10, 30, 3)
    monkeypatch.setattr("udl_dist.data.loader.reader.PLANNED", 1)
    assert all(
        same(one, other)
        for one, other in zip(whole, take(open_stream(index), 3, 10, 30, 3), strict=True)
    )


def test_batches_larger_than_the_data_and_ranks_without_a_share(index: Index) -> None:
    large = take(open_stream(index), 0, 70, 1)[0]
    assert Counter(Counter(large.records.tolist()).values()) == Counter({2: 17, 3: 12})
    shares = [
        next(open_stream(index, readers=1).batches(0, 2, rank, 3)).images.shape[0]
        for rank in range(3)
    ]
    assert sorted(shares) == [0, 1, 1]


@pytest.mark.parametrize("world", [1, 2, 3, 5, 40])
def test_once_gives_every_record_once_in_their_order(index: Index, world: int) -> None:
    stream = open_stream(index, flip=True, readers=world % 2)
    parts = [part for rank in range(world) for part in stream.once(4, rank, world)]
    assert [int(record) for part in parts for record in part.records] == list(range(RECORDS))
    assert all(
        np.array_equal(image[0], pixels(int(record), 8, 8))
        for part in parts
        for image, record in zip(part.images, part.records, strict=True)
    )
    assert max(len(part.records) for part in parts) <= 4


def test_keys_follow_the_key_of_a_record_and_not_its_number(tmp_path: Path) -> None:
    """The same records in other shards and with other numbers."""
    paths = made.shards(tmp_path / "b", [9, 20])[::-1]
    streams = [
        made.stream(tmp_path / "a", [29], flip=True),
        open_stream(index_shards(paths), flip=True),
    ]
    for batches in zip(*(take(stream, 0, 29, 3) for stream in streams), strict=True):
        sorts = [batch.labels.argsort() for batch in batches]
        assert not np.array_equal(batches[0].records[sorts[0]], batches[1].records[sorts[1]])
        for name in ("images", "keys", "record_keys"):
            first, second = (
                getattr(batch, name)[by] for batch, by in zip(batches, sorts, strict=True)
            )
            assert np.array_equal(first, second)
    epochs = take(streams[0], 0, 29, 2)
    by = [epoch.records.argsort() for epoch in epochs]
    assert np.array_equal(epochs[0].record_keys[by[0]], epochs[1].record_keys[by[1]])
    assert not np.intersect1d(epochs[0].keys, epochs[1].keys).size


def test_flips_mirror_another_half_of_the_images_each_epoch(index: Index) -> None:
    plain, flipped = (
        take(open_stream(index), 0, 29, 20),
        take(open_stream(index, flip=True), 0, 29, 20),
    )
    counts = []
    for one, other in zip(plain, flipped, strict=True):
        mirrored = order.flips(other.keys)
        assert np.array_equal(other.images[mirrored], one.images[mirrored, :, :, ::-1])
        assert np.array_equal(other.images[~mirrored], one.images[~mirrored])
        counts.append(int(mirrored.sum()))
    assert 0.4 < sum(counts) / (29 * 20) < 0.6


def test_seeds_give_other_orders(index: Index) -> None:
    first, second = (
        take(open_stream(index, 0), 0, 29, 1)[0],
        take(open_stream(index, 1), 0, 29, 1)[0],
    )
    assert not np.array_equal(first.records, second.records)
    assert not np.intersect1d(first.record_keys, second.record_keys).size


def test_selection_is_an_epoch_of_its_own(index: Index) -> None:
    chosen = np.array([1, 5, 8, 28])
    stream = Stream(
        [Dataset(index, chosen, "some")], DataSettings(size=8, channels=1, readers=0), 0
    )
    assert stream.records == 4
    for batch in take(stream, 0, 4, 3):
        assert sorted(batch.records.tolist()) == chosen.tolist() == sorted(batch.labels.tolist())
    assert np.concatenate([part.records for part in stream.once(3)]).tolist() == chosen.tolist()
    with pytest.raises(DataError, match="no record is left"):
        Stream([Dataset(index, chosen[:0])], DataSettings(size=8, channels=1), 0)


def test_fingerprint_names_images_and_shape_and_selection(index: Index) -> None:
    streams = [
        open_stream(index),
        open_stream(index, size=9),
        open_stream(index, fit="pad"),
        open_stream(index, channels=3),
        Stream([Dataset(index, np.arange(3), "three")], DataSettings(size=8, channels=1), 0),
    ]
    assert len({stream.fingerprint for stream in streams}) == 5
    assert open_stream(index, 5, readers=2, flip=True).fingerprint == streams[0].fingerprint


@pytest.mark.parametrize("shape", [(1, 16), (3, 16), (1, 12)])
@pytest.mark.parametrize("kind", ["npy", "raw", "png"])
def test_every_packed_format_gives_the_same_pixels(
    tmp_path: Path, kind: str, shape: tuple[int, int]
) -> None:
    images = np.stack([pixels(number, 16, 16, 3) for number in range(20)])
    np.save(tmp_path / "images.npy", images)
    pack(
        str(tmp_path / "images.npy"),
        str(tmp_path / kind),
        PackSettings(size=16, channels=3, format=kind),  # type: ignore[arg-type]
    )
    settings = DataSettings(size=shape[1], channels=shape[0], readers=0)  # type: ignore[arg-type]
    stream = Stream([Dataset(Index.open(tmp_path / kind / "train"))], settings, 0)
    expected = np.zeros((20, *stream.shape), np.uint8)
    pack(str(tmp_path / "images.npy"), str(tmp_path / "plain"), PackSettings(size=16, channels=3))
    plain = Stream([Dataset(Index.open(tmp_path / "plain" / "train"))], stream.settings, 0)
    for given_, wanted in zip(stream.once(20), plain.once(20), strict=True):
        assert (
            np.array_equal(given_.images, wanted.images) and given_.images.shape == expected.shape
        )
    if shape == (3, 16):
        keys = [int(stream.datasets[0].index.key(number)) for number in range(20)]
        assert np.array_equal(next(stream.once(20)).images, images[keys].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("readers", [0, 2])
def test_damage_reaches_the_consumer_by_name(tmp_path: Path, readers: int) -> None:
    paths = made.shards(tmp_path, COUNTS)
    stream = made.stream(tmp_path, COUNTS, readers=readers)
    data = bytearray(paths[2].read_bytes())
    offset = int(stream.datasets[0].index.rows["offset"][10])
    data[offset + 9] ^= 1
    paths[2].write_bytes(data)
    with refusal(DataError, repr(str(paths[2])), "byte", "'000010'", "checksum"):
        list(stream.once(4))
    assert _threads() == 0


def test_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    path = made.tar(tmp_path / "a.tar", {"page.jpg": b"<!DOCTYPE html>" * 9})
    stream = Stream([Dataset(index_shards([path]))], DataSettings(size=8, channels=1, readers=0), 0)
    with refusal(DataError, repr(str(path)), "'page'", "is not a PNG"):
        next(stream.batches(0, 1))


def _threads() -> int:
    return sum(thread.name.startswith("reader") for thread in threading.enumerate())


def test_closing_ends_the_readers(index: Index) -> None:
    batches = open_stream(index, readers=3).batches(0, 4, 0, 1)
    next(batches)
    assert 1 <= _threads() <= 3
    _close(batches)
    assert _threads() == 0
    assert len(list(open_stream(index, readers=2).once(4))) == 8
    assert _threads() == 0


@pytest.mark.parametrize(("ahead_bytes", "batches_ahead"), [(2**28, 5), (1, 2)])
def test_reading_ahead_is_bounded(
    index: Index, monkeypatch: pytest.MonkeyPatch, ahead_bytes: int, batches_ahead: int
) -> None:
    loaded: list[int] = []
    stream = open_stream(index, readers=2, read_ahead_bytes=ahead_bytes)
    load = stream.loader.load

    def counted(plan: BatchPlan, sources: Sequence[RecordSource]) -> Records:
        loaded.append(1)
        return load(plan, sources)

    monkeypatch.setattr(stream.loader, "load", counted)
    batches = stream.batches(0, 4, 0, 1)
    for _ in range(5):
        next(batches)
    time.sleep(0.2)
    assert 5 < len(loaded) <= 5 + batches_ahead
    _close(batches)


def _close(batches: Iterator[Records]) -> None:
    batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("world", [1, 3])
def test_the_keys_of_a_batch_are_known_ahead(index: Index, world: int) -> None:
    for rank in range(world):
        groups = set[int]()
        for batch in islice(open_stream(index).batches(7, 10, rank, world), 40):
            assert batch.ahead is not None
            first = batch.ahead.start
            assert np.array_equal(batch.ahead.keys[first : first + len(batch.keys)], batch.keys)
            groups.add(id(batch.ahead.keys))
        assert len(groups) < 20
