"""Fractions, key lists and limits: disjoint, complete, the same for small indexes in memory and
large ones on disk.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.loader.made import refusal, shards
from udl_dist.data.loader.opening import open_streams
from udl_dist.data.loader.selection import Wanted, refuse_absent, select
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.settings import DataSettings
from udl_dist.data.shards.index import Index
from udl_dist.data.shards.indexing import index_shards
from udl_dist.errors import DataError


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return index_shards(shards(tmp_path_factory.mktemp("shards"), [40, 60]))


def chosen(index: Index, tmp_path: Path, **wanted: object) -> list[int]:
    numbers, _ = select(index, Wanted(**wanted), tmp_path)  # type: ignore[arg-type]
    assert numbers is not None
    return [int(number) for number in numbers]


def test_parts_of_a_fraction_are_disjoint_and_complete(index: Index, tmp_path: Path) -> None:
    train, held_out = (
        chosen(index, tmp_path, part=part, fraction=0.3) for part in ("train", "held_out")
    )
    assert sorted(train + held_out) == list(range(100)) and 15 < len(held_out) < 45
    assert select(index, Wanted(), tmp_path) == (None, "all")


def test_large_selections_lie_on_disk_and_are_the_same(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = chosen(index, tmp_path, part="train", fraction=0.3)
    monkeypatch.setattr("udl_dist.data.loader.selection.IN_MEMORY", 10)
    monkeypatch.setattr("udl_dist.data.loader.selection.ROWS", 7)
    numbers, _ = select(index, Wanted("train", 0.3), tmp_path)
    assert numbers is not None and numbers.tolist() == small and not numbers.flags.writeable
    assert len(list((tmp_path / "selections").iterdir())) == 1
    assert select(index, Wanted("train", 0.3), tmp_path)[0] is not numbers


def test_classes_are_left_out_of_a_part_or_are_all_of_it(index: Index, tmp_path: Path) -> None:
    labels = index.rows["label"]
    without = chosen(index, tmp_path, labels=(0,))
    alone = chosen(index, tmp_path, labels=(0,), labels_are="all there is")
    assert (
        sorted(without + alone) == list(range(100))
        and set(labels[alone]) == {0}
        and 0 not in labels[without]
    )
    assert 0 < len(alone) < 100
    refuse_absent([index], (0,))
    with pytest.raises(DataError, match="is of class 7777"):
        refuse_absent([index], (0, 7777))


def test_limit_draws_at_random_and_from_the_part_alone(index: Index, tmp_path: Path) -> None:
    train = set(chosen(index, tmp_path, part="train", fraction=0.3))
    some = chosen(index, tmp_path, part="train", fraction=0.3, limit=20)
    assert len(some) == len(set(some)) == 20 and set(some) <= train and some == sorted(some)
    assert np.diff(some).max() > 2 and some[-1] > 50
    assert len(chosen(index, tmp_path, limit=1000)) == 100


def test_key_list_selects_its_records_and_names_what_no_shard_has(
    index: Index, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("000003\n000077\n\n000050\n")
    assert chosen(index, tmp_path, keys=str(keys)) == [3, 50, 77]
    parts = [
        chosen(index, tmp_path, keys=str(keys), part=part, fraction=0.5)
        for part in ("train", "held_out")
    ]
    assert sorted(parts[0] + parts[1]) == [3, 50, 77]
    names = {select(index, Wanted(keys=str(keys), limit=limit), tmp_path)[1] for limit in (0, 2)}
    keys.write_text("000003\nnowhere\n")
    names.add(select(index_shards(shards(tmp_path / "more", [4])), Wanted(limit=2), tmp_path)[1])
    assert len(names) == 3
    with refusal(DataError, "data.keys", "1 of its keys are in no shard", "'nowhere'"):
        chosen(index, tmp_path, keys=str(keys))
    keys.write_text("\n")
    with pytest.raises(DataError, match="names no key"):
        chosen(index, tmp_path, keys=str(keys))
    with pytest.raises(DataError, match="cannot be read"):
        chosen(index, tmp_path, keys=str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"held_out_fraction": 0.001}, ("holds out none of 4 images",)),
        ({"held_out_fraction": 0.999}, ("holds out all of 4 images",)),
        ({"without_labels": (0, 1, 2, 3)}, ("data.without_labels leaves none of the 4 images",)),
        ({"keys": "keys.txt", "held_out_fraction": 0.001}, ("data.keys leaves none of the 4",)),
    ],
)
def test_what_leaves_nothing_is_named(
    changes: dict[str, Any], said: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("keys.txt").write_text("000001\n")
    index_shards(shards(tmp_path / "four", [4]))
    plain = {"held_out_fraction": 0.0, "size": 8, "channels": 1}
    settings = DataSettings(str(tmp_path / "four"), **plain | changes)
    with refusal(DataError, *said):
        open_streams(prepare(settings), 0)
