"""The order: every record once an epoch, as well mixed as a true shuffle, the same shares at any
world size.
"""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from udl_dist.core import rng
from udl_dist.data.loader import order
from udl_dist.data.loader.order import Blocks

SEEDS = st.integers(0, 2**63)


@given(SEEDS, st.integers(0, 10**6), st.integers(1, 5000))
def test_every_record_stands_at_one_place_of_an_epoch(seed: int, epoch: int, records: int) -> None:
    found = order.record_at(seed, epoch, np.arange(records), records)
    assert np.array_equal(np.sort(found), np.arange(records))


@given(SEEDS, st.integers(1, 2**62), st.lists(st.integers(0, 2**62), max_size=20))
def test_the_place_alone_decides_at_any_number_of_records(
    seed: int, records: int, places: list[int]
) -> None:
    within = np.array([place % records for place in places], np.int64)
    found = order.record_at(seed, 3, within, records)
    assert ((found >= 0) & (found < records)).all()
    alone = [
        int(order.record_at(seed, 3, within[place : place + 1], records)[0])
        for place in range(len(within))
    ]
    assert found.tolist() == alone
    assert len(set(found.tolist())) == len(set(within.tolist()))


@given(st.integers(0, 10**12), st.integers(1, 700), st.data())
def test_a_share_by_lane_is_that_of_a_stable_sort(
    place: int, count: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    whole = np.argsort((place + np.arange(count)) % order.LANES, kind="stable")
    assert np.array_equal(order.by_lane(place, count, start, stop), whole[start:stop])


@pytest.mark.parametrize("records", [1, 2, 3, 4, 5])
def test_few_records_take_all_their_orders_equally_often(records: int) -> None:
    epochs = 20 * math.factorial(records)
    places = np.arange(records)
    counts = Counter(
        tuple(order.record_at(1, epoch, places, records).tolist()) for epoch in range(epochs)
    )
    orders = list(itertools.permutations(range(records)))
    chi = sum((counts[one] - 20) ** 2 / 20 for one in orders)
    degrees = len(orders) - 1
    assert chi <= degrees + 4 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("records", [10, 1000, 60_000])
def test_order_mixes_like_a_true_shuffle(records: int) -> None:
    """Neighbours, batches and places hold what chance would give them: each statistic within 5
    standard deviations.
    """
    places, shuffle = np.arange(records), np.random.default_rng(0)
    epochs = max(20, 8_000 // records)
    ours = np.stack([order.record_at(2, epoch, places, records) for epoch in range(epochs)])
    true = np.stack([shuffle.permutation(records) for _ in range(epochs)])
    for statistic in (_neighbours, _fixed, _epochs_alike, _spread_of_batches):
        mean, deviation = statistic(true)
        assert abs(statistic(ours)[0] - mean) <= 5 * deviation + 1e-9, statistic.__name__


def _neighbours(orders: NDArray[np.int64]) -> tuple[float, float]:
    """Correlation of a record with the next one."""
    each = np.array([np.corrcoef(one[:-1], one[1:])[0, 1] for one in orders])
    return float(each.mean()), float(each.std() / math.sqrt(len(each)) * math.sqrt(2))


def _fixed(orders: NDArray[np.int64]) -> tuple[float, float]:
    """Records that stand at their own place: one an epoch."""
    return float((orders == np.arange(orders.shape[1])).sum(1).mean()), math.sqrt(2 / len(orders))


def _epochs_alike(orders: NDArray[np.int64]) -> tuple[float, float]:
    """Records that stand at the same place in two epochs that follow each other."""
    return float((orders[1:] == orders[:-1]).sum(1).mean()), math.sqrt(2 / (len(orders) - 1))


def _spread_of_batches(orders: NDArray[np.int64]) -> tuple[float, float]:
    """Variance of the means of batches, in units of what chance gives; structure makes it too small
    or too large.
    """
    batch = max(2, orders.shape[1] // 50)
    used = orders[:, : orders.shape[1] // batch * batch].reshape(len(orders), -1, batch)
    scale = orders.shape[1] ** 2 / 12 / batch
    count = used.shape[0] * used.shape[1]
    return float(used.mean(2).var() / scale), math.sqrt(2 * 2 / count)


def test_seeds_and_epochs_give_other_orders() -> None:
    places = np.arange(100)
    seen = {
        order.record_at(seed, epoch, places, 100).tobytes()
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(seen) == 25


@given(st.integers(0, 500), st.integers(1, 20))
def test_shares_cover_the_batch_and_differ_by_one_at_most(images: int, world: int) -> None:
    ranges = [order.share(images, rank, world) for rank in range(world)]
    assert [start for start, _ in ranges[1:]] == [stop for _, stop in ranges[:-1]]
    assert (ranges[0][0], ranges[-1][1]) == (0, images)
    assert (
        max(stop - start for start, stop in ranges) - min(stop - start for start, stop in ranges)
        <= 1
    )


def test_chance_of_a_record_depends_on_seed_and_epoch_and_key_alone() -> None:
    hashes = np.arange(1000, dtype=np.uint64)
    assert np.array_equal(order.keys(1, 2, hashes)[::-1], order.keys(1, 2, hashes[::-1]))
    drawn = [
        order.keys(1, 2, hashes),
        order.keys(1, 3, hashes),
        order.keys(2, 2, hashes),
        order.record_keys(1, hashes),
    ]
    assert len(set(np.concatenate(drawn).tolist())) == 4000
    assert 400 < order.flips(drawn[0]).sum() < 600
    assert not np.array_equal(order.flips(drawn[0]), order.flips(drawn[1]))


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.1, 0.5, 0.9])
def test_held_out_is_the_asked_fraction_and_grows_with_it(fraction: float) -> None:
    hashes = rng.mix64(np.arange(100_000, dtype=np.uint64))
    held = order.held_out(hashes, fraction)
    assert abs(held.mean() - fraction) < 0.01
    assert (order.held_out(hashes, 0.95) | ~held).all()
    assert fraction == 0 or not np.array_equal(held, order.held_out(hashes, fraction, seed=1))


@given(st.integers(0, 3), st.integers(1, 3000), st.integers(1, 90), st.integers(1, 3))
def test_blocks_hold_every_record_once_and_the_place_alone_decides(
    epoch: int, records: int, run: int, window: int
) -> None:
    blocks = Blocks(run, window)
    found = order.record_in_blocks(5, epoch, np.arange(records), records, blocks)
    assert np.array_equal(np.sort(found), np.arange(records))
    some = np.arange(records)[:: max(1, records // 7)]
    assert np.array_equal(order.record_in_blocks(5, epoch, some, records, blocks), found[some])


def test_blocks_mix_classes_nearly_as_a_true_shuffle() -> None:
    """Records sorted by class, the worst case: batches of 256 hold the classes nearly as by
    chance.
    """
    records, batch = 51_200, 256
    classes = np.arange(records) * 100 // records
    shuffled = np.random.default_rng(0).permutation(records)
    ours = order.record_in_blocks(1, 0, np.arange(records), records, Blocks(20))
    per_batch = [
        np.stack(
            [np.bincount(classes[part], minlength=100) for part in one.reshape(-1, batch)]
        ).var()
        for one in (ours, shuffled)
    ]
    assert per_batch[0] < 1.5 * per_batch[1]
    in_order = np.stack(
        [
            np.bincount(classes[part], minlength=100)
            for part in np.arange(records).reshape(-1, batch)
        ]
    )
    assert in_order.var() > 20 * per_batch[0]


def test_blocks_read_each_run_within_few_steps() -> None:
    """What makes reading from afar cheap: a run is used up soon after it is begun."""
    records, run = 20_000, 25
    found = order.record_in_blocks(1, 0, np.arange(records), records, Blocks(run))
    first, last = np.full(records // run, records), np.zeros(records // run)
    np.minimum.at(first, found // run, np.arange(records))
    np.maximum.at(last, found // run, np.arange(records))
    assert np.quantile(last - first, 0.9) <= 8 * run * order.LANES


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, 1.0, 2.0), (0.999, 0.001)])
def test_mixed_sets_take_turns_by_weight_and_miss_no_place(weights: tuple[float, ...]) -> None:
    sets, places = order.mixed(3, np.arange(5 * order.MIX_BLOCK), weights)
    for number, weight in enumerate(weights):
        own = places[sets == number]
        assert np.array_equal(np.sort(own), np.arange(len(own)))
        assert abs(len(own) / len(sets) - weight / sum(weights)) <= 1 / order.MIX_BLOCK
    positions = np.array([1, 1500, 4000])
    again = order.mixed(3, positions, weights)
    assert np.array_equal(again[0], sets[positions]) and np.array_equal(again[1], places[positions])


def test_a_run_that_goes_on_in_a_later_release_meets_the_same_records() -> None:
    """Held to numbers: after a change each run that goes on would get other images."""
    numbers = np.arange(5)
    assert order.record_at(3, 1, numbers, 1000).tolist() == [974, 800, 311, 182, 845]
    places = np.array([0, 1, 64, 6400, 9999])
    in_blocks = order.record_in_blocks(3, 1, places, 10_000, Blocks(16, 4))
    assert in_blocks.tolist() == [7558, 8760, 4338, 9990, 4967]
    sets, positions = order.mixed(3, np.array([0, 1, 2, 1024, 1025]), (1.0, 3.0))
    assert (sets.tolist(), positions.tolist()) == ([0, 1, 0, 0, 1], [0, 0, 1, 256, 768])
    assert [order.substitute(7, attempt, 1000) for attempt in range(3)] == [893, 313, 687]
    hashes = np.arange(40, dtype=np.uint64)
    assert order.keys(3, 1, hashes[1:2]).tolist() == [-4452999402790154177]
    assert order.record_keys(3, hashes[1:2]).tolist() == [1392760107680937990]
    assert order.flips(np.arange(8)).tolist() == [True] * 4 + [False, True] * 2
    assert np.flatnonzero(order.held_out(hashes, 0.1, 3)).tolist() == [3, 16, 18, 37]
