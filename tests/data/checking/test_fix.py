"""A clean copy holds all that can be vouched for, and a list of the rest."""

from pathlib import Path

import pytest

from tests.data.checking.test_check import checked
from tests.data.loader.made import encoded, pixels, seen_by_webdataset, shards, tar
from udl_dist.data.checking.fix import is_plain
from udl_dist.data.shards.index import Index
from udl_dist.data.shards.indexing import index_shards
from udl_dist.errors import DataError, UsageError


def keys(folder: Path) -> list[str]:
    index = Index.open(folder)
    return [index.key(record) for record in range(index.records)]


def left_out(folder: Path) -> list[str]:
    return (folder / "left_out.txt").read_text("utf-8").splitlines()


def test_a_whole_set_is_copied_whole(tmp_path: Path) -> None:
    paths = shards(tmp_path / "old", [3, 2])
    index_shards(paths)
    checked(tmp_path / "old", fix=str(tmp_path / "new"))
    assert left_out(tmp_path / "new") == []
    copies = [tmp_path / "new" / path.name for path in paths]
    old, new = seen_by_webdataset(*paths), seen_by_webdataset(*copies)
    assert [{key: value for key, value in record.items() if key[0] != "_"} for record in new] == [
        {key: value for key, value in record.items() if key[0] != "_"} for record in old
    ]
    assert checked(tmp_path / "new", decode=True).damage == []


def test_damaged_records_are_left_out_and_listed_and_damaged_headers_made_good(
    tmp_path: Path,
) -> None:
    (path,) = shards(tmp_path / "old", [6])
    index = index_shards([path])
    data, rows = bytearray(path.read_bytes()), index.rows
    data[int(rows["offset"][1]) + 20] ^= 1  # a payload
    data[int(rows["offset"][3]) - 512] ^= 1  # a header: its image is still where the index says
    path.write_bytes(data)
    found = checked(tmp_path / "old", fix=str(tmp_path / "new"))
    assert found.exit_code == 3
    assert keys(tmp_path / "new") == ["000000", "000002", "000004", "000005", "000003"]
    assert [line for line in left_out(tmp_path / "new") if "key '000001'" in line]
    assert len(left_out(tmp_path / "new")) == 1
    labels = Index.open(tmp_path / "new").rows["label"].tolist()
    assert labels == [0, 2, 4, 5, 3]
    assert checked(tmp_path / "new", decode=True).damage == []


def test_without_an_index_what_decodes_is_copied(tmp_path: Path) -> None:
    image = encoded(pixels(0, 8, 8))
    tar(
        tmp_path / "old" / "0.tar",
        {
            "a.png": image,
            "a.json": b"{}",
            "b.png": image[:-20],
            "c.png": encoded(pixels(1, 8, 8)),
            "a.cls": b"1",
            "../d.png": image,
            "e\n.png": image,
            "f.png": image,
            "f.pkl": b"cos\nsystem",
        },
    )
    checked(tmp_path / "old", fix=str(tmp_path / "new"))
    assert keys(tmp_path / "new") == ["a", "c", "f"]
    assert seen_by_webdataset(tmp_path / "new" / "0.tar")[0]["json"] == b"{}"
    listed = "\n".join(left_out(tmp_path / "new"))
    for said in ("key 'b': is a truncated PNG", "key 'a': has 0 images", "'../d'", r"'e\n'"):
        assert said in listed
    assert checked(tmp_path / "new").damage == []


def test_nothing_is_written_over_a_folder_or_where_nothing_can_be_copied(
    tmp_path: Path,
) -> None:
    shards(tmp_path / "old", [2])
    with pytest.raises(UsageError, match="is not empty"):
        checked(tmp_path / "old", fix=str(tmp_path / "old"))
    tar(tmp_path / "bad" / "0.tar", {"a.png": b"<html>"})
    with pytest.raises(DataError, match="can be copied"):
        checked(tmp_path / "bad", fix=str(tmp_path / "new"))
    assert {path.name for path in tmp_path.iterdir()} == {"old", "bad"}


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        (b"a/b", True),
        ("ü".encode(), True),
        (b"../a", False),
        (b"a/../b", False),
        (b"/a", False),
        (b"a\0", False),
        (b"\x1b[31m", False),
        (b"\xff", False),
        (b"", False),
        (b"a\\b", False),
    ],
)
def test_plain_names_stay_in_their_folder(name: bytes, plain: bool) -> None:
    assert is_plain(name) == plain


def with_copies(root: Path) -> Path:
    """Training images 0 … 5 with 1 twice; held out are 6 twice, and copies of 0 and 1."""
    images = [encoded(pixels(number, 8, 8)) for number in range(7)]
    train = {f"t{number}.png": images[number] for number in range(6)} | {"t1_again.png": images[1]}
    val = {"v0.png": images[0], "v6.png": images[6], "v1.png": images[1], "v6_again.png": images[6]}
    index_shards([tar(root / "train" / "0.tar", train)])
    index_shards([tar(root / "val" / "0.tar", val)])
    return root


CLEAN = {
    "neither": ({}, 7, ["v0", "v6", "v1", "v6_again"]),
    "copies": ({"drop_copies": True}, 6, ["v6"]),
    "leaks": ({"drop_leaks": True}, 7, ["v6", "v6_again"]),
    "both": ({"drop_copies": True, "drop_leaks": True}, 6, ["v6"]),
}


@pytest.mark.parametrize("name", CLEAN)
def test_copies_and_held_out_copies_of_training_images_are_dropped_if_asked(
    tmp_path: Path, name: str
) -> None:
    settings, train, val = CLEAN[name]
    found = checked(with_copies(tmp_path / "old"), fix=str(tmp_path / "new"), **settings)
    assert (found.copies, found.leaks) == (4, 2)
    assert len(keys(tmp_path / "new" / "train")) == train and keys(tmp_path / "new" / "val") == val
    assert len(left_out(tmp_path / "new")) == 11 - train - len(val)
    again = checked(tmp_path / "new")
    assert again.leaks == (0 if settings else 2)
    assert again.copies == 0 or not settings.get("drop_copies")
    for line in left_out(tmp_path / "new"):
        assert "is a copy of" in line or "is held out and a copy of" in line


def test_what_cannot_be_dropped_is_refused(tmp_path: Path) -> None:
    source = with_copies(tmp_path / "old")
    idle = {"drop_leaks": True, "fix": str(tmp_path / "n")}
    for folder, settings, said in (
        (source, {"drop_copies": True}, "fix"),
        (source / "train", idle, "val"),
    ):
        with pytest.raises(UsageError, match=said):
            checked(folder, **settings)
    assert not (tmp_path / "n").exists()
