"""The arithmetic of a forecast against sums made by hand, and against what must hold at its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from udl_dist.forecast import model
from udl_dist.forecast.model import COMPUTING, CORES, DECODING, GRADIENTS, STORAGE, Inputs

# A GPU machine: 8 workers, each of 100 images in a step of 100 ms, 12 cores, 1 ms to decode an image of 100 kB.
BASE = Inputs(
    nodes=1, workers_per_node=8, cpus_per_node=96, images=100, readers=4, compute_seconds=0.1, host_seconds=0.05,
    decode_seconds=1e-3, record_bytes=1e5, node_bytes_per_second=1e10, storage_bytes_per_second=1e12, reduces=1,
    gradient_bytes=1e8, sync_seconds=1e-4, link_bytes_per_second=1e10, checkpoint_bytes=1e9, copy_seconds=0.5,
    write_bytes_per_second=1e8,
)  # fmt: skip


def test_one_worker_sends_nothing() -> None:
    alone = replace(BASE, workers_per_node=1, cpus_per_node=12)
    found = model.step(alone)
    assert found.reduce_seconds == 0
    assert found.seconds == pytest.approx(0.1)  # decoding: 100 x 1 ms / 4 threads; storage: 10 MB / 10 GB/s
    assert found.limits == pytest.approx({COMPUTING: 0.1, DECODING: 0.025, CORES: (0.05 + 0.1) / 12, STORAGE: 1e-3})
    assert model.efficiency(alone) == 1


@pytest.mark.parametrize(
    ("nodes", "each", "reduce"),
    [
        (1, 2, 1e-4 + 2 * 1 / 2 * 1e8 / 1e10),
        (1, 8, 3e-4 + 2 * 7 / 8 * 1e8 / 1e10),
        (64, 8, 9e-4 + 2 * 511 / 512 * 1e8 / 1e10),
    ],
)
def test_gradients_travel_in_a_ring(nodes: int, each: int, reduce: float) -> None:
    found = model.step(replace(BASE, nodes=nodes, workers_per_node=each, cpus_per_node=12 * each))
    assert found.reduce_seconds == pytest.approx(reduce)
    assert found.seconds == pytest.approx(0.1 + reduce)
    assert found.wait_seconds == 0 and next(iter(found.limits)) == COMPUTING


def test_a_slow_link_is_named() -> None:
    slow = replace(BASE, nodes=64, link_bytes_per_second=1e9)
    found = model.step(slow)
    assert next(iter(found.limits)) == GRADIENTS  # 2 x 511/512 x 0.1 s are more than the step itself
    assert found.seconds == pytest.approx(0.1 + 9e-4 + 2 * 511 / 512 * 0.1)
    assert model.efficiency(slow) == pytest.approx(0.1 / found.seconds)


def test_two_phases_send_twice_as_many_messages() -> None:
    both = replace(BASE, reduces=2)
    assert model.reduce_seconds(both) - model.reduce_seconds(BASE) == pytest.approx(3e-4)


def test_decoding_is_as_fast_as_its_threads_and_its_cores() -> None:
    threads = model.step(replace(BASE, readers=1, decode_seconds=2e-3))
    assert threads.seconds == pytest.approx(100 * 2e-3) and next(iter(threads.limits)) == DECODING
    cores = model.step(replace(BASE, readers=64, cpus_per_node=8, decode_seconds=2e-3))
    assert cores.seconds == pytest.approx(0.05 + 100 * 2e-3) and next(iter(cores.limits)) == CORES
    assert cores.wait_seconds == pytest.approx(cores.seconds - 0.1 - cores.reduce_seconds)


def test_storage_gives_to_a_machine_and_to_all_of_them() -> None:
    machine = model.step(replace(BASE, node_bytes_per_second=1e8))
    assert machine.seconds == pytest.approx(8 * 100 * 1e5 / 1e8) and next(iter(machine.limits)) == STORAGE
    everybody = model.step(replace(BASE, nodes=64, storage_bytes_per_second=1e10))
    assert everybody.seconds == pytest.approx(512 * 100 * 1e5 / 1e10)
    assert list(everybody.limits)[:2] == [STORAGE, COMPUTING]


def test_without_readers_one_thing_follows_the_other() -> None:
    found = model.step(replace(BASE, readers=0, workers_per_node=1, cpus_per_node=12))
    assert found.seconds == pytest.approx(0.1 + 100 * 1e-3 + 1e-3)
    assert found.wait_seconds == pytest.approx(0.101)


def test_more_of_anything_is_never_slower() -> None:
    for worse in ({"compute_seconds": 0.2}, {"decode_seconds": 1e-2}, {"record_bytes": 1e7}, {"gradient_bytes": 1e10},
                  {"sync_seconds": 0.1}, {"host_seconds": 5.0}):  # fmt: skip
        slower = replace(replace(BASE, nodes=64), **worse)  # type: ignore[arg-type]
        assert model.step(slower).seconds > model.step(replace(BASE, nodes=64)).seconds, worse
    speeds = [nodes * 8 * 100 / model.step(replace(BASE, nodes=nodes)).seconds for nodes in (1, 2, 8, 64, 512)]
    assert speeds == sorted(speeds)
    shares = [model.efficiency(replace(BASE, nodes=nodes)) for nodes in (1, 2, 8, 64, 512)]
    assert shares == sorted(shares, reverse=True) and all(0 < share < 1 for share in shares)


def test_a_checkpoint_that_is_not_written_when_the_next_one_comes_is_waited_for() -> None:
    assert model.stall_seconds(BASE, 60) == pytest.approx(0.5)  # 10 s to write
    assert model.stall_seconds(BASE, 4) == pytest.approx(0.5 + 6)
