"""Objects by URI: opened, listed, copied and written, whichever service holds them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from udl_dist.errors import DataError, UsageError
from udl_dist.storage.client import client, errors, meaning
from udl_dist.storage.ranges import PIECE, Window
from udl_dist.storage.transfers import Limits, Pending, Traffic
from udl_dist.storage.uris import Uri, parse

T = TypeVar("T")
DEFAULT = Limits()
VERSION = ("e_tag", "version")
Version = dict[
    str, str | None
]  # one writing of an object: buckets of Google have a version, others an ETag


class Object:
    """An opened object, safe for any number of threads; each answer is checked to be of the same
    writing.
    """

    def __init__(self, uri: str, limits: Limits = DEFAULT, traffic: Traffic | None = None) -> None:
        """At the cost of one HEAD; raise DataError if it is missing, denied or does not answer."""
        self._uri, self._limits, self.traffic = parse(uri), limits, traffic or Traffic()
        self.name = self._uri.name  # for messages
        head = _ask(
            self._uri, limits, lambda store: store.head(self._uri.key), traffic=self.traffic
        )
        self.size, self.stamp = int(head["size"]), _stamp(head)  # bytes; "etag:…" or "modified:…"

    def read(self, start: int, length: int) -> bytes:
        """Exactly `length` bytes; raise DataError for others, or if the object was written
        again.
        """
        return self.begin(start, length).result()

    def begin(self, start: int, length: int) -> Pending[bytes]:
        """Ask for bytes without waiting for them."""
        if start < 0 or start + length > self.size:
            raise DataError(
                f"{self.name!r} has {self.size} bytes, not {start + length}: it is another object"
                " or cut off"
            )
        return _begin(
            self._uri,
            self._limits,
            lambda store: self._range(store, start, length),
            length,
            traffic=self.traffic,
        )

    def _range(self, store: Any, start: int, length: int) -> bytes:
        if not length:
            return b""
        found = store.get(self._uri.key, options={"range": (start, start + length)})
        if (found.meta["size"], _stamp(found.meta)) != (self.size, self.stamp):
            raise DataError(
                f"{self.name!r} was written again (another ETag) while it was read: start again"
            )
        data = bytes(found.bytes())
        if len(data) != length:
            raise DataError(
                f"{self.name!r} gave {len(data)} bytes where {length} were asked for: start again"
            )
        return data


def list_tars(uri: str, limits: Limits = DEFAULT) -> list[str]:
    """The URIs of all `*.tar` directly below a prefix, sorted by bytes; DataError if there is no
    such prefix.

    Files of macOS, `._x.tar`, are left out.
    """
    prefix = parse(uri)
    keys = [each["path"] for each in _directly_below(prefix, limits)["objects"]]
    tars = [
        key
        for key in keys
        if key.lower().endswith(".tar") and not key.rpartition("/")[2].startswith(".")
    ]
    return [prefix.at(f"{prefix.bucket}/{key}") for key in sorted(tars, key=os.fsencode)]


def list_folders(uri: str, limits: Limits = DEFAULT) -> list[str]:
    """The names of all prefixes directly below one, sorted; DataError if there is no such
    prefix.
    """
    return sorted(
        path.rpartition("/")[2] for path in _directly_below(parse(uri), limits)["common_prefixes"]
    )


def listing(uri: str, limits: Limits = DEFAULT) -> dict[str, str]:
    """The objects below a prefix: name from there on -> what tells one writing of it from the next.

    Empty objects that some tools put for folders ("a/") are listed as "a", but for those that have
    objects below them.
    """
    prefix = parse(uri)
    found = _ask(prefix, limits, lambda store: store.list(prefix.key).collect())
    folders = {parent for each in found for parent in _parents(each["path"])}
    return {
        each["path"].removeprefix(f"{prefix.key}/"): _written(each)
        for each in found
        if each["path"] not in folders | {prefix.key}
    }


def _parents(key: str) -> list[str]:
    parts = key.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def stamp(uri: str, limits: Limits = DEFAULT) -> str:
    """What tells one writing of an object from the next, as in `listing`; "" if there is none."""
    where = parse(uri)

    def attempt(store: Any) -> str:
        try:
            return _written(store.head(where.key))
        except FileNotFoundError:
            return ""

    return _ask(where, limits, attempt)


def exists(uri: str, limits: Limits = DEFAULT) -> bool:
    """Whether there is such an object; raise DataError if that cannot be found out."""
    return bool(stamp(uri, limits))


def read(uri: str, limits: Limits = DEFAULT) -> bytes:
    """All of a small object."""
    where = parse(uri)
    return _ask(where, limits, lambda store: bytes(store.get(where.key).bytes()))


def write(uri: str, content: bytes, limits: Limits = DEFAULT) -> None:
    """Make a small object."""
    where = parse(uri)
    _ask(where, limits, lambda store: store.put(where.key, content), hedged=False)


def read_versioned(uri: str, limits: Limits = DEFAULT) -> tuple[bytes, Version | None]:
    """All of a small object, and what `write_over` needs to replace just this; nothing and None if
    there is none.
    """
    where = parse(uri)

    def attempt(store: Any) -> tuple[bytes, Version | None]:
        try:
            found = store.get(where.key)
            return bytes(found.bytes()), {
                name: value for name in VERSION if (value := found.meta[name])
            }
        except FileNotFoundError:
            return b"", None

    return _ask(where, limits, attempt)


def write_over(uri: str, content: bytes, seen: Version | None, limits: Limits = DEFAULT) -> None:
    """Make a small object if there still is what was `seen` (None: nothing); raise ConflictError
    otherwise.
    """
    where, mode = parse(uri), "create" if seen is None else seen
    _ask(where, limits, lambda store: store.put(where.key, content, mode=mode), hedged=False)


def move(uri: str, other: str, limits: Limits = DEFAULT) -> None:
    """Give an object another name in its bucket; it is there under one of the two at any time."""
    where, target = parse(uri), parse(other)
    _ask(where, limits, lambda store: store.copy(where.key, target.key), hedged=False)
    remove(uri, limits)


def remove(uri: str, limits: Limits = DEFAULT) -> None:
    """Delete an object, if it is there."""
    where = parse(uri)
    _ask(where, limits, lambda store: store.delete(where.key), hedged=False)


def download(uri: str, path: Path, limits: Limits = DEFAULT) -> None:
    """Copy an object to a file: complete or absent, in bounded memory."""
    found = Object(uri, limits)
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with part.open("wb") as file:
            window = Window(found)
            for start in range(0, found.size, PIECE):
                file.write(window[start : start + PIECE])
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def upload(path: Path, uri: str, limits: Limits = DEFAULT) -> None:
    """Copy a file to an object: complete or absent."""
    where = parse(uri)
    _ask(where, limits, lambda store: store.put(where.key, path), hedged=False)


def _directly_below(prefix: Uri, limits: Limits) -> Mapping[str, Any]:
    if prefix.is_web:
        raise UsageError(
            f"{prefix.name!r} cannot be listed: write {{000..099}}.tar, or name a list of shards"
            " (.txt)"
        )
    found: Mapping[str, Any] = _ask(
        prefix, limits, lambda store: store.list_with_delimiter(prefix.key)
    )
    if not found["objects"] and not found["common_prefixes"]:
        raise DataError(f"{prefix.name!r} is missing: check the path")
    return found


def _ask(
    uri: Uri,
    limits: Limits,
    act: Callable[[Any], T],
    hedged: bool = True,
    traffic: Traffic | None = None,
) -> T:
    return _begin(uri, limits, act, 0, hedged, traffic).result()


def _begin(
    uri: Uri,
    limits: Limits,
    act: Callable[[Any], T],
    size: int,
    hedged: bool = True,
    traffic: Traffic | None = None,
) -> Pending[T]:
    store = client(uri, limits)

    def attempt() -> T:
        try:
            return act(store)
        except errors as error:
            raise meaning(error, uri, limits) from None

    return Pending(attempt, limits, traffic or Traffic(), size, hedged)


def _stamp(meta: Mapping[str, Any]) -> str:
    etag = (meta["e_tag"] or "").strip('"')
    return f"etag:{etag}" if etag else f"modified:{meta['last_modified']:%Y-%m-%dT%H:%M:%S}"


def _written(meta: Mapping[str, Any]) -> str:
    return f"{_stamp(meta)} {meta['size']}"
