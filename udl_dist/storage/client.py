"""The only file that knows obstore: clients made once a process, and the meaning of their errors.

A client repeats what may pass (5xx, resets, short bodies, stalls) within the limits, and goes on in
the middle of a body. Buckets are spoken to by https alone; by http only where an endpoint says so.
"""

from __future__ import annotations

import configparser
import os
import re
import threading
import urllib.request
from collections.abc import Hashable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
)
from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

from udl_dist.errors import DataError, UsageError
from udl_dist.storage.transfers import Limits
from udl_dist.storage.uris import Uri

STATUS = re.compile(r"status code: (\d+)")
CODE = re.compile(r"<Code>(\w+)</Code>")
REGIONS = "https://s3.amazonaws.com"  # answers with the region of any bucket
MAY_PASS = ("408", "429")
SIGNATURE = "the URL, or whether its signature has ended"
CREDENTIALS = (
    "credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS,"
    " AZURE_STORAGE_ACCOUNT_KEY) and what they may read"
)
EXPIRED = (
    "the credentials have expired: renew them (AWS_SESSION_TOKEN, AWS_PROFILE); the same command"
    " goes on"
)
NO_CREDENTIALS = (
    "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, "
    "or put ?anonymous=true behind the URI"
)
NO_RANGES = (
    "the server gives no parts of files (range requests), which shards are read by: download the"
    " shards, or ask for a server that does"
)
# What stays wrong, by the words of obstore and of the services.
NO_CONDITIONS = (
    "the service does not support conditional writes (If-None-Match), by which one run alone holds"
    " a run folder: put run.folder on a disk or into storage that has them"
)
FINAL = {
    "ExpiredToken": EXPIRED,
    "TokenRefreshRequired": EXPIRED,
    "RequestExpired": EXPIRED,
    "http://169.254.169.254": NO_CREDENTIALS,  # where a machine of a cloud would get them
    "implies functionality that is not implemented": NO_CONDITIONS,
    "Range request not supported": NO_RANGES,
    "Wanted range": "it was written again (it is shorter now) while it was read: start again",
    "redirect without LOCATION": (
        "the endpoint redirects: name the right endpoint_override, or the region"
    ),
}
# What broke, by the words of the library below obstore; the first that is found counts.
CAUSES = {
    "IncompleteBody": "the body is short",
    "ConnectionReset": "the connection was reset",
    "TimedOut": "no byte within the time limit",
    "ConnectionRefused": "connection refused",
    "dns error": "the host is unknown",
    "nvalid peer certificate": "its certificate is not trusted",
}

_clients: dict[Hashable, Any] = {}
_lock = threading.Lock()
_process = 0  # that made the first client


errors = (BaseError, FileNotFoundError, ValueError)  # what the calls of a client raise


class ConflictError(Exception):
    """A conditional write that came too late: the object is not what the writer had seen."""


def client(uri: Uri, limits: Limits) -> Any:
    """The client of a bucket or host; raise UsageError in a process that was forked from one that
    has clients.
    """
    global _process
    with _lock:
        # obstore's threads do not come along into a forked child, where each call would wait for
        # them for ever.
        if _process not in (0, os.getpid()):
            raise UsageError(
                "object storage cannot be read in a process that was forked after it was opened: "
                'give the DataLoader multiprocessing_context="spawn", or set num_workers = 0'
            )
        _process = os.getpid()
        known = (
            uri.scheme,
            uri.bucket,
            uri.query,
            limits,
            _aws_endpoint() if uri.scheme == "s3" else "",
        )
        if known not in _clients:
            _clients[known] = _made(uri, limits)
        return _clients[known]


def endpoint_of(uri: Uri) -> str:
    """The endpoint of a bucket that its URI or the environment names; "": that of its service."""
    endpoint = uri.options.get("endpoint_override") or (
        _aws_endpoint() if uri.scheme == "s3" else ""
    )
    if endpoint and "://" not in endpoint:
        endpoint = f"{uri.options.get('scheme', 'https')}://{endpoint}"
    return endpoint.rstrip("/")


def region_of(uri: Uri) -> str:
    """The region that the URI names, else that of a bucket of Amazon's, else what the environment
    names, if any.
    """
    named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
    if "region" in uri.options or endpoint_of(uri):
        return uri.options.get("region", named)
    request = urllib.request.Request(f"{REGIONS}/{uri.bucket}", method="HEAD")
    try:
        headers = urllib.request.build_opener(_Unfollowed).open(request, timeout=5).headers
    except HTTPError as error:  # 301 and 403 have the header too
        headers = error.headers
    except OSError:
        return named
    return str(headers.get("x-amz-bucket-region") or named)


