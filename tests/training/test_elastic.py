"""Bits that do not depend on the world: elastic runs in any of them, plain runs after a restart in
the same one.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import gloo
from tests.training.learn import Run, asked
from udl_dist.errors import UsageError
from udl_dist.experiment import Experiment
from udl_dist.launch.plan import plan
from udl_dist.training.distributed import Ranks

pytestmark = pytest.mark.long

METHODS = ["ae", "vae", "gan"]
States = dict[str, dict[str, dict[str, torch.Tensor]]]
Legs = tuple[dict[str, str], States, dict[str, bool]]


def wanted(method: str, source: Path, **flags: str) -> Experiment:
    """Ten steps of 30 images: shares of two and of three."""
    flags = {
        "train__batch_size": "30",
        "train__total_images": "300",
        "train__average_half_life": "100",
    } | flags
    return asked(method, source, **flags)


def leg(experiment: Experiment, state: Any, start: int, stop: int) -> tuple[str, Any]:
    """Hash and state after `stop` images, from `state` after `start` on."""
    run = Run(experiment, Ranks())
    if state:
        # tensors that came from another process are shared by all ranks
        run.learning.restore(copy.deepcopy(state))
    for report in run.reports(start, every=30, validate=300):
        if report.images == stop:
            run.ranks.await_announced()
            return run.hash(), run.state()
    raise AssertionError("not reached")


def legs(source: Path, world: int, states: States) -> Legs:
    """Of each method: the hash of a whole elastic run; the state of the leg of 4 -> 2 -> 3 that
    this world has; whether a plain run that was stopped and gone on with in this world has the bits
    of one that was not.
    """
    hashes, reached, alike = {}, {}, {}
    for method in METHODS:
        elastic = wanted(method, source, run__determinism="elastic")
        hashes[method], _ = leg(elastic, None, 0, 300)
        start, stop = {4: (0, 120), 2: (120, 210), 3: (210, 300)}.get(world, (0, 30))
        hashed, reached[method] = leg(elastic, states.get(method), start, stop)
        hashes[f"{method} in parts"] = hashed
        plain = wanted(method, source)
        whole, (_, half) = leg(plain, None, 0, 300), leg(plain, None, 0, 150)
        alike[method] = leg(plain, half, 150, 300)[0] == whole[0]
    return hashes, reached, alike


@pytest.fixture(scope="module")
def worlds(source: Path) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {1: [legs(source, 1, {})]}
    states: States = {}
    for world in (4, 2, 3):
        found[world] = gloo.run(world, legs, source, world, states, seconds=400)
        states = found[world][0][1]
    return found


@pytest.mark.parametrize("method", METHODS)
def test_an_elastic_run_has_the_same_bits_in_any_world(
    method: str, worlds: dict[int, list[Any]]
) -> None:
    hashes = {rank[0][method] for ranks in worlds.values() for rank in ranks}
    assert len(hashes) == 1


@pytest.mark.parametrize("method", METHODS)
def test_an_elastic_run_that_went_on_with_two_then_three_of_four_has_them_too(
    method: str, worlds: dict[int, list[Any]]
) -> None:
    assert {rank[0][f"{method} in parts"] for rank in worlds[3]} == {worlds[1][0][0][method]}


@pytest.mark.parametrize("world", [2, 3, 4])
def test_a_plain_run_that_was_gone_on_with_has_the_same_bits_in_the_same_world(
    world: int, worlds: dict[int, list[Any]]
) -> None:
    """With three ranks and more the order of a sum is a place in DDP's buckets, laid again at each
    start.
    """
    assert all(rank[2] == dict.fromkeys(METHODS, True) for rank in worlds[world])


def test_an_elastic_run_learns_what_a_plain_one_learns(source: Path) -> None:
    plain, elastic = (
        Run(wanted("vae", source, run__determinism=how)) for how in ("world", "elastic")
    )
    for run in (plain, elastic):
        list(run.reports(every=300, validate=300))
    assert (plain.weights() - elastic.weights()).abs().max().item() < 1e-4


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            {"run.workers": "5"},
            "which 5 workers cannot divide: set run.workers to 1, 2, 3, 4, 6 or 12",
        ),
        ({"train.batch_size": "8"}, "set train.batch_size to 12 or more, not 8"),
        ({"train.accumulate": "2"}, "train.accumulate has no meaning there"),
        (
            {"method.network.norm": "batch"},
            "batch normalisation \\(encoder, decoder\\) would see each alone",
        ),
    ],
)
def test_what_cannot_be_elastic_is_refused_by_name(
    flags: dict[str, str], said: str, source: Path
) -> None:
    dotted = {name.replace(".", "__"): value for name, value in flags.items()}
    with pytest.raises(UsageError, match=said):
        plan(asked("ae", source, run__determinism="elastic", **dotted))
