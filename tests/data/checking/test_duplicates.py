"""Near hashes are found through their bands, all of them and no others."""

import numpy as np
import pytest

from tests.data.loader.made import pixels
from udl_dist.data.checking.duplicates import exact_groups, near_pairs, perceptual_hash
from udl_dist.data.checking.examine import TABLE


@pytest.mark.parametrize("bits", [0, 1, 3, 7])
def test_bands_find_what_comparing_all_finds(bits: int) -> None:
    chance = np.random.default_rng(bits)
    near = chance.integers(0, 2**63, 60, dtype=np.uint64)
    for _ in range(bits + 2):  # copies with ever more bits changed
        near = np.append(
            near, near[-60:] ^ np.uint64(1) << chance.integers(0, 64, 60, dtype=np.uint64)
        )
    hashes = np.unique(near)
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    expected = [
        (int(one), int(other))
        for one, other in zip(*np.nonzero(apart <= bits), strict=True)
        if one < other
    ]
    assert [tuple(pair) for pair in near_pairs(hashes, bits).tolist()] == expected
    assert bits == 0 or len(expected) > 60


def test_a_million_hashes_are_compared_with_few() -> None:
    hashes = np.unique(np.random.default_rng(0).integers(0, 2**63, 200_000, dtype=np.uint64))
    assert len(near_pairs(hashes, 3)) == 0


def test_equal_length_and_checksum_alone_make_no_copy() -> None:
    table = np.zeros(4, TABLE)
    table["length"], table["checksum"] = [5, 5, 5, 6], 7
    digests = [b"a", b"b", b"a", b"a"]
    read: list[int] = []
    groups = exact_groups(table, lambda record: read.append(record) or digests[record])  # type: ignore[func-returns-value]
    assert groups == [[0, 2]]
    assert read == [0, 1, 2]  # what is alone in its length and checksum is not read again
    assert exact_groups(table[:0], lambda record: b"") == []


def test_unlike_images_have_unlike_hashes() -> None:
    hashes = np.array(
        [perceptual_hash(np.repeat(pixels(n, 48, 48)[None], 3, 0)) for n in range(50)], np.uint64
    )
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None, :])[np.triu_indices(50, 1)]
    assert apart.min() > 3
    assert 26 < apart.mean() < 36
