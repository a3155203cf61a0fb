"""Decoded rows change no weight, and the ranks of a machine share them."""

import platform
from pathlib import Path

import pytest

from tests.training import gloo
from tests.training.learn import Run, asked, packed
from udl_dist.experiment import Experiment
from udl_dist.training.distributed import SHARED, STORES_IN_ORDER, Ranks


def trained(experiments: list[Experiment]) -> list[str]:
    """The hash of each run; the decoded rows of both ranks are here after an epoch."""
    hashes = []
    for experiment in experiments:
        run = Run(experiment, Ranks())
        list(run.reports())
        hashes.append(run.hash())
        decoded, seen = run.stream.loader.decoded, run.stream.records
        assert decoded.rows == (seen if experiment.data.decoded_bytes else 0)
        if not decoded.on_device:
            assert int(decoded._marks.sum()) == decoded.rows
    return hashes


@pytest.mark.parametrize("world", [1, 2])
def test_weights_are_the_same_with_and_without(world: int, tmp_path: Path) -> None:
    flags = {"data__flip": "true", "data__size": "6"}  # resized, and mirrored in half of the epochs
    source = packed(tmp_path)
    experiments = [
        asked("vae", source, data__decoded_bytes=amount, data__decoded_on=place, **flags)
        for amount, place in (("0", "host"), ("auto", "host"), ("auto", "device"))
    ]
    for hashes in gloo.run(world, trained, experiments):
        assert len(set(hashes)) == 1


def test_a_run_that_goes_on_with_nothing_decoded_has_the_same_weights(tmp_path: Path) -> None:
    experiment = asked("ae", packed(tmp_path), data__flip="true", data__size="6")
    whole, middle = Run(experiment), Run(experiment)
    list(whole.reports())
    next(report for report in middle.reports() if report.images == 120)
    resumed = Run(experiment)
    resumed.learning.restore(middle.state())
    list(resumed.reports(start=120))
    assert resumed.hash() == whole.hash()


def shared() -> tuple[int, int]:
    ranks = Ranks()
    memory = ranks.shared_zeros(1000 + ranks.rank)
    memory[ranks.rank] = 7 + ranks.rank
    ranks.total({"written": 1.0})
    return len(memory), int(memory[:2].sum())


def on_other_machines() -> int:
    ranks = Ranks()
    if ranks.rank:
        pytest.MonkeyPatch().setattr(platform, "machine", lambda: "aarch64")
    return len(ranks.shared_zeros(1000))


def test_ranks_on_machines_of_two_kinds_send_the_same_messages() -> None:
    """One that cannot share memory returned early, and the others waited for it."""
    assert gloo.run(2, on_other_machines, seconds=30) == [1000] * 2


@pytest.mark.skipif(
    platform.machine() not in STORES_IN_ORDER, reason="no shared memory on this kind of machine"
)
def test_ranks_of_one_machine_share_memory_that_leaves_no_file() -> None:
    before = {path.name for path in Path(SHARED).glob("udl-*")}
    assert gloo.run(2, shared) == [(1000, 15)] * 2
    assert {path.name for path in Path(SHARED).glob("udl-*")} <= before
