"""The only file that opens http: and https: URLs: read from start to end, with time limits, checked
redirects.

A redirect goes to http or https alone, and never to a private address unless the URL itself led to
one. What is judged is the address that was connected to, after the name was looked up: a name that
changes its mind is no way in. Behind a proxy (http_proxy) addresses are the proxy's affair.
"""

from __future__ import annotations

import functools
import http.client
import ipaddress
import ssl
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from udl_dist import __version__
from udl_dist.errors import DataError, UsageError
from udl_dist.storage.fetching import SLOWEST, Fetch, Limits, PassingError, Traffic

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
MAY_PASS = (408, 425, 429)
HEADERS = {"User-Agent": f"udl-dist/{__version__}", "Accept-Encoding": "identity"}


def url_name(url: str) -> str:
    """A URL without its query, which may hold a signature: for messages. Raise UsageError for
    credentials in it.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise UsageError("a URL must not hold a user or password: they would stand in every log")
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))


class Body:
    """What a URL answers, from start to end."""

    def __init__(self, url: str, limits: Limits) -> None:
        """Open it, again if need be; raise DataError with the URL if it does not answer or must not
        be read.
        """
        self.name, self._limits = url_name(url), limits
        opened = Fetch(
            repr(self.name),
            functools.partial(_open, url, self.name, limits),
            limits,
            Traffic(),
            hedged=False,
        )
        self._response = opened.result()
        said = self._response.headers.get("Content-Length", "")
        self._size = int(said) if said.isdigit() else None
        self._taken, self._waited = 0, 0.0

    def read(self, size: int, /) -> bytes:
        """At least one byte, at most `size`, none at the end; raise DataError for a short body, a
        stall, a reset.
        """
        began = time.monotonic()
        try:
            part = self._response.read1(
                size if self._size is None else min(size, self._size - self._taken)
            )
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(
                f"no byte for {self._limits.stall_seconds:g} s"
                if isinstance(error, TimeoutError)
                else _said(error)
            ) from None
        self._taken += len(part)
        self._waited += time.monotonic() - began
        if not part and self._size is not None and self._taken < self._size:
            raise self._broken(f"{self._size} were announced")
        if self._waited > self._limits.request_seconds + self._taken / SLOWEST:
            raise self._broken(f"slower than {SLOWEST // 1024} KiB/s")
        return bytes(part)

    def close(self) -> None:
        self._response.close()

    def _broken(self, why: str) -> DataError:
        return DataError(
            f"{self.name!r} broke off after {self._taken} bytes ({why}): run again, or copy the"
            " shards to a disk"
        )


def read_whole(url: str, limits: Limits, most_bytes: int) -> bytes:
    """All that a URL answers, if that is no more than `most_bytes`."""
    body, parts, left = Body(url, limits), [], most_bytes
    try:
        while part := body.read(min(left + 1, 2**16)):
            parts.append(part)
            left -= len(part)
            if left < 0:
                raise DataError(f"{body.name!r} has more than {most_bytes} bytes: is it a list?")
    finally:
        body.close()
    return b"".join(parts)


def is_public(address: Address) -> bool:
    """Whether an address is anybody's: not private, loopback, link-local, reserved or of a
    group.
    """
    inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
    return inner.is_global and not inner.is_multicast


def may_follow(origin: Address, target: Address) -> bool:
    """Whether a redirect may lead from one address to another: from private to private, but not to
    a cloud's own.
    """
    mapped = getattr(target, "ipv4_mapped", None) or target
    return is_public(target) or (not is_public(origin) and not mapped.is_link_local)


class _Route:
    """The addresses of one request and what it was redirected to."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name, self.limits = name, limits
        self.origin: Address | None = None

    def judge(self, connected: str) -> None:
        """Raise DataError if this connection must not be used."""
        address = ipaddress.ip_address(connected.partition("%")[0])
        if self.origin is None:
            self.origin = address
        elif not may_follow(self.origin, address):
            raise DataError(
                f"{self.name!r} redirects to a private address ({address}), which is not followed"
            )


class _Judged:
    """A connection that is judged before anything is sent over it."""

    def __init__(self, *arguments: Any, route: _Route, proxied: bool, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._route, self._proxied = route, proxied

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        sock = self.sock  # type: ignore[attr-defined]
        sock.settimeout(self._route.limits.stall_seconds)
        if not self._proxied:
            self._route.judge(sock.getpeername()[0])


class _Http(_Judged, http.client.HTTPConnection):
    """http, judged."""


class _Https(_Judged, http.client.HTTPSConnection):
    """https, judged."""


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens both schemes over judged connections."""

    def __init__(self, route: _Route) -> None:
        urllib.request.HTTPSHandler.__init__(self)
        self._route = route

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self._do(_Http, req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self._do(_Https, req)

    def _do(self, kind: Any, req: urllib.request.Request) -> http.client.HTTPResponse:
        proxied = req.host != urlsplit(req.full_url).netloc
        return self.do_open(functools.partial(kind, route=self._route, proxied=proxied), req)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https alone, from https never to http."""

    max_redirections = 5

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        fp.close()
        name, scheme = url_name(req.full_url), urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            raise DataError(f"{name!r} redirects to {scheme}:, which is not followed")
        if "@" in urlsplit(newurl).netloc:
            raise DataError(f"{name!r} redirects to a URL with credentials, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(
    url: str, name: str, limits: Limits, route: _Route | None = None
) -> http.client.HTTPResponse:
    """One attempt: PassingError for what may pass, DataError for what will not."""
    # not build_opener: it would bring file: and ftp: with it
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Handler(route or _Route(name, limits)),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    try:
        response: http.client.HTTPResponse = opener.open(
            urllib.request.Request(url, headers=HEADERS), timeout=limits.connect_seconds
        )
        return response
    except urllib.error.HTTPError as error:
        error.close()
        raise _refusal(name, error.code) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise DataError(
                f"{name!r}: its certificate is not trusted ({reason.verify_message})"
            ) from None
        raise PassingError(_said(reason)) from None


def _refusal(name: str, status: int) -> Exception:
    if status in (404, 410):
        return DataError(f"{name!r} is missing (HTTP {status}): check the URL")
    if status in (401, 403, 407):
        return DataError(
            f"{name!r}: access denied (HTTP {status}): check the URL, or its signature's end"
        )
    if status >= 500 or status in MAY_PASS:
        return PassingError(f"HTTP {status}")
    return DataError(f"{name!r}: refused (HTTP {status}): check the URL")


def _said(error: object) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:160]
