"""Whatever `data.source` names becomes training and held-out streams: packed once, indexed once,
safe to race for.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.loader.made import (
    encoded,
    folder_of_images,
    mnist_like,
    one_line,
    pixels,
    refusal,
    shards,
)
from udl_dist.data.loader.opening import Prepared, open_streams
from udl_dist.data.loader.reader import Stream
from udl_dist.data.packing import prepare as preparing
from udl_dist.data.packing.pack import pack
from udl_dist.data.packing.prepare import prepare, survey
from udl_dist.data.settings import DataSettings, PackSettings, cache_folder
from udl_dist.data.shards.index import NAME
from udl_dist.errors import DataError, UsageError

NAMES = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(20)]


def settings_of(tmp_path: Path, source: Path | str, **changes: Any) -> DataSettings:
    changes = {"size": 16, "readers": 0, **changes}
    return DataSettings(source=str(source), cache=str(tmp_path / "cache"), **changes)


def opened(settings: DataSettings) -> tuple[Stream, Stream | None]:
    return open_streams(prepare(settings), 0)


def keys(stream: Stream) -> set[str]:
    return {
        stream.datasets[0].index.key(int(number))
        for part in stream.once(100)
        for number in part.records
    }


def counts(settings: DataSettings) -> tuple[int, int]:
    train, held_out = opened(settings)
    assert (
        not held_out
        or held_out.datasets[0].index.path != train.datasets[0].index.path
        or not keys(train) & keys(held_out)
    )
    return train.records, held_out.records if held_out else 0


def test_embedded_digits_are_packed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, seen = settings_of(tmp_path, "digits", size=28), list[tuple[int, int]]()
    prepared = prepare(settings, lambda *done: seen.append(done))
    assert seen[-1] == (5000, 5000)
    train, held_out = open_streams(prepared, 0)
    assert held_out and train.records + held_out.records == 5000 and 400 < held_out.records < 600
    assert train.shape == (1, 28, 28)
    batch = next(train.batches(0, 500, 0, 1))
    assert len(np.unique(batch.labels)) == 10 and 30 < batch.images.mean() < 36
    monkeypatch.setattr(preparing, "pack_source", None)
    assert prepare(settings) == prepared
    assert all(Path(where).is_absolute() for where in (*prepared.train, *prepared.held_out))


def test_images_are_packed_again_when_they_or_the_settings_change(tmp_path: Path) -> None:
    source = folder_of_images(tmp_path / "pets", NAMES)
    cases: list[dict[str, Any]] = [
        {},
        {"size": 12},
        {"channels": 3},
        {"fit": "pad"},
        {"held_out_fraction": 0.5},
    ]
    found = [
        prepare(settings_of(tmp_path, source, **changes)).train
        for changes in [*cases, {"flip": True}]
    ]
    assert len(set(found)) == 5 and found[5] == found[0]
    (source / "cat" / "0.png").unlink()
    again = prepare(settings_of(tmp_path, source))
    assert again.train not in found and sum(counts(settings_of(tmp_path, source))) == 39


def test_held_out_is_found_in_its_order(tmp_path: Path) -> None:
    mnist = mnist_like(tmp_path / "mnist", 60, 20)
    assert counts(settings_of(tmp_path, mnist, held_out_fraction=0.0)) == (60, 20)
    train, held_out = counts(settings_of(tmp_path, mnist, held_out_fraction=0.3))
    assert train + held_out == 60 and 5 < held_out < 35
    assert counts(
        settings_of(tmp_path, mnist, held_out=str(mnist / "t10k-images-idx3-ubyte.gz"))
    ) == (
        60,
        20,
    )
    pets = folder_of_images(tmp_path / "pets", NAMES)
    assert counts(settings_of(tmp_path, pets, held_out_fraction=0.0)) == (40, 0)
    assert counts(settings_of(tmp_path, mnist, held_out=str(pets))) == (60, 40)
    split = folder_of_images(tmp_path / "split", ["train/1.png", "train/2.png", "val/3.png"])
    assert counts(settings_of(tmp_path, split)) == (2, 1)


def test_a_packed_folder_is_read_as_it_is(tmp_path: Path) -> None:
    pack(str(mnist_like(tmp_path / "mnist")), str(tmp_path / "out"), PackSettings())
    assert counts(settings_of(tmp_path, tmp_path / "out")) == (60, 20)
    assert counts(
        settings_of(tmp_path, tmp_path / "out" / "train", held_out=str(tmp_path / "out" / "test"))
    ) == (60, 20)
    assert not (tmp_path / "cache").exists()
    for index in tmp_path.rglob(NAME):
        index.unlink()
    assert counts(settings_of(tmp_path, tmp_path / "out")) == (60, 20)


def test_shards_are_named_by_folder_pattern_list_or_one_by_one(tmp_path: Path) -> None:
    tars = shards(tmp_path / "tars", [5, 4, 3], 16)
    (tmp_path / "some.txt").write_text(f"# two of them\ntars/000000.tar\n\n{tars[2]}\n")
    cases = {
        tmp_path / "tars": 12,
        tmp_path / "tars" / "{000000..000001}.tar": 9,
        tmp_path / "some.txt": 8,
        tars[1]: 4,
    }
    for source, records in cases.items():
        assert counts(settings_of(tmp_path, source, held_out_fraction=0.0)) == (records, 0)
    assert (tmp_path / "tars" / NAME).exists()
    assert len(list((tmp_path / "cache" / "indexes").iterdir())) == 3


def test_hashed_fraction_of_plain_shards_is_disjoint_and_survives_another_sharding(
    tmp_path: Path,
) -> None:
    settings = [
        settings_of(tmp_path, shards(tmp_path / name, sizes, 16)[0].parent, held_out_fraction=0.3)
        for name, sizes in (("a", [30, 30]), ("b", [10, 50]))
    ]
    first, second = (opened(one) for one in settings)
    assert first[1] and second[1]
    assert keys(first[0]) == keys(second[0]) and keys(first[1]) == keys(second[1])
    assert len(keys(first[0]) | keys(first[1])) == 60 and not keys(first[0]) & keys(first[1])
    assert 8 < first[1].records < 30
    assert first[0].fingerprint != first[1].fingerprint


def test_shards_whose_folder_is_read_only_are_indexed_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shards(tmp_path / "tars", [5], 16)[0].parent
    monkeypatch.setattr("udl_dist.data.packing.indexes.os.access", lambda path, mode: False)
    assert counts(settings_of(tmp_path, folder, held_out_fraction=0.0)) == (5, 0)
    assert not (folder / NAME).exists()


def test_a_folder_that_does_not_match_its_index_is_refused(tmp_path: Path) -> None:
    tars = shards(tmp_path / "tars", [5, 4], 16)
    settings = settings_of(tmp_path, tars[0].parent)
    prepare(settings)
    tars[1].rename(tars[1].with_name("000007.tar"))
    with refusal(DataError, "000001.tar", "is in the index but not in the folder"):
        prepare(settings)
    tars[0].with_name("000007.tar").rename(tars[1])
    tars[1].with_name("a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="shards and images"):
        prepare(settings)


def test_bad_sources_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "text.tar").write_bytes(b"hello" * 300)
    (tmp_path / "list.txt").write_text("# nothing\n")
    folder_of_images(tmp_path / "one", ["1.png"])
    cases = {
        "nowhere": "there is no file or folder",
        "empty": "it is empty",
        "missing.tar": "is missing",
        "{0..1}.tar": "is missing",
        "empty.tar": "is empty",
        "text.tar": "is not a tar",
        "list.txt": "names no shard",
        "one": "none of 1 images",
    }
    for name, said in cases.items():
        with refusal(DataError, said):
            prepare(settings_of(tmp_path, tmp_path / name, held_out_fraction=0.001))
    with pytest.raises(UsageError) as usage:
        prepare(settings_of(tmp_path, "ftp://host/x.tar"))
    one_line(usage.value, "ftp:", "s3://")


def test_the_same_images_for_training_and_held_out_are_refused(tmp_path: Path) -> None:
    pets = folder_of_images(tmp_path / "pets", NAMES)
    with refusal(UsageError, "data.held_out", "name others"):
        prepare(settings_of(tmp_path, pets, held_out=str(pets)))


def test_an_image_that_cannot_be_read_stops_and_leaves_the_cache_empty(tmp_path: Path) -> None:
    pets = folder_of_images(tmp_path / "pets", NAMES)
    (pets / "cat" / "3.png").write_bytes(encoded(pixels(1, 16, 16))[:-30])
    with pytest.raises(DataError, match="truncated PNG"):
        prepare(settings_of(tmp_path, pets))
    assert not list((tmp_path / "cache" / "packed").iterdir())


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with refusal(UsageError, "cannot write", "data.cache"):
        prepare(settings_of(tmp_path, folder_of_images(tmp_path / "pets", NAMES)))


def test_many_may_prepare_at_once(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, folder_of_images(tmp_path / "pets", NAMES))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(prepare, [settings] * 4))
    assert len(set(found)) == 1
    assert len(list((tmp_path / "cache" / "packed").iterdir())) == 1


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder("") == Path("/somewhere/udl-dist")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("") == Path("~/.cache/udl-dist").expanduser()
    assert cache_folder("~/x") == Path("~/x").expanduser()


def test_a_prepared_source_is_opened_without_torch_and_webdataset(tmp_path: Path) -> None:
    prepared = prepare(settings_of(tmp_path, folder_of_images(tmp_path / "pets", NAMES)))
    code = f"""
