"""Object storage by URI: s3:// and gs:// as pyarrow speaks them. The only file that knows pyarrow.

Without an endpoint, storage is spoken to by https alone; http only where an endpoint says so. An endpoint of one's own
is not followed when it redirects (see `_s3_options`), so it cannot send us to addresses inside the network.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from udl_dist.errors import DataError
from udl_dist.storage.fetching import Fetch, Limits, PassingError, Traffic
from udl_dist.storage.places import Place, parse
from udl_dist.storage.ranges import PIECE, Blob, Window
from udl_dist.storage.refusals import meaning

T = TypeVar("T")

_file_systems: dict[Hashable, Any] = {}
_locks: dict[int, threading.Lock] = {}


def open_blob(uri: str, limits: Limits | None = None, traffic: Traffic | None = None) -> Blob:
    """Open an object, at the cost of one HEAD; raise DataError if it is missing, denied or does not answer."""
    return _Object(parse(uri), limits or Limits(), traffic or Traffic())


def list_tars(uri: str, limits: Limits | None = None) -> list[str]:
    """The URIs of all `*.tar` directly below a prefix, sorted by bytes; DataError if there is no such prefix."""
    from pyarrow import fs

    place = parse(uri)
    selector = fs.FileSelector(place.path.rstrip("/"), recursive=False)
    found = _patiently(place, limits or Limits(), lambda system: system.get_file_info(selector))
    paths = [info.path for info in found if info.type == fs.FileType.File and info.path.endswith(".tar")]
    return [place.uri(path) for path in sorted(paths, key=os.fsencode)]


def exists(uri: str, limits: Limits | None = None) -> bool:
    """Whether there is such an object; raise DataError if that cannot be found out."""
    from pyarrow import fs

    place = parse(uri)
    info = _patiently(place, limits or Limits(), lambda system: system.get_file_info(place.path))
    return bool(info.type == fs.FileType.File)


def remove(uri: str, limits: Limits | None = None) -> None:
    """Delete an object."""
    place = parse(uri)
    _patiently(place, limits or Limits(), lambda system: system.delete_file(place.path))


def download(uri: str, path: Path, limits: Limits | None = None) -> None:
    """Copy an object to a file: complete or absent, in bounded memory."""
    blob = open_blob(uri, limits)
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with part.open("wb") as file:
            window = Window(blob)
            for start in range(0, blob.size, PIECE):
                file.write(window[start : start + PIECE])
            file.flush()
            os.fsync(file.fileno())
        if what := blob.changed():
            raise DataError(f"{blob.name!r} {what} while it was copied: try again")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
        blob.close()


def upload(path: Path, uri: str, limits: Limits | None = None) -> None:
    """Copy a file to an object; a failed copy is taken away again."""
    place = parse(uri)

    def attempt(system: Any) -> None:
        try:
            with path.open("rb") as file, system.open_output_stream(place.path) as stream:
                while data := file.read(PIECE):
                    stream.write(data)
        except OSError:
            if system.get_file_info(place.path).size not in (None, path.stat().st_size):
                system.delete_file(place.path)
            raise

    _patiently(place, limits or Limits(), attempt, path.stat().st_size, hedged=False)


class _Object:
    """A kept-open object: one file of pyarrow's a process, whose positioned reads any thread may call."""

    def __init__(self, place: Place, limits: Limits, traffic: Traffic) -> None:
        self.name, self.traffic = place.name, traffic
        self._place, self._limits = place, limits
        self._opened = (os.getpid(), self._open())
        self.size, self.stamp = int(self._opened[1].size()), _stamp(self._opened[1])

    def read(self, start: int, length: int) -> bytes:
        """Exactly `length` bytes, or DataError."""
        return self.begin(start, length).result()

    def begin(self, start: int, length: int) -> Fetch[bytes]:
        """Ask for bytes without waiting for them."""
        if start < 0 or start + length > self.size:
            raise DataError(
                f"{self.name!r} has {self.size} bytes, not {start + length}: it is another object or cut off"
            )
        file = self._file()
        return Fetch(repr(self.name), lambda: self._read(file, start, length), self._limits, self.traffic, length)

    def changed(self) -> str:
        """What differs from when it was opened, in words; empty if nothing does."""
        file = self._open()
        size, stamp = int(file.size()), _stamp(file)
        file.close()
        if size != self.size:
            return f"has {size} bytes where it had {self.size}"
        return "was written again (another ETag)" if stamp != self.stamp else ""

    def close(self) -> None:
        """Give the connection back."""
        if self._opened[0] == os.getpid():
            self._opened[1].close()

    def _open(self) -> Any:
        path = self._place.path
        return _patiently(self._place, self._limits, lambda system: system.open_input_file(path), traffic=self.traffic)

    def _file(self) -> Any:
        """The file of this process: a forked child must not share its parent's connections."""
        if self._opened[0] != os.getpid():
            self._opened = (os.getpid(), self._open())
            if _stamp(self._opened[1]) != self.stamp:
                raise DataError(f"{self.name!r} {self.changed()} while it was read: start again")
        return self._opened[1]

    def _read(self, file: Any, start: int, length: int) -> bytes:
        """One request. Bytes past the end of an object that has become shorter are memory that nobody wrote (pyarrow
        26 does not look at what came): whoever reads holds them against a checksum, or asks `changed` when done."""
        try:
            data: bytes = file.read_at(length, start) if length else b""
        except OSError as error:
            raise self._cause(error) from None
        if len(data) != length:
            raise PassingError(f"{len(data)} bytes came where {length} were asked for")
        return data

    def _cause(self, error: OSError) -> Exception:
        """What a failed read means. An error text longer than the range is lost by the library: a HEAD repeats it."""
        if "flush response stream" not in str(error):
            return meaning(error, self.name)
        try:
            _file_system(self._place, self._limits).open_input_file(self._place.path).close()
        except OSError as told:
            return meaning(told, self.name)
        return PassingError("an error longer than the range asked for")


