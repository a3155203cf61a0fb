"""Storage that misbehaves: what may pass is waited for and read right, what is final is said in one
line, soon.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.loader.made import one_line
from tests.storage.faulty import Faulty
from udl_dist.errors import DataError, UsageError
from udl_dist.storage.fetching import Limits
from udl_dist.storage.objects import download, exists, list_tars, open_blob
from udl_dist.storage.ranges import PIECE, Blob, Window, read_ranges

DATA = os.urandom(400_000)
QUICK = Limits(
    connect_seconds=1.0,
    stall_seconds=1.0,
    request_seconds=3.0,
    attempts=3,
    total_seconds=8.0,
    hedge_seconds=0.3,
)
NO_HEDGE = Limits(
    connect_seconds=1.0,
    stall_seconds=1.0,
    request_seconds=0.5,
    attempts=2,
    total_seconds=4.0,
    hedge_seconds=0.0,
)
PASSING = ["503", "500", "short", "reset"]


@pytest.fixture(scope="module", autouse=True)
def credentials() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3tword")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def started() -> Iterator[Faulty]:
    with Faulty(
        {"bucket/a.tar": DATA, "bucket/big.tar": os.urandom(3 * PIECE + 5), "bucket/b/c.tar": b""}
    ) as server:
        yield server


@pytest.fixture
def server(started: Faulty) -> Iterator[Faulty]:
    started.seen.clear()
    started.objects["bucket/a.tar"] = DATA
    yield started
    started.always = ""
    started.faults.clear()


@pytest.fixture
def blob(server: Faulty) -> Iterator[Blob]:
    blob = open_blob(server.uri("bucket/a.tar"), QUICK)
    yield blob
    blob.close()


def test_nobody_listens_there() -> None:
    started = time.monotonic()
    with pytest.raises(DataError, match="storage does not answer") as raised:
        open_blob("s3://bucket/a.tar?endpoint_override=http://127.0.0.1:9", QUICK)
    assert time.monotonic() - started < QUICK.total_seconds
    one_line(raised.value, "s3://bucket/a.tar")


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_costs_a_retry_and_no_byte(
    server: Faulty, blob: Blob, fault: str
) -> None:
    server.faults.append(fault)
    assert blob.read(1000, 5000) == DATA[1000:6000]
    assert blob.traffic.retries == 1 and server.gets() == 2


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_stays_is_given_up_in_bounded_time_and_one_line(
    server: Faulty, blob: Blob, fault: str
) -> None:
    server.faults.extend([fault] * 9)
    started = time.monotonic()
    with pytest.raises(DataError, match="storage does not answer after 3 attempts") as raised:
        blob.read(1000, 5000)
    assert server.gets() == QUICK.attempts and time.monotonic() - started < QUICK.total_seconds
    one_line(raised.value, "s3://bucket/a.tar", "check the network")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("403", "access denied: check credentials"),
        ("404", "is missing"),
        ("400", "credentials have expired"),
    ],
)
def test_what_is_denied_or_missing_is_asked_for_once(
    server: Faulty, blob: Blob, fault: str, words: str
) -> None:
    server.always = fault
    for ask in (lambda: blob.read(0, 5000), lambda: open_blob(server.uri("bucket/a.tar"), QUICK)):
        server.seen.clear()
        with pytest.raises(DataError, match=words) as raised:
            ask()
        one_line(raised.value, "s3://bucket/a.tar")
        assert "s3cr3tword" not in str(raised.value) and "AKIATEST" not in str(raised.value)
        assert len(server.seen) == 1


def test_credentials_in_the_endpoint_are_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:s3cr3tword@127.0.0.1:9")
    with pytest.raises(UsageError, match="AWS_ENDPOINT_URL must not hold credentials") as raised:
        open_blob("s3://bucket/a.tar", QUICK)
    assert "s3cr3tword" not in str(raised.value)


def test_credentials_that_have_expired_are_told_as_that(server: Faulty) -> None:
    """By whatever brings a body: of a read pyarrow loses it now and then, and a HEAD has none."""
    server.always = "400"
    with pytest.raises(
        DataError,
        match="bucket': the credentials have expired: renew them .*; the same command goes on",
    ):
        list_tars(server.uri("bucket"), QUICK)


@pytest.mark.parametrize(("fault", "words"), [("403", "access denied"), ("404", "is missing")])
def test_an_error_longer_than_the_range_is_understood_too(
    server: Faulty, blob: Blob, fault: str, words: str
) -> None:
    server.always = fault
    with pytest.raises(DataError, match=words):
        blob.read(0, 5)


@pytest.mark.parametrize(("fault", "words"), [("403", "access denied"), ("404", "is missing")])
def test_google_storage_is_understood_too(server: Faulty, fault: str, words: str) -> None:
    server.always = fault
    with pytest.raises(DataError, match=f"'gs://bucket/a.tar'.*{words}"):
        open_blob(f"gs://bucket/a.tar?anonymous=true&endpoint_override={server.address}", QUICK)


def test_an_existence_that_cannot_be_known_is_no_absence(server: Faulty) -> None:
    assert not exists(server.uri("bucket/none.tar"), QUICK)
    server.always = "403"
    with pytest.raises(DataError, match="access denied"):
        exists(server.uri("bucket/none.tar"), QUICK)
    with pytest.raises(DataError, match="access denied"):
        list_tars(server.uri("bucket"), QUICK)


def test_a_stalled_read_is_overtaken_by_a_second_request(server: Faulty, blob: Blob) -> None:
    server.faults.append("stall")
    started = time.monotonic()
    assert blob.read(7, 100_000) == DATA[7:100_007]
    assert QUICK.hedge_seconds <= time.monotonic() - started < QUICK.request_seconds
    assert blob.traffic.hedges == 1 and blob.traffic.retries == 0 and server.gets() == 2


def test_a_hedge_that_fails_leaves_the_first_request_to_answer(server: Faulty, blob: Blob) -> None:
    server.faults.extend(["slow", "503"])
    assert blob.read(7, 1000) == DATA[7:1007]
    assert blob.traffic.hedges == 1 and blob.traffic.retries == 0


def test_without_hedges_a_stall_ends_at_the_time_limit(server: Faulty) -> None:
    blob = open_blob(server.uri("bucket/a.tar"), NO_HEDGE)
    server.faults.append("stall")
    assert blob.read(7, 1000) == DATA[7:1007]
    assert blob.traffic.hedges == 0 and blob.traffic.retries == 1
    server.faults.extend(["stall"] * 9)
    started = time.monotonic()
    with pytest.raises(DataError, match="no answer within 0.5 s"):
        blob.read(7, 1000)
    assert time.monotonic() - started < NO_HEDGE.total_seconds
    blob.close()


def test_one_stall_among_many_ranges_delays_none_of_the_others(server: Faulty, blob: Blob) -> None:
    ranges = [(start, 1000) for start in range(0, 400_000, 20_000)]
    server.faults.extend(["503", "stall", "short", "reset"])
    assert read_ranges(blob, ranges) == [DATA[start : start + length] for start, length in ranges]
    assert blob.traffic.hedges >= 1 and blob.traffic.retries >= 3


@pytest.mark.parametrize("status", ["301", "307"])
def test_no_redirect_of_a_foreign_endpoint_is_followed(
    server: Faulty, blob: Blob, status: str
) -> None:
    with Faulty({"bucket/a.tar": b"x" * len(DATA)}) as elsewhere:
        server.faults.append(f"{status} {elsewhere.address}")
        with pytest.raises(
            DataError, match=f"redirects \\(HTTP {status}\\), which is not followed"
        ):
            blob.read(0, 10)
        server.always = f"{status} {elsewhere.address}"
        with pytest.raises(DataError, match="not followed|refused"):
            open_blob(server.uri("bucket/a.tar"), QUICK)
        assert elsewhere.seen == []


def test_an_object_that_was_written_again_is_told_by_its_etag(server: Faulty, blob: Blob) -> None:
    assert blob.stamp.startswith("etag:") and blob.changed() == ""
    server.objects["bucket/a.tar"] = DATA[::-1]
    assert blob.changed() == "was written again (another ETag)"
    server.objects["bucket/a.tar"] = DATA[:1000]
    assert blob.changed() == "has 1000 bytes where it had 400000"


def test_a_copy_is_whole_or_absent(server: Faulty, tmp_path: Path) -> None:
    server.faults.extend(["503", "reset"])
    download(server.uri("bucket/big.tar"), tmp_path / "copy.tar", QUICK)
    assert (tmp_path / "copy.tar").read_bytes() == server.objects["bucket/big.tar"]
    server.faults.extend(["", "403"])
    with pytest.raises(DataError, match="access denied"):
        download(server.uri("bucket/big.tar"), tmp_path / "copy.tar.2", QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["copy.tar"]


def test_a_walk_reads_each_byte_once(server: Faulty) -> None:
    blob = open_blob(server.uri("bucket/big.tar"), QUICK)
    window, whole = Window(blob), server.objects["bucket/big.tar"]
    server.faults.append("reset")
    assert b"".join(window[at : at + 100_003] for at in range(0, len(window), 100_003)) == whole
    assert blob.traffic.bytes_read == blob.size
    blob.close()
