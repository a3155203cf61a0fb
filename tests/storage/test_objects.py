"""Object storage as moto speaks it: what is written is read, in every shape, and a forked process
reads as well.
"""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.data.loader.made import tar
from tests.storage.served import served
from udl_dist.errors import DataError
from udl_dist.storage.objects import Object, download, exists, list_tars, upload
from udl_dist.storage.range_cache import RangeCache
from udl_dist.storage.ranges import Window, read_ranges
from udl_dist.storage.uris import name_of

DATA = np.random.default_rng(0).bytes(12_000_000)  # more than one part of a copy in parts


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with served() as address:
        yield address


@pytest.fixture(scope="module")
def blob(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Object:
    path = tmp_path_factory.mktemp("storage") / "data.bin"
    path.write_bytes(DATA)
    upload(path, "s3://bucket/folder/data.bin")
    return Object("s3://bucket/folder/data.bin")


def test_what_was_written_is_read_back(blob: Object, tmp_path: Path) -> None:
    assert (blob.name, blob.size) == ("s3://bucket/folder/data.bin", len(DATA))
    assert blob.stamp.startswith("etag:")
    for start, length in [(0, 1), (5, 0), (len(DATA) - 1, 1), (1000, 3_000_000), (0, len(DATA))]:
        assert blob.read(start, length) == DATA[start : start + length]
    download("s3://bucket/folder/data.bin", tmp_path / "copy.bin")
    assert (tmp_path / "copy.bin").read_bytes() == DATA


def test_the_endpoint_may_stand_in_the_uri(
    blob: Object, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    again = Object(f"{blob.name}?endpoint_override={endpoint}&region=eu-west-1")
    assert again.read(7, 100) == DATA[7:107] and again.stamp == blob.stamp


@pytest.mark.parametrize("where", [(-1, 5), (len(DATA), 1), (len(DATA) - 3, 5)])
def test_what_lies_outside_is_refused(blob: Object, where: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=r"'s3://bucket/folder/data.bin' has 12000000 bytes"):
        blob.read(*where)


def test_many_threads_share_one_blob(blob: Object) -> None:
    starts = np.random.default_rng(1).integers(0, len(DATA) - 10_000, 100).tolist()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda start: blob.read(start, 10_000), starts))
    assert found == [DATA[start : start + 10_000] for start in starts]


def test_ranges_come_in_the_order_asked_for_and_are_counted(endpoint: str) -> None:
    blob = Object("s3://bucket/folder/data.bin")
    ranges = [(at * 1700, 300) for at in range(50)] + [
        (9_000_000, 40_000),
        (0, 300),
        (5_000_000, 0),
    ]
    np.random.default_rng(2).shuffle(ranges)
    before = blob.traffic.requests
    assert read_ranges(blob, ranges) == [DATA[start : start + length] for start, length in ranges]
    assert blob.traffic.requests - before <= 3 and blob.traffic.bytes_wanted == sum(
        length for _, length in ranges
    )


def test_a_missing_object_is_said_to_be_missing(endpoint: str) -> None:
    assert (
        exists("s3://bucket/folder/data.bin")
        and not exists("s3://bucket/folder")
        and not exists("s3://bucket/no")
    )
    for uri in ("s3://bucket/no.tar", "s3://no-such-bucket/a.tar"):
        with pytest.raises(DataError, match=f"'{uri}' is missing"):
            Object(uri)


def test_the_tars_directly_below_a_prefix_are_listed_by_bytes(
    endpoint: str, tmp_path: Path
) -> None:
    path = tar(tmp_path / "a.tar", {"0.png": b"x"})
    for name in ("é.tar", "b.tar", "B.tar", "a 1%.tar", "notes.txt", "deeper/c.tar"):
        upload(path, f"s3://bucket/shards/{name}")
    expected = [f"s3://bucket/shards/{name}" for name in ("B.tar", "a 1%.tar", "b.tar", "é.tar")]
    assert list_tars("s3://bucket/shards") == list_tars("s3://bucket/shards/") == expected
    listed = list_tars(f"s3://bucket/shards?endpoint_override={endpoint}")
    assert [name_of(uri) for uri in listed] == expected
    assert all(Object(uri).size == path.stat().st_size for uri in listed)
    assert list_tars("s3://bucket/shards/deeper") == ["s3://bucket/shards/deeper/c.tar"]
    with pytest.raises(DataError, match="'s3://bucket/none' is missing"):
        list_tars("s3://bucket/none")


def test_a_walk_that_looks_back_reads_each_byte_once(endpoint: str) -> None:
    blob = Object("s3://bucket/folder/data.bin")
    window = Window(blob, piece_bytes=100_000)
    for at in range(
        0, len(window), 50_000
    ):  # the header of the next record first, then the record before it
        assert window[at + 50_000 : at + 50_512] == DATA[at + 50_000 : at + 50_512]
        assert window[at : at + 50_000] == DATA[at : at + 50_000]
    assert blob.traffic.bytes_read == blob.size


def test_a_second_epoch_comes_from_the_cache(endpoint: str, tmp_path: Path) -> None:
    blob, cache = Object("s3://bucket/folder/data.bin"), RangeCache(tmp_path, 10_000_000)
    ranges = [(at * 50_000, 20_000) for at in range(20)]
    first = read_ranges(blob, ranges, cache)
    before = blob.traffic.requests
    assert read_ranges(blob, [*ranges[::-1], (1, 5)], cache) == [*first[::-1], DATA[1:6]]
    assert blob.traffic.requests == before + 1


CHILD = """
import os, signal, sys
from udl_dist.errors import UsageError
from udl_dist.storage.objects import Object
first = Object(sys.argv[1]) if sys.argv[2] == "parent" else None
child = os.fork()
if child == 0:
    signal.alarm(30)
    try:
        os._exit(len((first or Object(sys.argv[1])).read(0, 10)))
    except UsageError as error:
        print(error, flush=True)
        os._exit(2)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize(("opened", "code"), [("parent", 2), ("child", 10)])
def test_a_forked_child_reads_unless_its_parent_has_read_before(
    blob: Object, opened: str, code: int
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", CHILD, blob.name, opened]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == code, ended.stderr
    assert (code == 2) == ('multiprocessing_context="spawn"' in ended.stdout)
