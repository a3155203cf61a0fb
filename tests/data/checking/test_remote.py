"""Shards in object storage are checked as those on a disk are, in few bytes; a clean copy goes to a
disk.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.checking.test_check import checked
from tests.data.loader import made
from tests.data.loader.made import encoded, pixels, tar
from tests.storage.served import put, served
from tests.test_cli import refused, udl
from udl_dist.data.checking.check import check
from udl_dist.data.checking.findings import Findings
from udl_dist.data.packing import indexes
from udl_dist.data.settings import CheckSettings, IndexSettings
from udl_dist.data.shards.index import Index
from udl_dist.data.shards.indexing import index_shards
from udl_dist.storage import ranges
from udl_dist.storage.objects import upload


@pytest.fixture(scope="module", autouse=True)
def endpoint() -> Iterator[str]:
    with served() as endpoint:
        yield endpoint


def indexed(
    tmp_path: Path, prefix: str, counts: list[int], size: int = 16
) -> tuple[list[Path], str]:
    """Shards on disk and their copies below a prefix, both with an index next to them."""
    paths = made.shards(tmp_path / "tars", counts, size)
    index_shards(paths)
    source = put(tmp_path / "tars", prefix)
    indexes.index(source, IndexSettings(cache=str(tmp_path / "cache")))
    return paths, source


def checked_there(source: str, tmp_path: Path, **settings: Any) -> Findings:
    return check(
        source, CheckSettings(**{"threads": 2, "cache": str(tmp_path / "cache"), **settings})
    )


def wounded(path: Path, index: Index, payloads: tuple[int, ...], headers: tuple[int, ...]) -> None:
    """Flip a bit of some payloads and headers of the first shard, its time as it was."""
    status, data = path.stat(), bytearray(path.read_bytes())
    for record in payloads:
        data[int(index.rows["offset"][record]) + 20] ^= 1
    for record in headers:
        data[int(index.rows["offset"][record]) - 512] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def alike(one: Findings, other: Findings) -> None:
    """The same findings, wherever the shards lie."""
    for name in (
        "shards",
        "total_bytes",
        "indexed",
        "readable",
        "records",
        "classes",
        "copies",
        "leaks",
        "looked",
    ):
        assert getattr(one, name) == getattr(other, name), name
    assert [(entry.at, entry.key, entry.what, entry.lost) for entry in one.damage] == [
        (entry.at, entry.key, entry.what, entry.lost) for entry in other.damage
    ]


def test_whole_shards_are_whole_and_what_is_damaged_is_named(tmp_path: Path) -> None:
    paths, source = indexed(tmp_path, "whole", [30, 20])
    whole = checked_there(source, tmp_path, decode=True)
    alike(whole, checked(tmp_path / "tars", decode=True))
    assert (whole.exit_code, whole.readable) == (0, 50)
    wounded(paths[0], Index.open(tmp_path / "tars"), (3, 17), (5, 6, 21))
    upload(paths[0], f"{source}/{paths[0].name}")
    found = checked_there(source, tmp_path)
    alike(found, checked(tmp_path / "tars"))
    assert (found.exit_code, found.readable, found.lost) == (3, 48, 2)
    assert {entry.shard for entry in found.damage} == {f"{source}/{paths[0].name}"}


@pytest.mark.parametrize("piece", [2**16, ranges.PIECE])
def test_records_whose_headers_are_gone_are_read_going_back_once(
    tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pieces much smaller than a shard, so that the walk has left behind what it must read
    again.
    """
    paths, source = indexed(tmp_path, f"back{piece}", [200], 64)
    wounded(paths[0], Index.open(tmp_path / "tars"), (3,), (0, 1, 60, 120, 180, 199))
    upload(paths[0], f"{source}/{paths[0].name}")
    lengths = list[int]()
    begin = ranges.Window.__init__
    monkeypatch.setattr(
        ranges.Window,
        "__init__",
        lambda window, blob: begin(window, counting(blob, lengths), piece),
    )
    found = checked_there(source, tmp_path)
    alike(found, checked(tmp_path / "tars"))
    assert found.readable == 199
    assert sum(lengths) <= 2 * paths[0].stat().st_size + 4 * piece


