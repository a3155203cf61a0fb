"""Files of web servers by ranges: the same promises as for buckets, and no signature in any
message.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.loader.made import one_line, refusal
from tests.storage.faulty import Faulty
from udl_dist.errors import DataError, UsageError
from udl_dist.storage.objects import Object, download, exists, list_tars
from udl_dist.storage.transfers import Limits

DATA = os.urandom(50_000)
QUICK = Limits(connect_seconds=1, stall_seconds=0.3, request_seconds=1, attempts=2, total_seconds=3)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    monkeypatch.setenv("no_proxy", "*")
    with Faulty({"data/a b%.tar": DATA, "data/a.tar": DATA}) as server:
        yield server


def test_a_file_is_read_by_ranges_and_its_signature_is_sent_and_not_repeated(
    web: Faulty, tmp_path: Path
) -> None:
    url = f"{web.address}/data/a%20b%25.tar?signature=s3cr3t/x"
    found = Object(url, QUICK)
    assert (found.name, found.size) == (f"{web.address}/data/a%20b%25.tar", len(DATA))
    assert found.read(7, 1000) == DATA[7:1007]
    assert web.seen[-1] == "GET data/a b%.tar bytes=7-1006 signature=s3cr3t/x"
    download(url, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA
    web.always = "403"
    with pytest.raises(DataError, match="access denied: check the URL") as raised:
        found.read(0, 5)
    one_line(raised.value, "/data/a%20b%25.tar")
    assert "s3cr3t" not in str(raised.value)


@pytest.mark.parametrize("fault", ["503", "short", "reset", "stall"])
def test_a_fault_that_passes_costs_no_byte(web: Faulty, fault: str) -> None:
    found = Object(f"{web.address}/data/a.tar", QUICK)
    web.faults.append(fault)
    assert found.read(7, 1000) == DATA[7:1007]


def test_a_file_that_changed_is_noticed(web: Faulty) -> None:
    found = Object(f"{web.address}/data/a.tar", QUICK)
    web.objects["data/a.tar"] = DATA[::-1]
    with pytest.raises(DataError, match="written again"):
        found.read(0, 5)


def test_a_server_that_gives_no_ranges_is_named(web: Faulty) -> None:
    found = Object(f"{web.address}/data/a.tar", QUICK)
    web.always = "whole"
    with refusal(
        DataError, f"{web.address}/data/a.tar", "gives no parts of files", "download the shards"
    ):
        found.read(5, 10)


def test_a_missing_file_and_a_folder_are_refused(web: Faulty) -> None:
    assert not exists(f"{web.address}/data/b.tar", QUICK)
    with pytest.raises(DataError, match="b.tar' is missing"):
        Object(f"{web.address}/data/b.tar", QUICK)
    with pytest.raises(
        UsageError, match=r"cannot be listed: write \{000..099\}.tar, or name a list"
    ):
        list_tars(f"{web.address}/data/")
    with pytest.raises(DataError, match="does not answer after 2 attempts .connection refused"):
        Object("http://127.0.0.1:9/a.tar", QUICK)


def test_a_redirect_is_followed(web: Faulty) -> None:
    with Faulty({}) as first:
        first.always = f"307 {web.address}"
        assert Object(f"{first.address}/data/a.tar", QUICK).read(5, 10) == DATA[5:15]


def test_no_signed_request_goes_through_a_proxy_unencrypted(
    web: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Faulty({}) as proxy:
        monkeypatch.setenv("http_proxy", proxy.address)
        monkeypatch.delenv("no_proxy")
        monkeypatch.setenv("AWS_SESSION_TOKEN", "s3cr3t")
        with refusal(
            UsageError,
            "a proxy (http_proxy) would read the credentials",
            "add 127.0.0.1 to no_proxy",
        ):
            Object(f"s3://data/a.tar?endpoint_override={web.address}", QUICK)
        assert proxy.seen == web.seen == []
