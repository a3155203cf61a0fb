"""Which member of a record is its image, where its key ends, and what of a shard belongs to no
record.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.loader.made import encoded, one_line, pixels, refusal, shards, tar
from tests.test_cli import udl
from udl_dist import experiment as experiments
from udl_dist.data.loader.opening import open_streams
from udl_dist.data.loader.reader import Stream
from udl_dist.data.packing.finding import list_shards
from udl_dist.data.packing.indexes import index
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.settings import DataSettings, IndexSettings
from udl_dist.data.shards.index import Index
from udl_dist.data.shards.indexing import index_shards
from udl_dist.errors import DataError
from udl_dist.launch.plan import checked_plan

LEFT, RIGHT = encoded(pixels(1, 8, 8)), encoded(pixels(2, 8, 8))


def opened(source: Path, tmp_path: Path, **settings: Any) -> Stream:
    data = DataSettings(
        source=str(source),
        cache=str(tmp_path / "cache"),
        held_out_fraction=0.0,
        readers=0,
        **settings,
    )
    return open_streams(prepare(data), 0)[0]


def keys(stream: Stream) -> list[str]:
    index = stream.datasets[0].index
    return [index.key(number) for number in range(index.records)]


def payload(stream: Stream) -> bytes:
    """The image of the first record, by the index alone: samples are planned thousands ahead."""
    index = stream.datasets[0].index
    start, length = int(index.rows["offset"][0]), int(index.rows["length"][0])
    return Path(index.shard_path(0)).read_bytes()[start : start + length]


def test_files_that_macos_puts_next_to_others_are_passed_by_and_counted(tmp_path: Path) -> None:
    members = {
        "./._a.png": b"x",
        "./a.png": LEFT,
        "./.DS_Store": b"x",
        "d/._b.png": b"x",
        "d/b.png": RIGHT,
        "d/._b.cls": b"x",
        "d/b.cls": b"3",
    }
    found = index_shards([tar(tmp_path / "0.tar", members)])
    assert [found.key(number) for number in range(found.records)] == ["./a", "d/b"]
    assert found.rows["label"].tolist() == [-1, 3] and found.shards[0].ignored == 4


def test_hidden_tars_and_folders_called_like_tars_are_passed_by_and_counted(tmp_path: Path) -> None:
    paths = shards(tmp_path / "tars", [2, 2])
    (tmp_path / "tars" / "._000000.tar").write_bytes(b"x")
    (tmp_path / "tars" / "x.tar").mkdir()
    assert list_shards(str(tmp_path / "tars")) == [str(path) for path in paths]
    done = udl("index", str(tmp_path / "tars"))
    assert (
        done.returncode == 0
        and "2 hidden files and folders named like shards are ignored" in done.stdout
    ), done
    assert json.loads(udl("index", str(tmp_path / "tars"), "--json").stdout)["passed_by"] == 2


def test_the_last_suffix_tells_the_image_where_only_one_fits(tmp_path: Path) -> None:
    stream = opened(
        tar(tmp_path / "a" / "0.tar", {"x.input.png": LEFT, "x.target.json": b"{}"}).parent,
        tmp_path,
    )
    assert keys(stream) == ["x"] and payload(stream) == LEFT


@pytest.mark.parametrize("image", ["right.png", ".RIGHT.png"])
def test_a_setting_says_which_member_is_the_image(tmp_path: Path, image: str) -> None:
    folder = tar(tmp_path / "a" / "0.tar", {"x.left.png": LEFT, "x.right.png": RIGHT}).parent
    assert payload(opened(folder, tmp_path, image=image)) == RIGHT
    assert payload(opened(folder, tmp_path, image="left.png")) == LEFT
    with refusal(DataError, "has 2 images", "data.image", "left.png", "data.key_dot = last"):
        opened(folder, tmp_path)
    index(str(folder), IndexSettings(image="right.png"))
    assert payload(opened(folder, tmp_path)) == RIGHT, "from the index in their folder"


def test_keys_may_have_dots(tmp_path: Path) -> None:
    members = {
        "img_1.0.a.png": LEFT,
        "img_1.0.a.cls": b"1",
        "img_1.0.b.png": RIGHT,
        "img_1.0.b.cls": b"2",
    }
    folder = tar(tmp_path / "a" / "0.tar", members).parent
    stream = opened(folder, tmp_path, key_dot="last")
    assert keys(stream) == ["img_1.0.a", "img_1.0.b"]
    assert stream.datasets[0].index.rows["label"].tolist() == [1, 2]


def test_any_suffix_may_be_the_image(tmp_path: Path) -> None:
    folder = tar(tmp_path / "a" / "0.tar", {"x.img": LEFT, "x.json": b"{}"}).parent
    assert payload(opened(folder, tmp_path, image="img")) == LEFT


CAUSES = {
    "two kinds": (
        {"x.jpg": LEFT, "x.png": LEFT},
        {},
        ("'jpg', 'png'", "set data.image to one of them, such as jpg"),
    ),
    "unknown": ({"x.img": LEFT, "x.cls": b"1"}, {}, ("'img'", "let data.image name the member")),
    "not read": ({"x.tiff": b"II*\0"}, {}, ("'tiff'", "convert its images to PNG, JPEG or WebP")),
    "not there": (
        {"x.png": LEFT},
        {"image": "left.png"},
        ("data.image is 'left.png'", "a member that it has"),
    ),
}


@pytest.mark.parametrize("name", CAUSES)
def test_each_cause_has_its_own_cure(tmp_path: Path, name: str) -> None:
    members, settings, parts = CAUSES[name]
    with pytest.raises(DataError) as raised:
        opened(tar(tmp_path / "a" / "0.tar", members).parent, tmp_path, **settings)
    one_line(raised.value, *parts)
    assert "copy the shard again" not in str(raised.value)


def damaged_set(root: Path) -> Path:
    """Two shards and an empty one: 200 whole records, one without an image, one whose label is a
    name.
    """
    many = {f"{number:03d}.png": encoded(pixels(number, 8, 8)) for number in range(200)}
    tar(root / "0.tar", many | {"no_image.cls": b"1"})
    tar(root / "1.tar", {"a.png": LEFT, "a.cls": b"n01440764", "b.png": RIGHT})
    (root / "2.tar").write_bytes(b"")
    return root


def test_all_that_cannot_be_read_is_listed_at_once(tmp_path: Path) -> None:
    with refusal(
        DataError,
        "3 things",
        "'0.tar'",
        "no_image",
        "'1.tar'",
        "n01440764",
        "'2.tar'",
        "is empty",
        "check",
        "--fix",
        "data.damaged = skip",
    ):
        opened(damaged_set(tmp_path / "tars"), tmp_path)


def test_damaged_records_are_left_out_of_the_index_if_that_is_asked(tmp_path: Path) -> None:
    folder = damaged_set(tmp_path / "tars")
    stream = opened(folder, tmp_path, damaged="skip", damaged_limit=0.02)
    assert stream.records == 201
    assert sum(len(batch.records) for batch in stream.once(50)) == 201
    assert Index.open(folder).left_out == 3
    flags = {
        "method.name": "ae",
        "data.source": str(folder),
        "data.cache": str(tmp_path / "cache"),
        "data.damaged": "skip",
        "data.damaged_limit": "0.02",
        "train.epochs": "1",
    }
    assert any(
        "3 records that cannot be read" in line
        for line in checked_plan(experiments.load(None, flags)).lines()
    )
    with refusal(DataError, "3 things", "n01440764"):
        opened(folder, tmp_path)
    with pytest.raises(DataError) as limit:
        opened(folder, tmp_path, damaged="skip", damaged_limit=0.001)
    one_line(limit.value, "3 records", "data.damaged_limit")


def test_udl_index_follows_the_same_policy(tmp_path: Path) -> None:
    folder = damaged_set(tmp_path / "tars")
    assert udl("index", str(folder)).returncode == 3
    done = udl("index", str(folder), "--damaged", "skip")
    assert done.returncode == 0 and "3 unreadable records are left out" in done.stdout, done
    assert udl("index", str(folder)).returncode == 3
