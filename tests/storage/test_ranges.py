"""Many ranges in few requests, and a walk from front to back: every byte right, and how many are
read.
"""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udl_dist.storage.ranges import (
    LONGEST_RANGE,
    PIECES_HELD,
    SMALL_GAP,
    SMALL_RANGE,
    Window,
    merged,
    read_ranges,
)
from udl_dist.storage.transfers import Limits, Pending, Traffic

DATA = os.urandom(300_000)


class FileBlob:
    """A file on disk, small enough for memory."""

    def __init__(self, path: Path) -> None:
        self.name, self.traffic, self.stamp = str(path), Traffic(), "mtime:0"
        self._data = path.read_bytes()
        self.size = len(self._data)

    def begin(self, start: int, length: int) -> Pending[bytes]:
        return Pending(lambda: self._data[start : start + length], Limits(), self.traffic, length)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranges") / "data.bin"
    path.write_bytes(DATA)
    return path


RANGES = st.lists(st.tuples(st.integers(0, 290_000), st.integers(0, 10_000)), max_size=40)


@settings(max_examples=200, deadline=None)
@given(RANGES)
def test_any_ranges_come_back_as_they_lie(path: Path, ranges: list[tuple[int, int]]) -> None:
    blob = FileBlob(path)
    assert read_ranges(blob, ranges) == [DATA[start : start + length] for start, length in ranges]


@settings(max_examples=200, deadline=None)
@given(RANGES)
def test_each_range_is_in_one_joined_range_and_what_is_read_is_bounded(
    ranges: list[tuple[int, int]],
) -> None:
    joined = merged(ranges)
    assert sorted(member for each in joined for member in each.members) == list(range(len(ranges)))
    for each in joined:
        members = [ranges[member] for member in each.members]
        assert all(each.start <= start for start, _ in members)
        assert all(sum(member) <= each.start + each.length for member in members)
        assert each.length <= max(2**18, 1.1 * sum(length for _, length in members))


@pytest.mark.parametrize(
    ("apart", "length", "requests"),
    [(32_256, 30_000, 1), (60_000, 30_000, 100), (1536, 300, 1)],
    ids=["photos side by side", "photos apart", "tiny records with a header between"],
)
def test_neighbours_are_joined_where_that_costs_little(
    apart: int, length: int, requests: int
) -> None:
    assert len(merged([(at * apart, length) for at in range(100)])) == requests


@pytest.mark.parametrize(
    ("first", "gap", "second", "requests"),
    [
        (300, SMALL_GAP, 300, 1),
        (300, SMALL_GAP + 1, 300, 2),
        (1_000_000, 100_000, 50, 1),
        (1_000_000, 100_001, 50, 2),
        (LONGEST_RANGE - 300, 0, 300, 1),
        (LONGEST_RANGE - 300, 0, 301, 2),
    ],
)
def test_neighbours_are_joined_up_to_each_limit(
    first: int, gap: int, second: int, requests: int
) -> None:
    assert len(merged([(7, first), (7 + first + gap, second)])) == requests


def test_tiny_ranges_are_joined_up_to_the_small_range() -> None:
    tiny = [(at * 2048, 1024) for at in range(128)]
    for length, requests in ((524, 1), (525, 2)):
        last = (SMALL_RANGE - 524, length)
        assert len(merged([*tiny, last])) == requests


def test_no_joined_range_is_longer_than_the_longest() -> None:
    joined = merged([(at * 100_000, 100_000) for at in range(1000)])
    assert max(each.length for each in joined) <= LONGEST_RANGE < 1000 * 100_000


def test_a_window_forgets_what_it_has_passed(path: Path) -> None:
    blob = FileBlob(path)
    window = Window(blob, piece_bytes=1000)
    assert b"".join(window[at : at + 700] for at in range(0, len(window), 700)) == DATA
    assert blob.traffic.bytes_read == len(DATA)
    assert len(window._pieces) <= PIECES_HELD
    assert (
        window[10:5] == window[len(DATA) : len(DATA) + 5] == b""
        and window[len(DATA) - 3 :] == DATA[-3:]
    )


def test_a_window_does_not_read_what_is_jumped_over(path: Path) -> None:
    blob = FileBlob(path)
    window = Window(blob, piece_bytes=1000)
    for at in range(0, 290_000, 10_000):
        assert window[at : at + 512] == DATA[at : at + 512]
    assert blob.traffic.bytes_read <= 29 * 1000 + 2000
