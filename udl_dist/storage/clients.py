"""The clients of object storage, s3:// and gs:// as pyarrow speaks them: made once a process, told
to ask only once.

Without an endpoint, storage is spoken to by https alone; http only where an endpoint says so. An
endpoint of one's own is not followed when it redirects (see `_s3_options`), so it cannot send us to
addresses inside the network.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable
from datetime import timedelta
from typing import Any

from udl_dist.errors import UsageError
from udl_dist.storage.fetching import Limits
from udl_dist.storage.places import Place

_file_systems: dict[Hashable, Any] = {}
_locks: dict[int, threading.Lock] = {}


def file_system(place: Place, limits: Limits) -> Any:
    """The file system that a place is in, opened once a process and shared by buckets wherever that
    can be.
    """
    known = os.getpid(), place.scheme, place.bucket, place.options, limits, _ambient()
    with _locks.setdefault(known[0], threading.Lock()):
        if known not in _file_systems:
            options = _s3_options(place, limits) if place.scheme == "s3" else _gs_options(place)
            same = known[0], place.scheme, tuple(options.items())
            if same not in _file_systems:
                _file_systems[same] = _client(place.scheme, options)
            _file_systems[known] = _file_systems[same]
        return _file_systems[known]


def _client(scheme: str, options: dict[str, Any]) -> Any:
    """A client of pyarrow's that asks once: it is we who repeat.

    Making one waits for the stalled requests of all others (seen with 26.0), hence as few as
    possible.
    """
    from pyarrow import fs

    if scheme == "gs":
        return fs.GcsFileSystem(**options)
    return fs.S3FileSystem(retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1), **options)


def _s3_options(place: Place, limits: Limits) -> dict[str, Any]:
    """What S3FileSystem is told. It must follow no redirect of a foreign endpoint.

    The SDK follows redirects in every region but `aws-global`, which signs as us-east-1 does. So an
    endpoint outside amazonaws.com gets that region, unless the URI names another one, with which
    its redirects are followed.
    """
    options = dict(place.options)
    scheme, _, host = options.get("endpoint_override", _ambient()).rpartition("://")
    foreign = bool(host) and not _is_aws(host)
    return {
        "anonymous": options.get("anonymous") == "true",
        "region": (
            options.get("region") or ("aws-global" if foreign else _region(place.bucket, host))
        ),
        "endpoint_override": host.rstrip("/") or None,
        "scheme": scheme or options.get("scheme", "https"),
        "connect_timeout": limits.connect_seconds,
        "request_timeout": limits.stall_seconds,
    }


def _ambient() -> str:
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


def _is_aws(host: str) -> bool:
    return (
        host.partition(":")[0].partition("/")[0].endswith((".amazonaws.com", ".amazonaws.com.cn"))
    )


def _region(bucket: str, host: str) -> str | None:
    """The region of a bucket of Amazon's; None leaves it to the SDK."""
    from pyarrow import fs

    named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if host:
        return named
    try:
        return str(fs.resolve_s3_region(bucket))
    except (OSError, ValueError):
        return named


def _gs_options(place: Place) -> dict[str, Any]:
    """What GcsFileSystem is told; it has no limits but that of its own retries, a second being the
    least.
    """
    options = dict(place.options)
    scheme, _, host = options.get("endpoint_override", "").rpartition("://")
    return {
        "anonymous": options.get("anonymous") == "true",
        "endpoint_override": host.rstrip("/") or None,
        "scheme": scheme or options.get("scheme", "https"),
        "retry_time_limit": timedelta(seconds=1),
    }