def counting(blob: Any, lengths: list[int]) -> Any:
    """A blob whose requests are noted by their lengths."""
    begin = blob.begin

    def noted(start: int, length: int) -> Any:
        lengths.append(length)
        return begin(start, length)

    blob.begin = noted
    return blob


def test_copies_are_found_without_fetching_shards_again(tmp_path: Path) -> None:
    image = encoded(pixels(1, 16, 16))
    tar(
        tmp_path / "tars" / "0.tar",
        {"a.png": image, "b.png": encoded(pixels(2, 16, 16)), "c.png": image},
    )
    source = put(tmp_path / "tars", "copies")
    found = checked_there(source, tmp_path)
    assert (found.copies, found.compared, found.exit_code) == (1, 0, 0)
    assert [line.rpartition("key ")[2] for line in found.copied[0]] == ["'a'", "'c'"]
    assert found.copied[0][0].startswith(f"{source}/0.tar at byte ")
    assert found.total_bytes == (tmp_path / "tars" / "0.tar").stat().st_size


def test_a_clean_copy_of_remote_shards_is_written_to_a_disk_and_nowhere_else(
    tmp_path: Path,
) -> None:
    paths, source = indexed(tmp_path, "fix", [12, 9])
    wounded(paths[0], Index.open(tmp_path / "tars"), (3,), (5,))
    upload(paths[0], f"{source}/{paths[0].name}")
    found = checked_there(source, tmp_path, fix=str(tmp_path / "clean"))
    assert found.exit_code == 3
    clean = checked(tmp_path / "clean", decode=True)
    assert (clean.exit_code, clean.readable) == (0, 20)
    assert sorted(path.name for path in (tmp_path / "clean").glob("*.tar")) == [
        path.name for path in paths
    ]
    assert len((tmp_path / "clean" / "left_out.txt").read_text().splitlines()) == 1
    refused(
        udl("check", source, "--fix", f"{source}-clean"),
        2,
        "written to a disk",
        "s3://bucket/fix-clean",
    )


@pytest.mark.parametrize("remote", [False, True])
def test_indexes_of_patterns_and_lists_are_looked_up_in_the_cache(
    tmp_path: Path, remote: bool
) -> None:
    paths = made.shards(tmp_path / "tars", [5, 6, 7], 16)
    folder = put(tmp_path / "tars", "patterns") if remote else str(tmp_path / "tars")
    (tmp_path / "some.txt").write_text(f"{folder}/{paths[0].name}\n{folder}/{paths[2].name}\n")
    for source, records in (
        (f"{folder}/{{000000..000001}}.tar", 11),
        (str(tmp_path / "some.txt"), 12),
    ):
        assert checked_there(source, tmp_path).compared == 0
        indexes.index(source, IndexSettings(cache=str(tmp_path / "cache")))
        found = checked_there(source, tmp_path)
        assert (found.compared, found.indexed, found.readable, found.exit_code) == (
            2,
            records,
            records,
            0,
        )
    data = bytearray(paths[0].read_bytes())
    data[int(np.asarray(index_shards(paths, tmp_path / "i.udl").rows["offset"])[1]) + 20] ^= 1
    if remote:
        paths[0].write_bytes(data)
        upload(paths[0], f"{folder}/{paths[0].name}")
        assert checked_there(str(tmp_path / "some.txt"), tmp_path).lost == 1


def test_what_is_not_there_is_refused_or_named(tmp_path: Path) -> None:
    refused(udl("check", "s3://bucket/nowhere"), 3, "s3://bucket/nowhere", "is missing")
    paths, source = indexed(tmp_path, "gone", [3, 4])
    from udl_dist.storage.objects import remove

    remove(f"{source}/{paths[1].name}")
    found = checked_there(source, tmp_path)
    assert (found.exit_code, found.lost, found.readable) == (3, 4, 3)
    assert "is missing" in found.damage[0].what
