"""Bytes of an object: many ranges with few requests, or one walk from front to back. Knows no tar
and no library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from udl_dist.storage.range_cache import RangeCache
from udl_dist.storage.transfers import Pending, Traffic

PIECE = 2**23  # bytes that a walk reads at a time
# at most; a walk looks back at the record before a header, and one piece comes ahead of its use
PIECES_HELD = 6
SMALL_GAP, SMALL_RANGE = 2**12, 2**18  # bytes: see `merged`
LONGEST_RANGE = 2**23
Range = tuple[int, int]  # start and length in bytes


class Blob(Protocol):
    """What is read by ranges, by any number of threads: an `Object`."""

    name: str  # for messages
    size: int  # bytes
    stamp: str  # differs from one writing to the next
    traffic: Traffic

    def begin(self, start: int, length: int) -> Pending[bytes]:
        """Ask for bytes without waiting for them."""
        ...


class Window:
    """The bytes of a blob for a walk from front to back: reads ahead, reads nothing twice, holds
    little.
    """

    def __init__(self, blob: Blob, piece_bytes: int = PIECE) -> None:
        self._blob, self._piece = blob, piece_bytes
        self._pieces: dict[int, Pending[bytes]] = {}  # by number, the last used last
        self._last = -1

    def __len__(self) -> int:
        return self._blob.size

    def __getitem__(self, where: slice) -> bytes:
        start, stop, step = where.indices(len(self))
        assert step == 1, "a walk takes bytes as they lie"
        if stop <= start:
            return b""
        numbers = range(start // self._piece, (stop - 1) // self._piece + 1)
        self._ask(numbers)
        data = b"".join([self._pieces[number].result() for number in numbers])
        first = numbers[0] * self._piece
        return data[start - first : stop - first]

    def _ask(self, numbers: range) -> None:
        """Ask for the pieces that are wanted, and for the next one if the walk goes straight on."""
        goes_on, following = numbers[-1] - self._last in (0, 1), numbers[-1] + 1
        ahead = [following] if goes_on and following * self._piece < len(self) else []
        for number in [*ahead, *numbers]:
            start = number * self._piece
            asked = self._pieces.pop(number, None)
            self._pieces[number] = asked or self._blob.begin(
                start, min(self._piece, len(self) - start)
            )
        for number in list(self._pieces)[: -max(PIECES_HELD, len(numbers) + 1)]:
            self._pieces.pop(number).cancel()
        self._last = numbers[-1]


def read_ranges(
    blob: Blob, ranges: Sequence[Range], cache: RangeCache | None = None
) -> list[bytes]:
    """The bytes of each range, in the order asked for, in as few requests as `merged` makes of
    them, all at once.

    What the cache has is not requested, and what was requested is put there.
    """
    cached = (
        {} if cache is None else {each: cache.get(blob.name, blob.stamp, *each) for each in ranges}
    )
    asked = [each for each in ranges if cached.get(each) is None]
    fetched = dict(zip(asked, _fetched(blob, asked), strict=True))
    if cache is not None:
        for (start, _), data in fetched.items():
            cache.put(blob.name, blob.stamp, start, data)
    blob.traffic.count(bytes_wanted=sum(length for _, length in asked))
    return [cached.get(each) or fetched.get(each, b"") for each in ranges]


def _fetched(blob: Blob, ranges: Sequence[Range]) -> list[bytes]:
    joined = merged(ranges)
    under_way = [blob.begin(each.start, each.length) for each in joined]
    found: list[bytes] = [b""] * len(ranges)
    try:
        for pending, each in zip(under_way, joined, strict=True):
            data = pending.result()
            for member in each.members:
                start, length = ranges[member]
                found[member] = data[start - each.start : start - each.start + length]
    finally:
        for pending in under_way:
            pending.cancel()
    return found


@dataclass
class Joined:
    """One request for several ranges."""

    start: int
    length: int
    wanted: int  # bytes of its members
    members: list[int]  # which of the ranges it covers


def merged(ranges: Sequence[Range]) -> list[Joined]:
    """The requests to make for ranges, in the order they lie.

    Two neighbours become one if what lies between, over the whole of the joined range, is at most a
    tenth of what is wanted; or if the gap is at most 4 KiB (a tar header, a label, padding) and the
    joined range at most 256 KiB, which costs less than another request. So photos read at most 1.1
    times what they need, and tiny records go together. No joined range is longer than 8 MiB, unless
    ranges overlap.
    """
    found: list[Joined] = []
    for member in sorted(range(len(ranges)), key=ranges.__getitem__):
        start, length = ranges[member]
        if found and _fits(found[-1], start, length):
            last = found[-1]
            last.length = max(last.length, start + length - last.start)
            last.wanted += length
            last.members.append(member)
        else:
            found.append(Joined(start, length, length, [member]))
    return found


def _fits(last: Joined, start: int, length: int) -> bool:
    gap = start - (last.start + last.length)
    whole = max(last.length, start + length - last.start)
    near = gap <= SMALL_GAP and whole <= SMALL_RANGE
    spare = whole - last.wanted - length
    return gap < 0 or (whole <= LONGEST_RANGE and (near or spare <= last.wanted // 10))