def _patiently(place: Place, limits: Limits, attempt: Callable[[Any], T], size: int = 0, hedged: bool = True,
               traffic: Traffic | None = None) -> T:  # fmt: skip
    """Do something with the file system of a place, with retries and time limits."""

    def explained() -> T:
        try:
            return attempt(_file_system(place, limits))
        except OSError as error:
            raise meaning(error, place.name) from None

    return Fetch(repr(place.name), explained, limits, traffic or Traffic(), size, hedged).result()


def _stamp(file: Any) -> str:
    """What tells one writing of an object from the next: its ETag, or its time where a store has none."""
    metadata = {name.lower(): value.decode("utf-8", "replace") for name, value in file.metadata().items()}
    etag = metadata.get("etag", "").strip('"')
    return f"etag:{etag}" if etag else f"modified:{metadata.get('last-modified', '')}"


def _file_system(place: Place, limits: Limits) -> Any:
    """The file system that a place is in, opened once a process and shared by buckets wherever that can be."""
    known = os.getpid(), place.scheme, place.bucket, place.options, limits
    with _locks.setdefault(known[0], threading.Lock()):
        if known not in _file_systems:
            options = _s3_options(place, limits) if place.scheme == "s3" else _gs_options(place, limits)
            same = known[0], place.scheme, tuple(options.items())
            if same not in _file_systems:
                _file_systems[same] = _client(place.scheme, options)
            _file_systems[known] = _file_systems[same]
        return _file_systems[known]


def _client(scheme: str, options: dict[str, Any]) -> Any:
    """A client of pyarrow's that asks once: it is we who repeat.

    Making one waits for the stalled requests of all others (seen with 26.0), hence as few as possible.
    """
    from pyarrow import fs

    if scheme == "gs":
        return fs.GcsFileSystem(**options)
    return fs.S3FileSystem(retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1), **options)


def _s3_options(place: Place, limits: Limits) -> dict[str, Any]:
    """What S3FileSystem is told. It must follow no redirect of a foreign endpoint.

    The SDK follows redirects in every region but `aws-global`, which signs as us-east-1 does. So an endpoint outside
    amazonaws.com gets that region, unless the URI names another one.
    """
    options = dict(place.options)
    ambient = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    scheme, _, host = options.get("endpoint_override", ambient).rpartition("://")
    foreign = bool(host) and not _is_aws(host)
    return {"anonymous": options.get("anonymous") == "true",
            "region": options.get("region") or ("aws-global" if foreign else _region(place.bucket, host)),
            "endpoint_override": host.rstrip("/") or None,
            "scheme": scheme or options.get("scheme", "https"),
            "connect_timeout": limits.connect_seconds,
            "request_timeout": limits.stall_seconds}  # fmt: skip


def _is_aws(host: str) -> bool:
    return host.partition(":")[0].partition("/")[0].endswith((".amazonaws.com", ".amazonaws.com.cn"))


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


def _gs_options(place: Place, limits: Limits) -> dict[str, Any]:
    options = dict(place.options)
    scheme, _, host = options.get("endpoint_override", "").rpartition("://")
    return {"anonymous": options.get("anonymous") == "true",
            "endpoint_override": host.rstrip("/") or None,
            "scheme": scheme or options.get("scheme", "https"),
            "retry_time_limit": timedelta(seconds=limits.request_seconds)}  # fmt: skip
