"""Reads an object: many ranges with few requests, or one walk from front to back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from udl_dist.storage.range_cache import RangeCache
from udl_dist.storage.transfers import Pending, Traffic

PIECE = 2**23  # bytes that a walk reads at a time
PIECES_HELD = 6  # at most: a walk looks back at the record before a header, and one piece is ahead
SMALL_GAP, SMALL_RANGE = 2**12, 2**18  # bytes: see `merged`
LONGEST_RANGE = 2**23  # bytes
Range = tuple[int, int]  # start and length in bytes


class Blob(Protocol):
    """What is read by ranges in any number of threads: an `Object`, or a file in tests."""

    name: str  # for messages
    size: int  # bytes
    stamp: str  # differs from one writing to the next
    traffic: Traffic

    def begin(self, start: int, length: int) -> Pending[bytes]:
        """Request bytes without waiting for them."""
        ...


class Window:
    """The bytes of a blob for a walk from front to back, read ahead in pieces, few in memory."""

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
        """Request the wanted pieces, and the next one if the walk is sequential."""
        # A walk that jumps (over a large record that is not read) gets nothing ahead.
        goes_on, following = numbers[-1] - self._last in (0, 1), numbers[-1] + 1
        ahead = [following] if goes_on and following * self._piece < len(self) else []
        # Wanted ones last, so that they are the last to be let go.
        for number in [*ahead, *numbers]:
            start = number * self._piece
            length = min(self._piece, len(self) - start)
            # Removed and inserted again, so that the last used piece is the last of the dict.
            piece = self._pieces.pop(number, None) or self._blob.begin(start, length)
            self._pieces[number] = piece
        # At least all of this slice and the piece ahead, however long the slice is.
        for number in list(self._pieces)[: -max(PIECES_HELD, len(numbers) + 1)]:
            self._pieces.pop(number).cancel()
        self._last = numbers[-1]


def read_ranges(
    blob: Blob, ranges: Sequence[Range], cache: RangeCache | None = None
) -> list[bytes]:
    """The bytes of each range, from the cache or by parallel requests for `merged` ranges."""
    found: dict[Range, bytes | None] = {}
    if cache:
        found = {each: cache.get(blob.name, blob.stamp, *each) for each in ranges}
    # All that is missing in one call, so that neighbours can be joined.
    missing = [each for each in ranges if found.get(each) is None]
    for each, data in zip(missing, _fetched(blob, missing), strict=True):
        found[each] = data
        if cache:
            cache.put(blob.name, blob.stamp, each[0], data)
    blob.traffic.count(bytes_wanted=sum(length for _, length in missing))
    return [found[each] or b"" for each in ranges]


def _fetched(blob: Blob, ranges: Sequence[Range]) -> list[bytes]:
    joined = merged(ranges)
    # All at once, then waited for in order: the wait is that of the slowest, not their sum.
    under_way = [blob.begin(each.start, each.length) for each in joined]
    found: list[bytes] = [b""] * len(ranges)
    try:
        for pending, each in zip(under_way, joined, strict=True):
            data = pending.result()
            for member in each.members:
                start, length = ranges[member]
                found[member] = data[start - each.start : start - each.start + length]
    finally:
        # After an error the rest is of no use, and would occupy threads.
        for pending in under_way:
            pending.cancel()
    return found


@dataclass
class Joined:
    """One request for several ranges."""

    start: int
    length: int
    wanted: int  # bytes of its members
    members: list[int]  # places of the ranges it covers


def merged(ranges: Sequence[Range]) -> list[Joined]:
    """The requests to make for ranges, sorted by position.

    Neighbours are joined if all gaps of the joined range are at most a tenth of what is wanted, or
    if the gap is at most 4 KiB (a tar header, a label, padding) and the joined range at most 256
    KiB, which costs less than another request. So photos cost at most 1.1 times their bytes, and
    tiny records go together. Unless ranges overlap, a joined range has at most 8 MiB.
    """
    found: list[Joined] = []
    # By position, so that only the last joined range can be a neighbour.
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
    # Overlapping ranges always join: two requests would read the bytes twice.
    return gap < 0 or (whole <= LONGEST_RANGE and (near or spare <= last.wanted // 10))
