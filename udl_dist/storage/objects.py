"""Objects by URI: opened, listed, copied and written, in any of the services."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from udl_dist.core.files import whole_file
from udl_dist.errors import DataError, UsageError
from udl_dist.storage.client import client, errors, meaning
from udl_dist.storage.ranges import PIECE, Window
from udl_dist.storage.transfers import Limits, Pending, Traffic
from udl_dist.storage.uris import Uri, parse

T = TypeVar("T")
DEFAULT = Limits()
# Tells one writing of an object from the next: Google's buckets have a version, others an ETag.
Version = dict[str, str | None]
VERSION = ("e_tag", "version")


class Object:
    """An opened object, for any number of threads; raises if it is written again meanwhile."""

    def __init__(self, uri: str, limits: Limits = DEFAULT, traffic: Traffic | None = None) -> None:
        """Costs one HEAD; raise DataError if it is missing, denied or does not answer."""
        self._uri, self._limits, self.traffic = parse(uri), limits, traffic or Traffic()
        self.name = self._uri.name  # for messages
        # One HEAD fixes size and stamp, against which each later answer is compared.
        head = _begin(self._uri, lambda store, key: store.head(key), limits, self.traffic).result()
        self.size, self.stamp = int(head["size"]), _stamp(head)  # bytes; "etag:…" or "modified:…"

    def read(self, start: int, length: int) -> bytes:
        """Exactly `length` bytes; raise DataError for fewer, or if the object was written again."""
        return self.begin(start, length).result()

    def begin(self, start: int, length: int) -> Pending[bytes]:
        """Request bytes without waiting for them."""
        if start < 0 or start + length > self.size:
            raise DataError(
                f"{self.name!r} has {self.size} bytes, not {start + length}: it is another object"
                " or cut off"
            )

        def attempt(store: Any, key: str) -> bytes:
            # An empty range is not valid in HTTP.
            if not length:
                return b""
            found = store.get(key, options={"range": (start, start + length)})
            # Or bytes of two writings would be mixed.
            if (found.meta["size"], _stamp(found.meta)) != (self.size, self.stamp):
                raise DataError(
                    f"{self.name!r} was written again (another ETag) while it was read: start again"
                )
            data = bytes(found.bytes())
            if len(data) != length:
                raise DataError(
                    f"{self.name!r} sent {len(data)} bytes instead of {length}: start again"
                )
            return data

        return _begin(self._uri, attempt, self._limits, self.traffic, length)


def list_tars(uri: str, limits: Limits = DEFAULT) -> list[str]:
    """The URIs of all `*.tar` directly below a prefix, sorted by bytes, without hidden files."""
    prefix = parse(uri)
    # Whatever order a service lists in: the order of the shards decides that of the records.
    keys = [each["path"] for each in _directly_below(prefix, limits)["objects"]]
    tars = [
        key
        for key in keys
        if key.lower().endswith(".tar") and not key.rpartition("/")[2].startswith(".")
    ]
    return [prefix.at(f"{prefix.bucket}/{key}") for key in sorted(tars, key=os.fsencode)]


def list_folders(uri: str) -> list[str]:
    """The names of all prefixes directly below one, sorted; DataError if that one is missing."""
    paths = _directly_below(parse(uri), DEFAULT)["common_prefixes"]
    return sorted(path.rpartition("/")[2] for path in paths)


def listing(uri: str) -> dict[str, str]:
    """The objects below a prefix: name from there on -> stamp, new with each writing.

    Some tools write empty objects ("a/") for folders; those with objects below are left out.
    """
    prefix = parse(uri).key
    found = _ask(uri, lambda store, key: store.list(key).collect())
    # Every key above an object; an object of that name stands for a folder.
    folders = {prefix}
    for each in found:
        parts = each["path"].split("/")
        folders.update("/".join(parts[:count]) for count in range(1, len(parts)))
    return {
        each["path"].removeprefix(f"{prefix}/"): _written(each)
        for each in found
        if each["path"] not in folders
    }


def stamp(uri: str, limits: Limits = DEFAULT) -> str:
    """The stamp of an object, as in `listing`; "" if there is none."""

    def attempt(store: Any, key: str) -> str:
        try:
            return _written(store.head(key))
        except FileNotFoundError:
            return ""

    return _ask(uri, attempt, limits)


def exists(uri: str, limits: Limits = DEFAULT) -> bool:
    """Whether there is such an object; raise DataError if that cannot be found out."""
    return bool(stamp(uri, limits))


def read(uri: str) -> bytes:
    """All of a small object."""
    return _ask(uri, lambda store, key: bytes(store.get(key).bytes()))


def read_versioned(uri: str) -> tuple[bytes, Version | None]:
    """All of a small object, and what `write_over` needs; b"" and None if there is none."""

    def attempt(store: Any, key: str) -> tuple[bytes, Version | None]:
        try:
            found = store.get(key)
        except FileNotFoundError:
            return b"", None
        version = {name: found.meta[name] for name in VERSION if found.meta[name]}
        return bytes(found.bytes()), version

    return _ask(uri, attempt)


def write(uri: str, content: bytes) -> None:
    """Write a small object."""
    # Nothing that writes is hedged: a second request might end after a later write of the caller.
    _ask(uri, lambda store, key: store.put(key, content), hedged=False)


def write_over(uri: str, content: bytes, seen: Version | None) -> None:
    """Write a small object in place of the `seen` one (None: of none), else raise ConflictError."""
    # If-None-Match: * or If-Match with the version; the service itself compares, so that of two
    # writers one alone succeeds.
    mode = "create" if seen is None else seen
    _ask(uri, lambda store, key: store.put(key, content, mode=mode), hedged=False)


def upload(path: Path, uri: str) -> None:
    """Copy a file to an object: complete or absent."""
    # A large file goes in parts, which the service joins at the end.
    _ask(uri, lambda store, key: store.put(key, path), hedged=False)


def move(uri: str, other: str) -> None:
    """Rename an object within its bucket; it exists under one of the two names at any time."""
    # Copied first: a kill in between leaves both names, never none.
    target = parse(other).key
    _ask(uri, lambda store, key: store.copy(key, target), hedged=False)
    remove(uri)


def remove(uri: str) -> None:
    """Delete an object, if it exists."""
    _ask(uri, lambda store, key: store.delete(key), hedged=False)


def download(uri: str, path: Path, limits: Limits = DEFAULT) -> None:
    """Copy an object to a file: complete or absent, in bounded memory."""
    found = Object(uri, limits)
    with whole_file(path) as file:
        # In pieces of 8 MiB with one ahead, so that memory does not grow with the object.
        window = Window(found)
        for start in range(0, found.size, PIECE):
            file.write(window[start : start + PIECE])


def _directly_below(prefix: Uri, limits: Limits) -> Mapping[str, Any]:
    if prefix.is_web:
        raise UsageError(
            f"{prefix.name!r} cannot be listed: write {{000..099}}.tar, or name a list of shards"
            " (.txt)"
        )
    found: Mapping[str, Any] = _begin(
        prefix, lambda store, key: store.list_with_delimiter(key), limits
    ).result()
    if not found["objects"] and not found["common_prefixes"]:
        raise DataError(f"{prefix.name!r} is missing: check the path")
    return found


def _ask(
    uri: str, act: Callable[[Any, str], T], limits: Limits = DEFAULT, hedged: bool = True
) -> T:
    return _begin(parse(uri), act, limits, hedged=hedged).result()


def _begin(
    uri: Uri,
    act: Callable[[Any, str], T],
    limits: Limits,
    traffic: Traffic | None = None,
    size: int = 0,
    hedged: bool = True,
) -> Pending[T]:
    """Start `act(client, key)` in a thread; what must not be done twice is not `hedged`."""
    # Outside of the thread: a refusal is raised to the caller at once, and nothing is queued.
    store, key = client(uri, limits), uri.key

    def attempt() -> T:
        try:
            return act(store, key)
        except errors as error:
            # Without the cause, whose text may show a signed URL.
            raise meaning(error, uri, limits) from None

    return Pending(attempt, limits, traffic or Traffic(), size, hedged)


def _stamp(meta: Mapping[str, Any]) -> str:
    # Web servers without ETags have a time of change at best.
    etag = (meta["e_tag"] or "").strip('"')
    return f"etag:{etag}" if etag else f"modified:{meta['last_modified']:%Y-%m-%dT%H:%M:%S}"


def _written(meta: Mapping[str, Any]) -> str:
    # With the size, as a time of whole seconds alone may be that of two writings.
    return f"{_stamp(meta)} {meta['size']}"
