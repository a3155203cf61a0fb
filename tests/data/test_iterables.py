"""The stream in other training loops: PyTorch's and webdataset's."""

import gc
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from tests.data.loader.made import pixels, shards
from tests.training import gloo
from udl_dist.data.iterables import Batches, Samples
from udl_dist.errors import UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(shards(tmp_path_factory.mktemp("tars"), [20, 13])[0].parent)


def test_batches_continue_from_a_state_at_another_world_size(folder: str) -> None:
    first = Batches(folder, 10, size=8, flip=True)
    assert len(first) == 4
    seen = [batch for batch in islice(first, 3)]  # noqa: C416
    assert torch.from_numpy(seen[0].images).shape == (10, 1, 8, 8)
    expected = [batch.keys.tolist() for batch in islice(first, 4)]
    state = {"position": 30, "data": first.stream.fingerprint}
    ranks = [Batches(folder, 10, rank=rank, world=3, size=8, flip=True) for rank in range(3)]
    for rank in ranks:
        rank.load_state_dict(state)
    shares = [iter(rank) for rank in ranks]
    assert [
        [key for share in shares for key in next(share).keys.tolist()] for _ in range(4)
    ] == expected
    assert ranks[0].state_dict() == {**state, "position": 70}
    with pytest.raises(ValueError, match="other images"):
        Batches(folder, 10, size=9).load_state_dict(state)


@pytest.mark.parametrize("readers", [0, 2])
def test_samples_stand_first_in_a_pipeline_of_webdataset(folder: str, readers: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import webdataset as wds

        labels = []
        for rank in range(2):
            samples = Samples(folder, rank=rank, world=2, readers=readers)
            stages = wds.decode("l8"), wds.to_tuple("png", "cls", "__key__")
            for image, label, key in islice(wds.DataPipeline(samples, *stages), 33):
                assert int(key) == label and (image == pixels(label, 8, 8)).all()
                labels.append(label)
        gc.collect()
    assert Counter(Counter(labels).values()) == Counter({2: 33})


def test_samples_start_at_a_position(folder: str) -> None:
    keys = [sample["__key__"] for sample in islice(Samples(folder), 60)]
    assert [sample["__key__"] for sample in islice(Samples(folder, position=21), 39)] == keys[21:]
    assert next(iter(Samples(folder)))["__url__"].endswith(".tar")


# PyTorch's on the number of cores, Python's on forks in a process with threads
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("world", [1, 2])
def test_workers_of_a_data_loader_share_the_samples_of_a_rank(folder: str, world: int) -> None:
    for rank in range(world):
        alone = [
            each["__key__"]
            for each in islice(Samples(folder, position=5, rank=rank, world=world), 30)
        ]
        loader = DataLoader(
            Shared(folder, position=5, rank=rank, world=world), batch_size=None, num_workers=2
        )
        together = iter(loader)
        assert [next(together) for _ in range(30)] == alone, "the same, in the same order"
        del together


def test_batches_are_refused_in_several_workers_of_a_data_loader(folder: str) -> None:
    # In a fresh process: the forks of one that has used object storage take 5 s each to end.
    gloo.run(1, refused_and_read, folder)


def refused_and_read(folder: str) -> None:
    def first(workers: int) -> list[int]:
        forked: dict[str, Any] = {"num_workers": workers, "multiprocessing_context": "fork"}
        read: list[int] = next(iter(DataLoader(Whole(folder), batch_size=None, **forked)))
        return read

    with pytest.raises(
        UsageError, match="would give every batch once a worker: set num_workers = 0"
    ):
        first(2)
    assert len(first(1)) == 10


class Shared(IterableDataset[str]):
    def __init__(self, folder: str, **options: int) -> None:
        self._samples = Samples(folder, **options)

    def __iter__(self) -> Iterator[str]:
        return (each["__key__"] for each in self._samples)


class Whole(IterableDataset[list[int]]):
    def __init__(self, folder: str) -> None:
        self._batches = Batches(folder, 10, size=8)

    def __iter__(self) -> Iterator[list[int]]:
        return (records.keys.tolist() for records in self._batches)
