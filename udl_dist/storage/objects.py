"""Objects by URI: opened, listed, copied, with retries and time limits, whichever service holds
them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from udl_dist.errors import DataError
from udl_dist.storage.clients import file_system
from udl_dist.storage.fetching import Fetch, Limits, PassingError, Traffic
from udl_dist.storage.places import Place, parse
from udl_dist.storage.ranges import PIECE, Blob, Window
from udl_dist.storage.refusals import meaning

T = TypeVar("T")


def open_blob(uri: str, limits: Limits | None = None, traffic: Traffic | None = None) -> Blob:
    """Open an object, at the cost of one HEAD; raise DataError if it is missing, denied or does not
    answer.
    """
    return _Object(parse(uri), limits or Limits(), traffic or Traffic())


def list_tars(uri: str, limits: Limits | None = None) -> list[str]:
    """The URIs of all `*.tar` directly below a prefix, sorted by bytes; DataError if there is no
    such prefix.

    What macOS puts beside files, `._x.tar`, is passed by.
    """
    from pyarrow import fs

    place = parse(uri)
    selector = fs.FileSelector(place.path.rstrip("/"), recursive=False)
    found = _patiently(place, limits or Limits(), lambda system: system.get_file_info(selector))
    paths = [
        info.path
        for info in found
        if info.type == fs.FileType.File
        and info.path.lower().endswith(".tar")
        and not info.base_name.startswith(".")
    ]
    return [place.uri(path) for path in sorted(paths, key=os.fsencode)]


def list_folders(uri: str, limits: Limits | None = None) -> list[str]:
    """The names of all prefixes directly below one, sorted; DataError if there is no such
    prefix.
    """
    from pyarrow import fs

    place = parse(uri)
    selector = fs.FileSelector(place.path.rstrip("/"), recursive=False)
    found = _patiently(place, limits or Limits(), lambda system: system.get_file_info(selector))
    return sorted(info.base_name for info in found if info.type == fs.FileType.Directory)


def listing(uri: str, limits: Limits | None = None) -> dict[str, str]:
    """The objects below a prefix: name from there on -> what tells one writing of it from the
    next.
    """
    from pyarrow import fs

    place = parse(uri)
    below = place.path.rstrip("/") + "/"
    selector = fs.FileSelector(below.rstrip("/"), allow_not_found=True, recursive=True)
    found = _patiently(place, limits or Limits(), lambda system: system.get_file_info(selector))
    return {
        info.path.removeprefix(below): f"{info.size} {info.mtime_ns}"
        for info in found
        if info.type == fs.FileType.File
    }


def read(uri: str, limits: Limits | None = None) -> bytes:
    """All of a small object."""
    blob = open_blob(uri, limits)
    try:
        return blob.read(0, blob.size)
    finally:
        blob.close()


def write(uri: str, content: bytes, limits: Limits | None = None) -> None:
    """Make a small object."""
    place = parse(uri)

    def attempt(system: Any) -> None:
        with system.open_output_stream(place.path) as stream:
            stream.write(content)

    _patiently(place, limits or Limits(), attempt, len(content), hedged=False)


def move(uri: str, other: str, limits: Limits | None = None) -> None:
    """Give an object another name; it is there under one of the two at any time."""
    place, target = parse(uri), parse(other)
    _patiently(
        place,
        limits or Limits(),
        lambda system: system.copy_file(place.path, target.path),
        hedged=False,
    )
    remove(uri, limits)


def exists(uri: str, limits: Limits | None = None) -> bool:
    """Whether there is such an object; raise DataError if that cannot be found out."""
    return bool(stamp(uri, limits))


def stamp(uri: str, limits: Limits | None = None) -> str:
    """What tells one writing of an object from the next, as in `listing`; "" if there is none."""
    from pyarrow import fs

    place = parse(uri)
    info = _patiently(place, limits or Limits(), lambda system: system.get_file_info(place.path))
    return f"{info.size} {info.mtime_ns}" if info.type == fs.FileType.File else ""


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
    """A kept-open object: one file of pyarrow's a process, whose positioned reads any thread may
    call.
    """

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
                f"{self.name!r} has {self.size} bytes, not {start + length}: it is another object"
                " or cut off"
            )
        file = self._file()
        return Fetch(
            repr(self.name),
            lambda: self._read(file, start, length),
            self._limits,
            self.traffic,
            length,
        )

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
        return _patiently(
            self._place,
            self._limits,
            lambda system: system.open_input_file(path),
            traffic=self.traffic,
        )

    def _file(self) -> Any:
        """The file of this process: a forked child must not share its parent's connections."""
        if self._opened[0] != os.getpid():
            self._opened = (os.getpid(), self._open())
            if _stamp(self._opened[1]) != self.stamp:
                raise DataError(f"{self.name!r} {self.changed()} while it was read: start again")
        return self._opened[1]

    def _read(self, file: Any, start: int, length: int) -> bytes:
        """One request. Bytes past the end of an object that has become shorter are memory that
        nobody wrote (pyarrow 26 does not look at what came): whoever reads holds them against a
        checksum, or asks `changed` when done.
        """
        try:
            data: bytes = file.read_at(length, start) if length else b""
        except OSError as error:
            raise self._cause(error) from None
        if len(data) != length:
            raise PassingError(f"{len(data)} bytes came where {length} were asked for")
        return data

    def _cause(self, error: OSError) -> Exception:
        """What a failed read means. An error text longer than the range is lost by the library: a
        HEAD repeats it.
        """
        if "flush response stream" not in str(error):
            return meaning(error, self.name)
        try:
            file_system(self._place, self._limits).open_input_file(self._place.path).close()
        except OSError as told:
            return meaning(told, self.name)
        return PassingError("an error longer than the range asked for")


def _patiently(
    place: Place,
    limits: Limits,
    attempt: Callable[[Any], T],
    size: int = 0,
    hedged: bool = True,
    traffic: Traffic | None = None,
) -> T:
    """Do something with the file system of a place, with retries and time limits."""

    def explained() -> T:
        try:
            return attempt(file_system(place, limits))
        except OSError as error:
            raise meaning(error, place.name) from None

    return Fetch(repr(place.name), explained, limits, traffic or Traffic(), size, hedged).result()


def _stamp(file: Any) -> str:
    """What tells one writing of an object from the next: its ETag, or its time where a store has
    none.
    """
    metadata = {
        name.lower(): value.decode("utf-8", "replace") for name, value in file.metadata().items()
    }
    etag = metadata.get("etag", "").strip('"')
    return f"etag:{etag}" if etag else f"modified:{metadata.get('last-modified', '')}"
