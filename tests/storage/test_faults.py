"""Storage that misbehaves: what may pass is waited for and read right, what is final is said in one
line, soon.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.loader.made import one_line, refusal
from tests.storage.faulty import Faulty
from udl_dist.errors import DataError, UsageError
from udl_dist.storage.objects import Object, download, exists, list_tars
from udl_dist.storage.ranges import PIECE, Window, read_ranges
from udl_dist.storage.transfers import Limits

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
def blob(server: Faulty) -> Iterator[Object]:
    yield Object(server.uri("bucket/a.tar"), QUICK)


def test_no_one_listens_there() -> None:
    started = time.monotonic()
    with pytest.raises(DataError, match="storage does not answer") as raised:
        Object("s3://bucket/a.tar?endpoint_override=http://127.0.0.1:9", QUICK)
    assert time.monotonic() - started < QUICK.total_seconds
    one_line(raised.value, "s3://bucket/a.tar")


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_costs_a_retry_and_no_byte(
    server: Faulty, blob: Object, fault: str
) -> None:
    server.faults.append(fault)
    assert blob.read(1000, 5000) == DATA[1000:6000]
    assert server.gets() == 2


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_stays_is_given_up_in_bounded_time_and_one_line(
    server: Faulty, blob: Object, fault: str
) -> None:
    server.faults.extend([fault] * 9)
    started = time.monotonic()
    with pytest.raises(DataError, match="storage does not answer after 3 attempts") as raised:
        blob.read(1000, 5000)
    assert QUICK.attempts <= server.gets() <= 2 * QUICK.attempts  # a slow request may be made twice
    assert time.monotonic() - started < QUICK.total_seconds
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
    server: Faulty, blob: Object, fault: str, words: str
) -> None:
    server.always = fault
    for ask in (lambda: blob.read(0, 5000), lambda: Object(server.uri("bucket/a.tar"), QUICK)):
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
        Object("s3://bucket/a.tar", QUICK)
    assert "s3cr3tword" not in str(raised.value)


def test_credentials_that_have_expired_are_reported_as_that(server: Faulty, blob: Object) -> None:
    server.always = "400"
    for ask in (lambda: blob.read(0, 5), lambda: list_tars(server.uri("bucket"), QUICK)):
        with pytest.raises(
            DataError, match="the credentials have expired: renew them .*; the same command goes on"
        ):
            ask()


@pytest.mark.parametrize(("fault", "words"), [("403", "access denied"), ("404", "is missing")])
@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_google_and_azure_are_understood_too(
    server: Faulty, monkeypatch: pytest.MonkeyPatch, scheme: str, fault: str, words: str
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "somebody")
    uri = f"{scheme}://bucket/a.tar?anonymous=true&endpoint_override={server.address}"
    assert Object(uri, QUICK).read(5, 100) == DATA[5:105]
    server.always = fault
    with pytest.raises(DataError, match=f"'{scheme}://bucket/a.tar'.*{words}"):
        Object(uri, QUICK)


def test_an_existence_that_cannot_be_known_is_no_absence(server: Faulty) -> None:
    assert not exists(server.uri("bucket/none.tar"), QUICK)
    server.always = "403"
    with pytest.raises(DataError, match="access denied"):
        exists(server.uri("bucket/none.tar"), QUICK)
    with pytest.raises(DataError, match="access denied"):
        list_tars(server.uri("bucket"), QUICK)


def test_a_stalled_read_is_overtaken_by_a_second_request(server: Faulty, blob: Object) -> None:
    server.faults.append("stall")
    started = time.monotonic()
    assert blob.read(7, 100_000) == DATA[7:100_007]
    assert QUICK.hedge_seconds <= time.monotonic() - started < QUICK.request_seconds
    assert blob.traffic.hedges == 1 and server.gets() == 2


def test_a_hedge_that_fails_leaves_the_first_request_to_answer(
    server: Faulty, blob: Object
) -> None:
    server.faults.extend(["slow", "503"])
    assert blob.read(7, 1000) == DATA[7:1007]
    assert blob.traffic.hedges == 1


def test_without_hedges_a_stall_ends_at_the_time_limit(server: Faulty) -> None:
    blob = Object(server.uri("bucket/a.tar"), NO_HEDGE)
    server.faults.append("stall")
    assert blob.read(7, 1000) == DATA[7:1007]
    assert blob.traffic.hedges == 0
    server.faults.extend(["stall"] * 9)
    started = time.monotonic()
    with pytest.raises(DataError, match="after 2 attempts .no byte within the time limit"):
        blob.read(7, 1000)
    assert time.monotonic() - started < NO_HEDGE.total_seconds


def test_one_stall_among_many_ranges_delays_none_of_the_others(
    server: Faulty, blob: Object
) -> None:
    ranges = [(start, 1000) for start in range(0, 400_000, 20_000)]
    server.faults.extend(["503", "stall", "short", "reset"])
    assert read_ranges(blob, ranges) == [DATA[start : start + length] for start, length in ranges]
    assert blob.traffic.hedges >= 1


def test_a_redirect_of_an_endpoint_brings_no_other_bytes(server: Faulty, blob: Object) -> None:
    with Faulty({"bucket/a.tar": b"x" * len(DATA)}) as elsewhere:
        server.faults.append(f"307 {elsewhere.address}")
        with pytest.raises(DataError, match="another ETag"):
            blob.read(0, 10)


def test_an_object_that_was_written_again_is_noticed_by_its_etag(
    server: Faulty, blob: Object
) -> None:
    assert blob.stamp.startswith("etag:")
    server.objects["bucket/a.tar"] = DATA[::-1]
    with refusal(
        DataError,
        "s3://bucket/a.tar",
        "written again (another ETag) while it was read: start again",
    ):
        blob.read(0, 10)
    server.objects["bucket/a.tar"] = DATA[:1000]
    with pytest.raises(DataError, match="was written again"):
        blob.read(1000, 10)


def test_a_copy_is_whole_or_absent(server: Faulty, tmp_path: Path) -> None:
    server.faults.extend(["503", "reset"])
    download(server.uri("bucket/big.tar"), tmp_path / "copy.tar", QUICK)
    assert (tmp_path / "copy.tar").read_bytes() == server.objects["bucket/big.tar"]
    # All after the first: a slow request is made twice, and of two answers the better one counts.
    server.faults.extend(["", *["403"] * 20])
    with pytest.raises(DataError, match="access denied"):
        download(server.uri("bucket/big.tar"), tmp_path / "copy.tar.2", QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["copy.tar"]


def test_a_walk_reads_each_byte_once(server: Faulty) -> None:
    blob = Object(server.uri("bucket/big.tar"), QUICK)
    window, whole = Window(blob), server.objects["bucket/big.tar"]
    server.faults.append("reset")
    assert b"".join(window[at : at + 100_003] for at in range(0, len(window), 100_003)) == whole
    assert blob.traffic.bytes_read == blob.size
