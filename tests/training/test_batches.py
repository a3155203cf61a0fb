"""Batches on the device: completed from decoded rows there, they are what the host would send."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.loader import made
from tests.data.loader.test_damage import COUNTS, flip
from tests.data.loader.test_decoded import BATCH, RECORDS, opened
from udl_dist.data.loader.decoded import MakeRows, nothing_decoded
from udl_dist.data.loader.reader import Stream
from udl_dist.data.settings import DataSettings
from udl_dist.data.shards.indexing import index_shards
from udl_dist.methods.method import Batch
from udl_dist.training.batches import DeviceRows, Sender, decoded_rows
from udl_dist.training.distributed import Ranks

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    index_shards(made.shards(tmp_path, COUNTS))
    return tmp_path


def on_device(rows: int) -> MakeRows:
    return lambda records, shape: DeviceRows(records, shape, min(rows, records), CPU)


def same(one: Batch, two: Batch) -> bool:
    pairs = [(one.images, two.images), (one.keys, two.keys), (one.record_keys, two.record_keys)]
    assert one.labels is not None
    assert two.labels is not None
    return all(torch.equal(*pair) for pair in (*pairs, (one.labels, two.labels)))


def sent(stream: Stream, count: int, rank: int = 0, world: int = 1) -> list[Batch]:
    sender = Sender(stream, CPU)
    records = islice(stream.batches(5, BATCH, rank, world), count)
    return [sender.send(each, number) for number, each in enumerate(records)]


@pytest.mark.parametrize(
    ("rows", "world", "readers"), [(RECORDS, 1, 0), (17, 3, 2), (40, 2, 1), (0, 1, 0)]
)
def test_rows_on_the_device_change_no_batch(
    folder: Path, rows: int, world: int, readers: int
) -> None:
    for rank in range(world):
        host = sent(opened(folder, nothing_decoded), 30, rank, world)
        device = sent(opened(folder, on_device(rows), readers=readers), 30, rank, world)
        assert all(same(one, two) for one, two in zip(host, device, strict=True))


def test_damaged_records_are_replaced_alike(folder: Path) -> None:
    flip(folder, 3, 44)
    skip: dict[str, Any] = {"damaged": "skip", "damaged_limit": 1.0}
    host = sent(opened(folder, nothing_decoded, **skip), 30)
    stream = opened(folder, on_device(RECORDS), **skip)
    device = sent(stream, 30)
    assert all(same(one, two) for one, two in zip(host, device, strict=True))
    (missing,) = (~stream.loader.decoded.has(np.arange(RECORDS))).nonzero()
    assert missing.tolist() == [3, 44]


def test_from_the_second_epoch_on_no_pixel_is_sent(folder: Path) -> None:
    stream = opened(folder, on_device(RECORDS))
    sender, batches = Sender(stream, CPU), stream.batches(0, BATCH)
    first = [sender.send(each, 0) for each in islice(batches, RECORDS // BATCH + 1)]
    flip(folder, *range(RECORDS))  # nothing is read again either
    for each in islice(batches, 20):
        assert each.on_device is not None
        assert each.on_device.stored.all()
        each.images[:] = 0
        assert sender.send(each, 0).images.ne(-1).any()
    straight = [Sender(stream, CPU).send(each, 0).images for each in stream.once(BATCH)]
    assert torch.cat(straight).shape == (RECORDS, *first[0].images.shape[1:])


def test_rows_take_at_most_half_of_what_is_free_or_what_is_asked(folder: Path) -> None:
    def rows(amount: int | str) -> int:
        asked = DataSettings(size=6, channels=1, decoded_bytes=amount, decoded_on="device")
        return decoded_rows(asked, Ranks())(RECORDS, (1, 6, 6)).rows

    assert [rows("auto"), rows(36 * 20 + 35), rows(0)] == [RECORDS, 20, 0]
