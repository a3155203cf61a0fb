"""The index: built from plain tars, opened in no time, and never trusted where it does not match
its shards.
"""

import itertools
import os
import re
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import xxhash

from tests.data.loader.made import (
    encoded,
    one_line,
    pixels,
    refusal,
    seen_by_webdataset,
    shards,
    tar,
)
from udl_dist.data.shards.index import NAME, ROW, About, Index, Shard
from udl_dist.data.shards.indexing import Part, index_shards, write_index, write_part
from udl_dist.data.shards.naming import Naming
from udl_dist.data.shards.reading import Shards
from udl_dist.errors import DataError

PNG = encoded(pixels(1, 8, 8))


def read(index: Index, *records: int) -> list[int]:
    """The labels of records whose payloads are read and checked; the first fault is raised."""
    loaded = Shards(index).load(np.array(records))
    for line in loaded.faults.values():
        raise DataError(line)
    return [int(label) for label in loaded.rows["label"]]


def test_rows_say_where_each_image_lies(tmp_path: Path) -> None:
    paths = shards(tmp_path, [3, 1, 4])
    index = index_shards(paths)
    assert index.path == tmp_path / NAME and index.records == 8
    assert ROW.itemsize == 32
    assert index.shard_of(np.arange(8)).tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert [index.key(number) for number in range(8)] == [f"{number:06d}" for number in range(8)]
    for number, row in enumerate(index.rows):
        data = paths[index.shard_of(np.array([number]))[0]].read_bytes()
        payload = data[row["offset"] : row["offset"] + row["length"]]
        assert payload == encoded(pixels(number, 8, 8))
        assert row["checksum"] == google_crc32c.value(payload)
        assert row["key_hash"] == xxhash.xxh3_64_intdigest(b"%06d" % number)
        assert row["label"] == number


def test_records_are_those_that_webdataset_sees(tmp_path: Path) -> None:
    """Keys with folders and dots, upper-case extensions, members of other kinds, meta files, no key
    at all.
    """
    members = {
        "__meta__/about": b"x",
        "./a/b.c/one.PNG": PNG,
        "./a/b.c/one.json": b"{}",
        "two.cls": b"7",
        "two.png": PNG,
        "README": b"x",
        "three.png": PNG,
        "three.seg.png": PNG,
        "three.pkl": b"cos\nsystem\n",
    }
    path = tar(tmp_path / "shard.tar", members)
    index = index_shards([path])
    seen = [record["__key__"] for record in seen_by_webdataset(path)]
    assert (
        [index.key(number) for number in range(index.records)]
        == seen
        == ["./a/b.c/one", "two", "three"]
    )
    assert index.rows["label"].tolist() == [-1, 7, -1]
    assert index.shards[0].ignored == 5


def test_unusual_keys_survive(tmp_path: Path) -> None:
    keys = ["../../x", "new\nline", "\x1b[31mred", "ü" * 90, "k" * 3000, "\udcff\udcfe"]
    path = tar(tmp_path / "shard.tar", {f"{key}.png": PNG for key in keys})
    index = index_shards([path])
    assert [index.key(number) for number in range(5)] == keys[:5]
    assert index.key(5) == "\ufffd\ufffd"
    (tmp_path / "shard.tar").write_bytes(path.read_bytes().replace(PNG, PNG[:-1] + b"x"))
    for number in range(6):
        with refusal(DataError, "shard.tar"):
            read(Index.open(tmp_path), number)


BAD = {
    "no image": ({"a.png": PNG, "b.cls": b"1"}, "has 0 images"),
    "two images": ({"a.png": PNG, "a.jpg": PNG}, "has 2 images"),
    "members apart": ({"a.png": PNG, "b.png": PNG, "a.cls": b"1"}, "a second time"),
    "a key twice": (
        {"a.png": PNG, "b.png": PNG, "./a.png": PNG, "c.png": PNG, "a.PNG": PNG},
        "a second time",
    ),
    "no bytes": ({"a.png": b""}, "has 0 bytes"),
    "label in words": ({"a.png": PNG, "a.cls": b"c\x1b[31mat"}, "not a whole number"),
    "raw of no shape": ({"a.raw": b"123"}, "raw pixels"),
    "a name of 10 kB": ({"k" * 10_000 + ".png": PNG}, "a name of 10004 bytes"),
    "nothing": ({"README": b"1"}, "holds no record"),
}


