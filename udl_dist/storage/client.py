"""The clients of obstore, one per bucket and process, and the meaning of their errors.

A client retries transient errors (5xx, resets, short bodies, stalls) within the limits, and resumes
in the middle of a body. Buckets are reached by https, or by http if a named endpoint says so.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Hashable, Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
)
from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

from udl_dist.errors import DataError, UsageError
from udl_dist.storage.access import endpoint_of, profile, refuse_open_proxy, region_of
from udl_dist.storage.transfers import Limits
from udl_dist.storage.uris import Uri

STATUS = re.compile(r"status code: (\d+)")
CODE = re.compile(r"<Code>(\w+)</Code>")
TRANSIENT = (408, 429)  # of the 4xx; every 5xx but 501 is
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
NO_CONDITIONS = (
    "the service does not support conditional writes (If-None-Match), by which one run alone holds"
    " a run folder: put run.folder on a disk or into storage that has them"
)
# Errors that no retry can mend, by the words of obstore and of the services.
FINAL = {
    "ExpiredToken": EXPIRED,
    "TokenRefreshRequired": EXPIRED,
    "RequestExpired": EXPIRED,
    "http://169.254.169.254": NO_CREDENTIALS,  # the metadata service of cloud machines
    "implies functionality that is not implemented": NO_CONDITIONS,
    "Range request not supported": NO_RANGES,
    "Wanted range": "it was written again (it is shorter now) while it was read: start again",
    "redirect without LOCATION": (
        "the endpoint redirects: name the right endpoint_override, or the region"
    ),
}
# Causes of transient errors, by the words of the library below obstore; the first match counts.
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
_process = 0  # the one that made the first client

errors = (BaseError, FileNotFoundError, ValueError)  # what the calls of a client raise


class ConflictError(Exception):
    """A conditional write that found another version of the object."""


def client(uri: Uri, limits: Limits) -> Any:
    """The client of a bucket or host; raise UsageError in a fork of a process with clients."""
    global _process
    # Clients are safe in threads and share their connections, so one per bucket is enough.
    with _lock:
        # A forked child lacks obstore's threads, so each of its calls would hang.
        if _process not in (0, os.getpid()):
            raise UsageError(
                "object storage cannot be read in a process that was forked after it was opened: "
                'give the DataLoader multiprocessing_context="spawn", or set num_workers = 0'
            )
        _process = os.getpid()
        # With the endpoint, which the environment may change meanwhile.
        known = uri.scheme, uri.bucket, uri.query, limits, endpoint_of(uri)
        if known not in _clients:
            try:
                _clients[known] = _made(uri, limits)
            except errors as error:  # a setting of the environment is missing or wrong
                why = str(error).splitlines()[0]
                raise UsageError(f"{uri.scheme}://{uri.bucket} cannot be opened: {why}") from None
        return _clients[known]


def _made(uri: Uri, limits: Limits) -> Any:
    endpoint = endpoint_of(uri)
    common: dict[str, Any] = {
        "client_options": {
            # obstore refuses http by itself; here it must be asked for by name.
            "allow_http": "http" in (uri.scheme, urlsplit(endpoint).scheme),
            "connect_timeout": timedelta(seconds=limits.connect_seconds),
            "read_timeout": timedelta(seconds=limits.stall_seconds),
            "timeout": timedelta(seconds=limits.request_seconds),
        },
        "retry_config": {
            # obstore counts the repetitions, not the attempts.
            "max_retries": limits.attempts - 1,
            "retry_timeout": timedelta(seconds=limits.total_seconds),
        },
    }
    if uri.is_web:
        # The query, such as a signature, belongs to every request to the host.
        query = f"?{uri.query}" if uri.query else ""
        return HTTPStore(f"{uri.scheme}://{uri.bucket}{query}", **common)
    refuse_open_proxy(endpoint)
    anonymous = uri.options.get("anonymous") == "true"
    common |= {"skip_signature": True} if anonymous else {}
    if uri.scheme == "gs":
        common |= {"base_url": endpoint} if endpoint else {}
        return GCSStore(uri.bucket, **common)
    if uri.scheme == "az":
        common |= {"endpoint": endpoint} if endpoint else {}
        return AzureStore(uri.bucket, **common)
    # The environment's AWS_ENDPOINT_URL_S3 would override a plain `endpoint`.
    common |= {"aws_endpoint_url_s3": endpoint} if endpoint else {}
    own = {} if anonymous else profile()
    # The region of the URI, or the one that Amazon names, before that of the profile.
    region = region_of(uri) or own.get("region", "us-east-1")
    return S3Store(uri.bucket, **{**own, **common, "region": region})


def meaning(error: Exception, uri: Uri, limits: Limits) -> Exception:
    """An error of obstore as a one-line DataError, or ConflictError for a failed condition."""
    if isinstance(error, (AlreadyExistsError, PreconditionError)):
        return ConflictError(uri.name)
    # obstore has few classes of errors; status and cause are in the text alone.
    text = str(error)
    found, code = STATUS.search(text), CODE.search(text)
    status = int(found[1]) if found else 0
    answer = f"HTTP {status}" + (f", {code[1]}" if code else "") if status else ""
    # Words come before the status: an expired token, too, is a 400 on Amazon's side.
    final = _by_words(text, FINAL)
    if isinstance(error, ValueError):
        # obstore checks the path before it sends anything.
        why = ': it has an empty part, "." or "..", which names of objects must not have'
    elif isinstance(error, FileNotFoundError) or status in (404, 410):
        why = " is missing: check the path"
    elif final:
        why = f": {final}"
    elif isinstance(error, PermissionDeniedError) or status in (401, 403, 407):
        why = f": access denied: check {SIGNATURE if uri.is_web else CREDENTIALS}"
    elif status == 400:  # the answer to a HEAD has no body with more detail
        why = (
            f": refused ({answer}): check whether the credentials have expired, the URI and the"
            " region"
        )
    elif (300 <= status < 500 and status not in TRANSIENT) or status == 501:
        why = f": refused ({answer}): check the URI, the region and the endpoint"
    else:
        cause = answer or _by_words(text, CAUSES) or "the connection broke off"
        times = f"{limits.attempts} attempts" if limits.attempts > 1 else "1 attempt"
        cure = "check the network and the endpoint, or allow more attempts"
        why = f": storage does not answer after {times} ({cause}): {cure}"
    return DataError(f"{uri.name!r}{why}")


def _by_words(text: str, meanings: Mapping[str, str]) -> str:
    return next((said for words, said in meanings.items() if words in text), "")
