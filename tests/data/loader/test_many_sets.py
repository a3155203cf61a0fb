"""Several data sets in one stream: joined end to end, or mixed by weights; exact at any position,
world and order.
"""

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
from udl_dist.data.shards.indexing import index_shards
from udl_dist.errors import UsageError


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    folder = tmp_path_factory.mktemp("sets")
    return [
        Dataset(index_shards(made.shards(folder / str(count), [count, 7]))) for count in (30, 80)
    ]


def streamed(datasets: list[Dataset], weights: tuple[float, ...] = (), **changes: Any) -> Stream:
    return Stream(datasets, DataSettings(size=8, channels=1, readers=0, **changes), 4, weights)


def seen(stream: Stream, position: int, batch: int, steps: int, world: int = 1) -> list[list[int]]:
    """The records of each global batch, over all ranks."""
    ranks = [stream.batches(position, batch, rank, world) for rank in range(world)]
    return [[int(record) for rank in ranks for record in next(rank).records] for _ in range(steps)]


def test_joined_sets_are_one_epoch_of_all_records(datasets: list[Dataset]) -> None:
    stream = streamed(datasets)
    assert stream.records == 30 + 7 + 80 + 7
    records = list(chain.from_iterable(seen(stream, 0, 31, 8)))
    assert Counter(Counter(records).values()) == Counter({2: 124})
    assert [int(record) for part in stream.once(10) for record in part.records] == list(range(124))


def test_weighted_sets_turn_over_each_in_its_own_epochs(datasets: list[Dataset]) -> None:
    stream = streamed(datasets, (0.5, 0.5))
    counts = Counter(
        list(chain.from_iterable(seen(stream, 0, 64, 32)))
    )  # 2,048 positions: 1,024 of each set
    small, large = ([counts[record] for record in part] for part in (range(37), range(37, 124)))
    assert sum(small) == sum(large) == 1024
    assert set(small) == {1024 // 37, 1024 // 37 + 1} and set(large) == {1024 // 87, 1024 // 87 + 1}


@pytest.mark.parametrize("order", ["full", "blocks"])
@pytest.mark.parametrize("weights", [(), (0.3, 0.7)])
def test_global_batches_and_tails_are_the_same_at_any_world_and_position(
    datasets: list[Dataset], weights: tuple[float, ...], order: str
) -> None:
    stream = streamed(datasets, weights, order=order, flip=True, block_bytes=400)
    whole = [sorted(batch) for batch in seen(stream, 5, 20, 24)]
    for world in (2, 3, 7):
        assert [sorted(batch) for batch in seen(stream, 5, 20, 24, world)] == whole
    for step in (1, 11, 23):
        assert [sorted(batch) for batch in seen(stream, 5 + 20 * step, 20, 24 - step, 4)] == whole[
            step:
        ]


def test_blocks_of_one_rank_are_no_other_ranks(datasets: list[Dataset], tmp_path: Path) -> None:
    """With a batch of whole lanes, a run of neighbours is read by one rank alone: bytes are read
    once.
    """
    index = index_shards(made.shards(tmp_path, [640] * 4))
    stream = streamed([Dataset(index)], order="blocks", block_bytes=1)
    stream._blocks = type(stream._blocks)(8)
    runs: list[Counter[int]] = []
    for rank in range(4):
        batches = islice(stream.batches(0, 128, rank, 4), 2560 // 128)
        runs.append(Counter(int(record) // 8 for batch in batches for record in batch.records))
    shared = sum(sum(run in other for other in runs) > 1 for run in range(2560 // 8))
    assert sum(sum(run.values()) for run in runs) == 2560
    assert (
        shared <= 3 * 2
    )  # a lane ends within a run: one at each border of ranks, and one at each side of a short run


def test_chance_follows_the_record_through_epochs_of_its_own(datasets: list[Dataset]) -> None:
    stream = streamed(datasets, (0.5, 0.5), flip=True)
    batches = list(islice(stream.batches(0, 1024), 2))
    keys, records = (
        np.concatenate([getattr(batch, name) for batch in batches]) for name in ("keys", "records")
    )
    assert len(np.unique(np.stack([keys, records]), axis=1).T) == len(np.unique(keys)) == 2048


def test_bad_weights_are_refused(datasets: list[Dataset]) -> None:
    with made.refusal(UsageError, "data.weights", "2 sources"):
        streamed(datasets, (1.0,))
    with made.refusal(UsageError, "less than 1 of 1024"):
        streamed(datasets, (1.0, 1e-6))