@pytest.mark.parametrize("name", BAD)
def test_shard_out_of_order_is_named(tmp_path: Path, name: str) -> None:
    members, said = BAD[name]
    path = tar(tmp_path / "shard.tar", members)
    with pytest.raises(DataError, match=said) as raised:
        index_shards([path])
    one_line(raised.value, repr(str(path)))
    assert not (tmp_path / NAME).exists()


def test_a_flipped_bit_of_a_payload_is_named(tmp_path: Path) -> None:
    paths = shards(tmp_path, [3, 3])
    index = index_shards(paths)
    data = bytearray(paths[1].read_bytes())
    offset = int(index.rows["offset"][4])
    data[offset + 20] ^= 4
    paths[1].write_bytes(data)
    reading = Index.open(tmp_path)
    assert read(reading, 3, 5, 0) == [3, 5, 0]
    with refusal(DataError, repr(str(paths[1])), f"byte {offset}", "'000004'", "checksum"):
        read(reading, 3, 4)


def test_a_shard_of_another_size_is_named(tmp_path: Path) -> None:
    paths = shards(tmp_path, [3, 3])
    index = index_shards(paths)
    os.truncate(paths[1], 5000)
    with refusal(DataError, repr(str(paths[1])), "5000"):
        read(index, 4)
    paths[0].unlink()
    with pytest.raises(DataError, match="is missing"):
        read(index, 0)


def test_a_damaged_index_is_named_wherever_the_damage_is(tmp_path: Path) -> None:
    whole = index_shards(shards(tmp_path, [3, 3])).path.read_bytes()
    rows_start = len(whole) - 6 * 32 - 36
    assert whole[-36:] == b"".join(b"%06d" % number for number in range(6))
    path = tmp_path / NAME
    for at in [*range(24), *range(24, rows_start - 64, 7), *range(rows_start, len(whole) - 36, 5)]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 8]) + whole[at + 1 :])
        with refusal(DataError, repr(str(path))):
            read(Index.open(tmp_path), *range(6))
    for damaged in (whole[:-1], whole + b"x", whole[:10], b""):
        path.write_bytes(damaged)
        with refusal(DataError, repr(str(path))):
            Index.open(tmp_path)


def test_a_missing_index_and_one_of_foreign_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        Index.open(tmp_path / "nowhere")
    shard = Shard("../other.tar", 1, 1, 1, "", 0)
    write_part(tmp_path / "part", Part(shard, np.zeros(1, ROW).tobytes(), b"k"))
    write_index(tmp_path / NAME, About(), [tmp_path / "part"])
    with pytest.raises(DataError, match="outside its folder"):
        Index.open(tmp_path)


def test_fingerprint_follows_content_and_not_place(tmp_path: Path) -> None:
    first, second = (
        index_shards(shards(tmp_path / "a", [3, 2])),
        index_shards(shards(tmp_path / "b", [3, 2])),
    )
    assert first.fingerprint == second.fingerprint
    assert index_shards(shards(tmp_path / "c", [2, 3])).fingerprint != first.fingerprint
    assert index_shards(shards(tmp_path / "d", [3, 2], size=9)).fingerprint != first.fingerprint


def test_opening_costs_what_the_shards_cost(tmp_path: Path) -> None:
    """Two million records in 20 shards: no row is touched before it is asked for."""
    rows = np.zeros(100_000, ROW)
    parts = [tmp_path / f"{number}.part" for number in range(20)]
    for number, part in enumerate(parts):
        shard = Shard(f"{number:06d}.tar", 10**8, len(rows), 0, "0", 0)
        write_part(part, Part(shard, rows.tobytes(), b""))
    write_index(tmp_path / NAME, About(), parts)
    pages = _resident_bytes()
    index = Index.open(tmp_path)
    assert index.records == 2_000_000
    assert _resident_bytes() - pages < 8 * 2**20


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_keys_end_where_those_of_webdataset_do() -> None:
    """Against webdataset's own pattern (its base_plus_ext), on all short names of telling letters;
    hidden files are passed by, where webdataset takes their folder for a key.
    """
    pattern = re.compile(rb"^((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)
    for letters in itertools.chain.from_iterable(
        itertools.product(b"a./\n", repeat=length) for length in range(8)
    ):
        name = bytes(letters)
        match = pattern.match(name)
        hidden = name.rpartition(b"/")[2].startswith(b".")
        assert Naming().parts(name) == ((match[1], match[2]) if match and not hidden else None), (
            name
        )