class _Unfollowed(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _made(uri: Uri, limits: Limits) -> Any:
    endpoint = endpoint_of(uri)
    common: dict[str, Any] = {
        "client_options": {
            "allow_http": "http" in (uri.scheme, urlsplit(endpoint).scheme),
            "connect_timeout": timedelta(seconds=limits.connect_seconds),
            "read_timeout": timedelta(seconds=limits.stall_seconds),
            "timeout": timedelta(seconds=limits.request_seconds),
        },
        "retry_config": {
            "max_retries": limits.attempts - 1,
            "retry_timeout": timedelta(seconds=limits.total_seconds),
        },
    }
    if uri.is_web:
        query = f"?{uri.query}" if uri.query else ""
        return HTTPStore(f"{uri.scheme}://{uri.bucket}{query}", **common)
    _refuse_open_proxy(endpoint)
    anonymous = uri.options.get("anonymous") == "true"
    common |= {"skip_signature": True} if anonymous else {}
    if uri.scheme == "gs":
        return GCSStore(uri.bucket, **({"base_url": endpoint} if endpoint else {}), **common)
    if uri.scheme == "az":
        return AzureStore(uri.bucket, **({"endpoint": endpoint} if endpoint else {}), **common)
    # AWS_ENDPOINT_URL_S3 of the environment would come before a plain `endpoint`.
    common |= {"aws_endpoint_url_s3": endpoint} if endpoint else {}
    profile = {} if anonymous else _profile()
    region = region_of(uri) or profile.get("region", "us-east-1")
    return S3Store(uri.bucket, **{**profile, **common, "region": region})


def _aws_endpoint() -> str:
    """The endpoint that the environment names; messages may show it, so raise UsageError for
    credentials in it.
    """
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    if "@" in named:
        raise UsageError(
            "AWS_ENDPOINT_URL_S3 and AWS_ENDPOINT_URL must not hold credentials: set"
            " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    return named


def _refuse_open_proxy(endpoint: str) -> None:
    """Raise UsageError if signed requests would go through a proxy unencrypted: it could read their
    tokens.
    """
    parts = urlsplit(endpoint)
    proxies = urllib.request.getproxies()
    proxied = "http" in proxies or "all" in proxies
    if parts.scheme == "http" and proxied and not urllib.request.proxy_bypass(parts.netloc):
        raise UsageError(
            f"{endpoint} is not encrypted, and a proxy (http_proxy) would read the credentials sent"
            f" there: add {parts.hostname} to no_proxy, or name an https endpoint"
        )


def _profile() -> dict[str, str]:
    """The keys and the region of AWS_PROFILE, which obstore does not read; empty where the
    environment has keys.
    """
    name = os.environ.get("AWS_PROFILE") or "default"
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return {}
    config = configparser.RawConfigParser()
    home = Path("~/.aws").expanduser()
    config.read([os.environ.get("AWS_CONFIG_FILE") or home / "config"])
    if f"profile {name}" in config:
        config[name] = config[f"profile {name}"]
    config.read([os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials"])
    section = dict(config[name]) if name in config else {}
    keys = {"access_key_id", "secret_access_key", "session_token"}
    found = {key: section[f"aws_{key}"] for key in keys if f"aws_{key}" in section}
    if not found and "AWS_PROFILE" in os.environ:
        raise UsageError(
            f"AWS profile {name!r} holds no keys (is it of SSO or a role?): run "
            f'eval "$(aws configure export-credentials --profile {name} --format env)" first'
        )
    return found | ({"region": section["region"]} if "region" in section else {})


def meaning(error: Exception, uri: Uri, limits: Limits) -> Exception:
    """An error of obstore as one line for people; ConflictError for a condition that did not
    hold.
    """
    text = str(error)
    if isinstance(error, (AlreadyExistsError, PreconditionError)):
        return ConflictError(uri.name)
    found, code = STATUS.search(text), CODE.search(text)
    status = found[1] if found else ""
    answer = f"HTTP {status}" + (f", {code[1]}" if code else "") if status else ""
    if isinstance(error, ValueError):
        said = 'cannot be read: a name with an empty part, "." or ".." is not supported'
    elif isinstance(error, FileNotFoundError) or status in ("404", "410"):
        said = "is missing: check the path"
    elif said := next((words for sign, words in FINAL.items() if sign in text), ""):
        pass
    elif isinstance(error, PermissionDeniedError) or status in ("401", "403", "407"):
        said = f"access denied: check {SIGNATURE if uri.is_web else CREDENTIALS}"
    elif status in ("301", "302", "307", "308", "416", "501") or (
        status[:1] == "4" and status not in MAY_PASS
    ):
        expired = (
            "whether the credentials have expired, " if status == "400" else ""
        )  # a HEAD does not say why
        said = f"refused ({answer}): check {expired}the URI, the region and the endpoint"
    else:
        cause = answer or next(
            (words for sign, words in CAUSES.items() if sign in text), "the connection broke off"
        )
        times = f"{limits.attempts} attempts" if limits.attempts > 1 else "1 attempt"
        cure = "check the network and the endpoint, or allow more attempts"
        said = f"storage does not answer after {times} ({cause}): {cure}"
    return DataError(
        f"{uri.name!r}: {said}" if not said.startswith("is ") else f"{uri.name!r} {said}"
    )
