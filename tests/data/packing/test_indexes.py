"""`udl index`: its input, its output, and that a killed run continues where it stopped."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.data.loader import made
from tests.data.loader.made import refusal, tar
from tests.test_cli import refused, udl
from udl_dist.data.packing.finding import list_shards
from udl_dist.data.packing.indexes import index
from udl_dist.data.settings import IndexSettings
from udl_dist.data.shards.index import NAME, ROW, Index
from udl_dist.data.shards.indexing import index_shards
from udl_dist.errors import DataError, UdlError, UsageError

# As a user would, but after each shard the process waits, perhaps to be killed.
SLOW = """
import sys, time
from udl_dist import cli
from udl_dist.data.shards import indexing
rows = indexing._walked
def slowly(*arguments):
    time.sleep(0.2)
    return rows(*arguments)
indexing._walked = slowly
cli.main(["index", sys.argv[1]])
"""


def many(folder: Path, count: int) -> list[Path]:
    """Shards of three records."""
    return made.shards(folder, [3] * count)


def parts(folder: Path) -> dict[str, int]:
    """What an interrupted run has left, and when each was written."""
    return {
        path.name: path.stat().st_mtime_ns for path in (folder / f".{NAME}.parts").glob("*.part")
    }


def killed_after(folder: Path, count: int) -> dict[str, int]:
    """Index slowly, kill the process once `count` shards are done; return what it left."""
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(folder)], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while len(parts(folder)) < count and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return parts(folder)


def test_a_killed_run_is_gone_on_with_and_reads_only_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = many(tmp_path / "tars", 40)
    left = killed_after(tmp_path / "tars", 6)
    assert 6 <= len(left) < 40
    assert not (tmp_path / "tars" / NAME).exists()
    walked = list[int]()
    from udl_dist.data.shards import indexing

    rows = indexing._walked

    def noted(shard: Any, *rest: Any) -> Any:
        walked.append(shard.shard_bytes)
        return rows(shard, *rest)

    monkeypatch.setattr(indexing, "_walked", noted)
    found = index(str(tmp_path / "tars"), IndexSettings())
    assert len(walked) == 40 - len(left)
    assert found.fingerprint == index_shards(paths, tmp_path / "again.udl").fingerprint
    assert {path.name for path in (tmp_path / "tars").iterdir()} == {
        NAME,
        *(path.name for path in paths),
    }


def test_a_shard_that_changed_after_the_kill_is_walked_again(tmp_path: Path) -> None:
    paths = many(tmp_path / "tars", 12)
    assert killed_after(tmp_path / "tars", 3)
    for path in paths:
        os.utime(path, (1, 1))
    tar(paths[0], {"new.png": made.encoded(made.pixels(9, 8, 8))})
    assert index(str(tmp_path / "tars"), IndexSettings()).records == 34
    assert Index.open(tmp_path / "tars").key(0) == "new"


def test_a_part_that_was_damaged_is_made_again(tmp_path: Path) -> None:
    many(tmp_path / "tars", 12)
    assert killed_after(tmp_path / "tars", 3)
    for path in (tmp_path / "tars" / f".{NAME}.parts").glob("*.part"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert index(str(tmp_path / "tars"), IndexSettings()).records == 36


def test_two_processes_make_one_whole_index(tmp_path: Path) -> None:
    paths = many(tmp_path / "tars", 20)
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: udl("index", str(tmp_path / "tars"), "--json"), range(2)))
    assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
    assert len({json.loads(each.stdout)["fingerprint"] for each in done}) == 1
    opened = Index.open(tmp_path / "tars")
    assert opened.records == 60
    for shard in range(20):
        opened.check_rows(shard)
    assert {path.name for path in (tmp_path / "tars").iterdir()} == {
        NAME,
        *(path.name for path in paths),
    }


def test_memory_does_not_grow_with_the_number_of_shards(tmp_path: Path) -> None:
    image, peaks = made.encoded(made.pixels(0, 8, 8)), []
    for count in (4, 32):
        paths = [
            tar(
                tmp_path / str(count) / f"{shard}.tar",
                {f"{shard}-{number}.png": image for number in range(500)},
            )
            for shard in range(count)
        ]
        tracemalloc.start()
        index_shards(paths)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    rows = (32 - 4) * 500 * ROW.itemsize  # that would be held if those of all shards were
    assert peaks[1] - peaks[0] < rows / 2


def test_folder_pattern_and_list_are_indexed_and_counted(tmp_path: Path) -> None:
    paths = many(tmp_path / "tars", 3)
    done = udl("index", str(tmp_path / "tars"))
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
    assert done.stdout.startswith("indexed 9 records in 3 shards of ")
    assert repr(str(tmp_path / "tars" / NAME)) in done.stdout
    (tmp_path / "some.txt").write_text(f"tars/{paths[2].name}\n")
    for source, records in (
        (f"{tmp_path}/tars/{{000000..000001}}.tar", 6),
        (str(tmp_path / "some.txt"), 3),
    ):
        shown = json.loads(
            udl("index", source, "--cache", str(tmp_path / "cache"), "--json").stdout
        )
        assert (shown["records"], shown["ignored"]) == (records, 0)
        assert Path(shown["index"]).parent == tmp_path / "cache" / "indexes"


@pytest.mark.parametrize("source", ["tars", "tars/{000000..000001}.tar"])
def test_again_indexes_again_and_without_it_nothing_is_read(tmp_path: Path, source: str) -> None:
    many(tmp_path / "tars", 3)
    settings = IndexSettings(cache=str(tmp_path / "cache"))
    first = Path(index(f"{tmp_path}/{source}", settings).index)
    written = first.stat().st_ino, first.stat().st_mtime_ns
    index(f"{tmp_path}/{source}", settings)
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == written
    index(f"{tmp_path}/{source}", IndexSettings(cache=str(tmp_path / "cache"), again=True))
    assert (first.stat().st_ino, first.stat().st_mtime_ns) != written


def test_what_names_no_shards_is_refused_in_one_line(tmp_path: Path) -> None:
    refused(udl("index", str(tmp_path)), 2, "names no tar shards")
    refused(udl("index", str(tmp_path / "a{0..1.tar")), 2, "a{0..1.tar", "braces do not match")
    refused(udl("index", str(tmp_path / "missing.tar")), 3, "missing.tar", "is missing")
    refused(udl("index", "ftp://host/0.tar"), 2, "ftp:")


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a{0..1.tar", b"", UsageError),
        ("{0..1000}.tar", b"", UsageError),
        ("list.txt", b"\xff\xfe\n", DataError),
        ("list.txt", b"a{0..1.tar\n", UsageError),
    ],
)
def test_patterns_and_lists_that_make_no_sense_are_named(
    tmp_path: Path, name: str, content: bytes, kind: type[UdlError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("udl_dist.data.packing.finding.MOST_SHARDS", 1000)
    if content:
        (tmp_path / name).write_bytes(content)
    with refusal(kind, name if not content else ""):
        list_shards(str(tmp_path / name))
