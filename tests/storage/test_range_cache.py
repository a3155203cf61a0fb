"""Ranges on disk: right or not at all, never more than allowed, the least recently used out
first.
"""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from udl_dist.errors import UsageError
from udl_dist.storage.range_cache import RangeCache

BLOCK = 4096
CONTENT = b"x" * (BLOCK - 8)  # one block with its checksum


def on_disk(folder: Path) -> int:
    return sum(-(-path.stat().st_size // BLOCK) * BLOCK for path in pieces(folder))


def pieces(folder: Path) -> list[Path]:
    return [path for path in folder.glob("??/*") if path.is_file()]


def test_what_was_stored_is_found_by_name_stamp_and_range(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 10 * BLOCK)
    cache.put("s3://b/a", "etag:1", 5, b"hello")
    assert cache.get("s3://b/a", "etag:1", 5, 5) == b"hello"
    assert RangeCache(tmp_path, 10 * BLOCK).get("s3://b/a", "etag:1", 5, 5) == b"hello"
    for other in [
        ("s3://b/b", "etag:1", 5, 5),
        ("s3://b/a", "etag:2", 5, 5),
        ("s3://b/a", "etag:1", 4, 5),
        ("s3://b/a", "etag:1", 5, 4),
    ]:
        assert cache.get(*other) is None


@pytest.mark.parametrize("damage", ["flip", "cut", "long", "empty"])
def test_a_damaged_file_is_dropped(tmp_path: Path, damage: str) -> None:
    cache = RangeCache(tmp_path, 10 * BLOCK)
    cache.put("a", "1", 0, b"hello" * 100)
    (path,) = pieces(tmp_path)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    damaged = {
        "flip": bytes(data),
        "cut": path.read_bytes()[:-1],
        "long": path.read_bytes() + b"o",
        "empty": b"",
    }
    path.write_bytes(damaged[damage])
    assert cache.get("a", "1", 0, 500) is None and pieces(tmp_path) == []
    cache.put("a", "1", 0, b"hello" * 100)
    assert cache.get("a", "1", 0, 500) == b"hello" * 100


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 10 * BLOCK)
    for start in range(10):
        cache.put("a", "1", start, CONTENT)
        os.utime(cache._path("a", "1", start, len(CONTENT)), (start, start))
    assert cache.get("a", "1", 0, len(CONTENT)) == CONTENT  # used again, just now
    cache.put("a", "1", 99, CONTENT)
    there = [
        start for start in [*range(10), 99] if cache.get("a", "1", start, len(CONTENT)) is not None
    ]
    assert there == [0, *range(3, 10), 99] and on_disk(tmp_path) <= 10 * BLOCK


def test_what_is_too_large_is_not_stored_and_evicts_nothing(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 2 * BLOCK)
    cache.put("a", "1", 0, CONTENT)
    cache.put("a", "1", 0, b"x" * 3 * BLOCK)
    assert len(pieces(tmp_path)) == 1 and cache.get("a", "1", 0, len(CONTENT)) == CONTENT


def test_what_is_there_at_the_start_counts(tmp_path: Path) -> None:
    before = RangeCache(tmp_path, 20 * BLOCK)
    for start in range(20):
        before.put("a", "1", start, CONTENT)
    (tmp_path / "total").unlink()
    assert on_disk(tmp_path) == 20 * BLOCK
    RangeCache(tmp_path, 5 * BLOCK)
    assert on_disk(tmp_path) <= 5 * BLOCK


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write to the cache"):
        RangeCache(tmp_path / "file", BLOCK)


WRITER = """
import random, sys
from pathlib import Path
from udl_dist.storage.range_cache import RangeCache
cache, chance = RangeCache(Path(sys.argv[1]), 50 * 4096), random.Random(sys.argv[2])
for number in range(150):
    start, length = chance.randrange(200), chance.choice([10, 5000, 9000])
    wanted = (start % 251).to_bytes() * length
    found = cache.get("a", "1", start, length)
    assert found in (None, wanted)
    if found is None:
        cache.put("a", "1", start, wanted)
assert not cache.failed
"""


def test_processes_share_a_cache_that_stays_within_its_bound(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(number)])
        for number in range(3)
    ]
    most, folder = 0, tmp_path
    while any(writer.poll() is None for writer in writers):
        with contextlib.suppress(FileNotFoundError):  # evicted while we counted
            most = max(most, on_disk(folder))
        time.sleep(0.01)
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert 0 < most <= 50 * BLOCK and on_disk(folder) <= 50 * BLOCK
    assert not [path for path in pieces(folder) if path.suffix == ".part"]