import sys
from pathlib import Path
from udl_dist.data.loader.opening import Prepared
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.loader.opening import open_streams
from udl_dist.storage.transfers import Limits
from udl_dist.data.settings import DataSettings
train, held_out = open_streams(prepare({prepared.settings!r}), 0)
next(train.batches(0, 8, 0, 1))
assert not {{"torch", "webdataset", "ray"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert isinstance(prepared, Prepared)


def test_a_survey_expects_what_packing_writes(tmp_path: Path) -> None:
    mnist = mnist_like(tmp_path / "mnist", 60, 20)
    cases: dict[str, dict[str, Any]] = {
        "fraction": {"held_out_fraction": 0.0},
        "named": {"held_out": str(mnist / "t10k-images-idx3-ubyte.gz")},
    }
    for place, changes in cases.items():
        settings = settings_of(tmp_path / place, mnist, **changes)
        promised = survey(settings)
        assert (promised.records, promised.held_out_records, promised.packed) == (60, 20, False)
        prepare(settings)
        counted = survey(settings)
        assert (counted.records, counted.held_out_records, counted.shards, counted.packed) == (
            60,
            20,
            promised.shards,
            True,
        )


@pytest.mark.parametrize("records", [1, 8])
@pytest.mark.parametrize("kind", ["tars", "images"])
def test_a_source_too_small_to_hold_anything_out_says_what_to_do(
    tmp_path: Path, kind: str, records: int
) -> None:
    if kind == "tars":
        source = shards(tmp_path / "few", [records], 16)[0].parent
    else:
        source = folder_of_images(tmp_path / "few", [f"{number}.png" for number in range(records)])
    with pytest.raises(DataError) as raised:
        opened(settings_of(tmp_path, source, held_out_fraction=0.0001))
    one_line(
        raised.value, "few", f"none of {records} ", "held_out_fraction", "to 0 to hold out none"
    )
    assert str(tmp_path / "cache") not in str(raised.value) and ".udl" not in str(raised.value)
    assert counts(settings_of(tmp_path, source, held_out_fraction=0.0)) == (records, 0)


def test_a_selection_of_nothing_names_its_cause(tmp_path: Path) -> None:
    source = shards(tmp_path / "few", [6], 16)[0].parent
    with refusal(DataError, "few", "data.without_labels"):
        opened(settings_of(tmp_path, source, held_out_fraction=0.0, without_labels=tuple(range(6))))
