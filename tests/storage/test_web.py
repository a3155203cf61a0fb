"""URLs read from start to end: what breaks off is named, nothing waits for ever, redirects go
nowhere private.
"""

from __future__ import annotations

import functools
import ipaddress
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.data.loader.made import one_line
from tests.storage.web import Web
from udl_dist.errors import DataError, UsageError
from udl_dist.storage import web as rooms
from udl_dist.storage.fetching import Limits
from udl_dist.storage.web import Body, is_public, may_follow, read_whole, url_name

QUICK = Limits(connect_seconds=1, stall_seconds=0.3, request_seconds=1, attempts=2, total_seconds=3)
CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("no_proxy", "*")
    with Web({"/a.tar": CONTENT}) as served:
        yield served


def read(url: str, limits: Limits = QUICK) -> bytes:
    return read_whole(url, limits, 2**24)


def refused(url: str, *parts: object, limits: Limits = QUICK) -> None:
    began = time.monotonic()
    with pytest.raises(DataError) as raised:
        read(url, limits)
    one_line(raised.value, *parts)
    assert time.monotonic() - began < limits.total_seconds + 2, "every wait is bounded"


def test_all_of_a_url_comes_and_its_query_is_not_repeated(web: Web) -> None:
    assert read(web.url("/a.tar?signature=s3cr3t")) == CONTENT
    assert web.seen == ["/a.tar?signature=s3cr3t"]
    assert url_name(web.url("/a.tar?signature=s3cr3t")) == web.url("/a.tar")
    with pytest.raises(DataError) as raised:
        read(web.url("/b.tar?signature=s3cr3t"))
    assert "s3cr3t" not in str(raised.value)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (404, "is missing"),
        (403, "access denied"),
        (418, "refused (HTTP 418)"),
        (503, "2 attempts (HTTP 503)"),
    ],
)
def test_a_status_that_is_no_answer_is_named_with_the_url(web: Web, fault: int, said: str) -> None:
    web.faults["/a.tar"] = fault
    refused(web.url("/a.tar"), web.url("/a.tar"), said)
    assert len(web.seen) == (2 if fault == 503 else 1), "only what may pass is asked again"


def test_a_passing_fault_at_the_opening_passes(web: Web) -> None:
    web.faults["/a.tar"] = [503]
    assert read(web.url("/a.tar")) == CONTENT


def test_a_short_body_is_noticed(web: Web) -> None:
    web.faults["/a.tar"] = "short"
    refused(web.url("/a.tar"), web.url("/a.tar"), f"broke off after {len(CONTENT) // 2} bytes")


def test_a_stall_ends_within_its_limit(web: Web) -> None:
    web.faults["/a.tar"] = "stall"
    refused(web.url("/a.tar"), web.url("/a.tar"), "no byte for 0.3 s")


def test_a_drip_is_no_way_around_the_stall(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "SLOWEST", 2**24)
    web.faults["/a.tar"] = "drip"
    refused(web.url("/a.tar"), web.url("/a.tar"), "slower than 16384 KiB/s")


def test_nobody_at_the_other_end_is_named(web: Web) -> None:
    refused("http://127.0.0.1:9/a.tar", "http://127.0.0.1:9/a.tar", "2 attempts")


def test_too_long_a_list_is_not_read_to_its_end(web: Web) -> None:
    with pytest.raises(DataError, match="more than 1000 bytes"):
        read_whole(web.url("/a.tar"), QUICK, 1000)


def test_a_private_url_may_redirect_to_a_private_one(web: Web) -> None:
    web.faults["/b.tar"] = web.url("/a.tar")
    assert read(web.url("/b.tar")) == CONTENT


def test_a_public_url_may_not(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real redirect between two servers on loopback; only the address of the first is given out
    as a public one.
    """
    with Web({"/a.tar": CONTENT}) as inside:
        web.faults["/b.tar"] = inside.url("/a.tar")
        monkeypatch.setattr(rooms, "_Route", functools.partial(FromOutside, rooms._Route))
        refused(web.url("/b.tar"), web.url("/b.tar"), "redirects to a private address (127.0.0.1)")
        assert inside.seen == [], "nothing was sent there"


def FromOutside(kind: Any, name: str, limits: Limits) -> Any:
    """A route that began at a public address, whose first connection is not judged."""
    route = kind(name, limits)
    judge, calls = route.judge, iter([True])
    route.judge = lambda address: (
        setattr(route, "origin", ipaddress.ip_address("93.184.215.14"))
        if next(calls, False)
        else judge(address)
    )
    return route


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/a.tar", "http://user:s3cr3t@127.0.0.1/a.tar"]
)
def test_a_redirect_to_another_scheme_or_with_credentials_is_refused(web: Web, target: str) -> None:
    web.faults["/b.tar"] = target
    refused(web.url("/b.tar"), web.url("/b.tar"))
    assert len(web.seen) == 1


def test_redirects_that_go_round_end(web: Web) -> None:
    web.faults["/b.tar"] = web.url("/b.tar")
    refused(web.url("/b.tar"), web.url("/b.tar"))


PRIVATE = [
    "127.0.0.1",
    "10.1.2.3",
    "192.168.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "::1",
    "fe80::1",
    "fd00::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "2002:7f00:1::",
    "224.0.0.1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_no_redirect_leads_from_a_public_address_to_a_private_one(address: str) -> None:
    public, target = ipaddress.ip_address("93.184.215.14"), ipaddress.ip_address(address)
    assert not is_public(target)
    assert not may_follow(public, target)
    assert may_follow(target, public)


@pytest.mark.parametrize("address", ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1"])
def test_link_local_addresses_are_never_redirected_to(address: str) -> None:
    assert not may_follow(ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address(address))


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as raised:
        Body("https://user:s3cr3t@host/a.tar", QUICK)
    assert "s3cr3t" not in str(raised.value)
