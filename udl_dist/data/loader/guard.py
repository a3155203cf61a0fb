"""A tar that comes as a stream, each header checked before whoever parses it may see it; goes
forward only.

webdataset reads tars by Python's tarfile, which takes a bad header for the end, makes room for a
sparse member's claimed size, and unpacks whatever compression it meets. What passes here is a plain
tar by the rules of `tar`, whole to its end mark, without links, devices and sparse members, whose
members that are read are of a bounded size.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from typing import Protocol, cast

from udl_dist.data.shards.index import shown
from udl_dist.data.shards.tar import BLOCK, SLICE, Member, damaged, walk
from udl_dist.errors import DataError

LARGEST_MEMBER = 2**26  # bytes, of those that are read: an encoded image of more is refused
# bytes without a member: headers of folders, long names, zeros behind the end mark
MOST_WAITING = 2**24
ENDLESS = 2**62  # no stream is longer, and none says how long it is


class Bytes(Protocol):
    """Something that gives bytes: at least one, at most `size`, none at its end."""

    def read(self, size: int, /) -> bytes: ...


class Guard:
    """The checked bytes of a tar, plain or gzip, as a file that can be read from start to end.

    `is_read` says by its name whether a member will be read at all. What was wrong is kept in
    `fault`, since those who read pass their own version of an error on.
    """

    def __init__(self, name: str, source: Bytes, is_read: Callable[[bytes], bool]) -> None:
        self.fault = ""
        self._name, self._source, self._is_read = name, unpacked(source), is_read
        self._members = walk(name, self)
        self._at = 0  # bytes taken from the source
        self._window = b""  # the last of them that the walk has asked for
        self._ready = bytearray()  # checked, not given yet
        self._passing = 0  # bytes of content and padding that come next and are given as they are

    def read(self, size: int) -> bytes:
        """The next checked bytes, at most `size`; none at the end. Raises DataError with shard,
        byte and reason.
        """
        try:
            while not self._ready and not self._passing:
                if not self._advance():
                    return b""
            return self._given(size) if self._ready else self._passed(size)
        except DataError as error:
            self.fault = self.fault or str(error)
            raise

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, span: slice) -> bytes:
        """What the walk looks at: forward, and never further ahead than the header it is at."""
        padding, again = max(0, span.start - self._at), max(0, self._at - span.start)
        if padding >= BLOCK:  # the content of something unknown: tarfile might take it for headers
            raise damaged(self._name, self._at, f"{padding} bytes that belong to no member")
        self._ready += self._exactly(padding)
        fresh = self._exactly(span.stop - span.start - again)
        self._ready += fresh
        if len(self._ready) > MOST_WAITING:
            raise damaged(self._name, self._at, f"no member in {MOST_WAITING} bytes")
        self._window = (self._window[-again:] if again else b"") + fresh
        return self._window

    def _advance(self) -> bool:
        """Check headers up to the next member; False at the end of the tar."""
        member = next(self._members, None)
        if member is None:
            return bool(self._ready)
        self._refuse(member)
        self._passing = -(-member.length // BLOCK) * BLOCK
        return True

    def _refuse(self, member: Member) -> None:
        # a folder to tarfile, which steps over no content
        if member.name.endswith(b"/") and member.length:
            raise damaged(self._name, member.offset, "a folder with content")
        if member.length > LARGEST_MEMBER and self._is_read(member.name):
            raise damaged(
                self._name,
                member.offset,
                f"member {shown(member.name)} has {member.length} bytes, "
                f"{LARGEST_MEMBER} are the most that is read",
            )

    def _given(self, size: int) -> bytes:
        given = bytes(self._ready[:size])
        del self._ready[:size]
        return given

    def _passed(self, size: int) -> bytes:
        part = self._take(min(size, self._passing))
        if not part:
            raise damaged(
                self._name,
                self._at,
                f"ends {self._passing} bytes before its last member does (cut off)",
            )
        self._passing -= len(part)
        return part

    def _exactly(self, size: int) -> bytes:
        """So many bytes, fewer only at the end."""
        taken = b""
        while len(taken) < size and (part := self._take(size - len(taken))):
            taken += part
        return taken

    def _take(self, size: int) -> bytes:
        try:
            part = self._source.read(min(size, SLICE))
        except (EOFError, OSError, zlib.error) as error:
            raise damaged(self._name, self._at, f"cannot be unpacked ({error})") from None
        self._at += len(part)
        return part


class _Begun:
    """A stream whose first bytes were looked at."""

    def __init__(self, first: bytes, rest: Bytes) -> None:
        self._first, self._rest = first, rest

    def read(self, size: int = SLICE, /) -> bytes:
        given, self._first = self._first[:size], self._first[size:]
        return given or self._rest.read(size)


def unpacked(source: Bytes) -> Bytes:
    """The stream, unpacked on the way if it is gzip: with other compression a tar is refused as no
    tar.
    """
    first = b""
    while len(first) < 2 and (part := source.read(2 - len(first))):
        first += part
    begun = _Begun(first, source)
    return cast(Bytes, gzip.GzipFile(fileobj=begun, mode="rb")) if first == b"\x1f\x8b" else begun  # type: ignore[call-overload]
