"""Train, val and test are known by their usual names; what could be a part or a class is refused,
never guessed.
"""

from pathlib import Path

import pytest

from tests.data.loader.made import encoded, folder_of_images, pixels, refusal, shards, tar
from udl_dist import experiment as experiments
from udl_dist.data.loader.opening import open_streams
from udl_dist.data.packing.pack import pack
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.packing.sources import open_source
from udl_dist.data.settings import DataSettings, PackSettings
from udl_dist.errors import DataError
from udl_dist.launch.plan import checked_plan


@pytest.mark.parametrize(
    "names", [("Train", "Test"), ("Training", "Testing"), ("TRAIN", "valid"), ("training", "dev")]
)
def test_usual_names_in_any_case_are_parts(tmp_path: Path, names: tuple[str, str]) -> None:
    train, held_out = names
    source = open_source(
        str(
            folder_of_images(
                tmp_path, [f"{train}/cat/1.png", f"{train}/dog/2.png", f"{held_out}/dog/3.png"]
            )
        )
    )
    assert source.classes == ("cat", "dog")
    assert len(source.parts["train"]) == 2 and len(source.parts) == 2


AMBIGUOUS = {
    "no training images": (["val/cat/1.png", "test/cat/2.png"], "no training images"),
    "test alone": (["test/cat/1.png"], "no training images"),
    "a stray picture": (["train/cat/1.png", "val/cat/2.png", "sheet.png"], "'sheet.png'"),
    "another folder": (["train/cat/1.png", "val/cat/2.png", "unlabeled/3.png"], "'unlabeled'"),
    "a class called train": (["train/1.png", "car/2.png"], "'car'"),
    "two names of one part": (["train/1.png", "val/2.png", "Valid/3.png"], "'Valid' and 'val'"),
    "one folder too high": (["set/train/a/1.png", "set/test/a/2.png"], "set' as the source"),
    "parts below classes": (
        ["cat/train/1.png", "cat/test/2.png", "dog/train/3.png"],
        "train/CLASS",
    ),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_could_be_a_class_or_a_part_is_refused(tmp_path: Path, name: str) -> None:
    names, said = AMBIGUOUS[name]
    with refusal(DataError, said, str(tmp_path)):
        open_source(str(folder_of_images(tmp_path, names)))


def counts(source: Path, cache: Path) -> tuple[int, int]:
    train, held_out = open_streams(
        prepare(DataSettings(source=str(source), cache=str(cache), readers=0)), 0
    )
    return train.records, held_out.records if held_out else 0


def many(path: Path, *numbers: int) -> Path:
    return tar(path, {f"{number}.png": encoded(pixels(number, 8, 8)) for number in numbers})


def test_shards_named_after_parts_in_one_folder_are_parts(tmp_path: Path) -> None:
    for number in range(2):
        many(tmp_path / "tars" / f"faces-train-{number:03d}.tar", number, number + 10)
    many(tmp_path / "tars" / "faces-val-000.tar", 20, 21, 22)
    assert counts(tmp_path / "tars", tmp_path / "cache") == (4, 3)


def test_folders_of_shards_are_parts_in_any_case(tmp_path: Path) -> None:
    shards(tmp_path / "tars" / "Training", [3, 3])
    shards(tmp_path / "tars" / "Validation", [2])
    assert counts(tmp_path / "tars", tmp_path / "cache") == (6, 2)


def test_shards_of_which_some_may_be_held_out_are_refused(tmp_path: Path) -> None:
    many(tmp_path / "mixed" / "val-0.tar", 1)
    many(tmp_path / "mixed" / "0.tar", 2)
    many(tmp_path / "no_train" / "val-0.tar", 1)
    many(tmp_path / "no_train" / "test-0.tar", 2)
    shards(tmp_path / "folders" / "val", [2])
    shards(tmp_path / "folders" / "test", [2])
    shards(tmp_path / "both" / "train", [2])
    shards(tmp_path / "both", [2])
    for name in ("mixed", "no_train", "folders", "both"):
        with refusal(DataError, name, "source"):
            counts(tmp_path / name, tmp_path / "cache")
    many(tmp_path / "only" / "val-0.tar", *range(30))
    assert sum(counts(tmp_path / "only", tmp_path / "cache")) == 30


def test_pack_and_plan_print_classes_and_parts(tmp_path: Path) -> None:
    names = [f"Train/{kind}/{number}.png" for kind in ("cat", "dog") for number in range(9)] + [
        "Test/dog/3.png"
    ]
    source = folder_of_images(tmp_path / "pets", names)
    wanted = experiments.load(
        None,
        {
            "method.name": "ae",
            "data.source": str(source),
            "data.cache": str(tmp_path / "cache"),
            "train.total_images": "128",
            "data.held_out_fraction": "0",
        },
    )
    before = checked_plan(wanted).lines()
    prepare(wanted.data)
    for lines in (before, checked_plan(wanted).lines()):
        assert any("18 records" in line and "1 held out (test)" in line for line in lines), lines
        assert any(line.split() == ["classes", "2:", "cat,", "dog"] for line in lines), lines
    packed = pack(str(source), str(tmp_path / "packed"), PackSettings()).lines()
    assert any("test 1, train 18" in line for line in packed) and any(
        "2 classes: cat, dog" in line for line in packed
    )
