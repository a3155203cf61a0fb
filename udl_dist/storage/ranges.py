"""Bytes of a blob, wherever it lies: single ranges, many ranges with few requests, or one walk from
front to back.

A blob is an opened object or file. Knows neither tar nor any storage library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from udl_dist.storage.range_cache import RangeCache
from udl_dist.storage.transfers import Traffic

PIECE = 2**23  # bytes that a walk reads at a time
KEPT = 4  # pieces that a walk keeps beside those in use
SMALL_GAP, SMALL_RANGE = 2**12, 2**18  # bytes: see `merged`
LONGEST_RANGE = 2**23
Range = tuple[int, int]  # start and length in bytes


class Answer(Protocol):
    """Bytes on their way."""

    def result(self) -> bytes: ...

    def cancel(self) -> None: ...


class Blob(Protocol):
    """What is read by ranges, by any number of threads: an `Object`."""

    name: str  # for messages
    size: int  # bytes
    stamp: str  # differs from one writing to the next
    traffic: Traffic

    def begin(self, start: int, length: int) -> Answer:
        """Ask for bytes without waiting for them."""
        ...


class Window:
    """The bytes of a blob for a walk from front to back: reads ahead, reads nothing twice, keeps
    little.
    """

    def __init__(self, blob: Blob, piece_bytes: int = PIECE) -> None:
        self._blob, self._piece = blob, piece_bytes
        self._pieces: dict[int, Answer] = {}  # by number, oldest use first
        self._held: dict[int, bytes] = {}
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
        parts = [self._content(number) for number in numbers]
        self._forget()
        first = numbers[0] * self._piece
        if len(parts) == 1:
            return parts[0][start - first : stop - first]
        parts[0], parts[-1] = (
            parts[0][start - first :],
            parts[-1][: stop - numbers[-1] * self._piece],
        )
        return b"".join(parts)

    def _ask(self, numbers: range) -> None:
        """Ask for the pieces that are wanted, and for the next one if the walk goes straight on."""
        goes_on, following = numbers[-1] - self._last in (0, 1), numbers[-1] + 1
        ahead = [following] if goes_on and following * self._piece < len(self) else []
        for number in [*numbers, *ahead]:
            if number not in self._held and number not in self._pieces:
                start = number * self._piece
                self._pieces[number] = self._blob.begin(start, min(self._piece, len(self) - start))
        near = range(
            numbers[0], numbers[-1] + 3
        )  # a walk looks back at the record before a header, and goes on
        for number in [
            number for number in self._pieces if number not in near
        ]:  # the walk jumped elsewhere
            self._pieces.pop(number).cancel()
        self._last = numbers[-1]

    def _content(self, number: int) -> bytes:
        if number in self._pieces:
            self._held[number] = self._pieces.pop(number).result()
        self._held[number] = self._held.pop(number)  # now the newest
        return self._held[number]

    def _forget(self) -> None:
        for number in list(self._held)[: max(0, len(self._held) - KEPT)]:
            del self._held[number]


def read_ranges(
    blob: Blob, ranges: Sequence[Range], cache: RangeCache | None = None
) -> list[bytes]:
    """The bytes of each range, in the order asked for, in as few requests as `merged` makes of
    them, all at once.

    With a cache, what it keeps is not asked for, and what was asked for is kept.
    """
    kept = (
        {} if cache is None else {each: cache.get(blob.name, blob.stamp, *each) for each in ranges}
    )
    asked = [each for each in ranges if kept.get(each) is None]
    fetched = dict(zip(asked, _fetched(blob, asked), strict=True))
    if cache is not None:
        for (start, _), data in fetched.items():
            cache.put(blob.name, blob.stamp, start, data)
    blob.traffic.count(bytes_wanted=sum(length for _, length in asked))
    return [kept.get(each) or fetched.get(each, b"") for each in ranges]


def _fetched(blob: Blob, ranges: Sequence[Range]) -> list[bytes]:
    joined = merged(ranges)
    under_way = [blob.begin(start, length) for start, length, _ in joined]
    found: list[bytes] = [b""] * len(ranges)
    try:
        for pending, (start, _, members) in zip(under_way, joined, strict=True):
            data = pending.result()
            for place in members:
                at, length = ranges[place]
                found[place] = data[at - start : at - start + length]
    finally:
        for pending in under_way:
            pending.cancel()
    return found


def merged(ranges: Sequence[Range]) -> list[tuple[int, int, list[int]]]:
    """Ranges to ask for as (start, length, places of the ranges it covers), in the order they lie.

    Two neighbours become one if what lies between, over the whole of the joined range, is at most a
    tenth of what is wanted; or if the gap is at most 4 KiB (a tar header, a label, padding) and the
    joined range at most 256 KiB, which costs less than another request. So photos read at most 1.1
    times what they need, and tiny records go together. No joined range is longer than 8 MiB, unless
    ranges overlap.
    """
    found: list[tuple[int, int, list[int]]] = []
    wanted = 0
    for place in sorted(range(len(ranges)), key=ranges.__getitem__):
        start, length = ranges[place]
        if found:
            first, reach, members = found[-1]
            gap, whole = start - (first + reach), max(first + reach, start + length) - first
            near = gap <= SMALL_GAP and whole <= SMALL_RANGE
            if gap < 0 or (
                whole <= LONGEST_RANGE and (near or whole - wanted - length <= wanted // 10)
            ):
                found[-1] = (first, whole, [*members, place])
                wanted += length
                continue
        found.append((start, length, [place]))
        wanted = length
    return found
