"""A loss or gradient that is not finite, on one rank of two: no one takes the step, all do the same
about it.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import gloo
from tests.training.learn import Run, asked
from udl_dist import methods
from udl_dist.data.packing.prepare import prepare
from udl_dist.errors import TrainingError
from udl_dist.experiment import Experiment
from udl_dist.launch.worker import work
from udl_dist.methods.method import Batch, Loss, Phase
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training import finite_guard
from udl_dist.training.distributed import Ranks

BAD = (60, 84)  # images seen before the steps that are spoiled


class Nan(torch.autograd.Function):
    """A number as it is, with a gradient that is none."""

    @staticmethod
    def forward(context: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * float("nan")


def spoil(phase: Phase, where: Callable[[int], bool], what: str) -> None:
    """Make the phase's loss, or only its gradient, not finite in the steps `where` says so."""
    loss = phase.loss

    def spoiled(batch: Batch) -> Loss:
        found = loss(batch)
        if not where(batch.seen):
            return found
        if what == "loss":
            return replace(found, value=found.value * float("nan"))
        return replace(found, value=Nan.apply(found.value))  # type: ignore[no-untyped-call]

    object.__setattr__(phase, "loss", spoiled)


def trained(
    experiment: Experiment, spoiled_rank: int, what: str
) -> tuple[str, list[Any], list[dict[str, float]]]:
    """Hash, rejected steps and figures of a run in which the last phase of one rank is spoiled
    after BAD images.
    """
    run = Run(experiment, Ranks())
    if run.ranks.rank == spoiled_rank:
        spoil(run.learning.phases[-1].phase, lambda seen: seen in BAD, what)
    reports = list(run.reports(every=24))
    rejected = [
        (report.rejected.images, report.rejected.why(), report.rejected.records)
        for report in reports
        if report.rejected
    ]
    return run.hash(), rejected, [report.metrics for report in reports if report.metrics]


CASES = [("ae", "loss"), ("ae", "gradient"), ("gan", "loss"), ("gan", "gradient")]


def all_trained(source: Path, world: int) -> list[Any]:
    """Every case with and without its spoiled steps, in this rank."""
    flags = {"train__non_finite": "skip", "train__average_half_life": "50"}
    return [
        [trained(asked(method, source, **flags), spoiled, what) for spoiled in (world - 1, -1)]
        for method, what in CASES
    ]


@pytest.fixture(scope="module", params=[1, 2])
def outcomes(request: pytest.FixtureRequest, source: Path) -> list[list[Any]]:
    """By rank, case, and whether it was spoiled."""
    world = request.param
    return (
        gloo.run(world, all_trained, source, world, seconds=240)
        if world > 1
        else [all_trained(source, 1)]
    )


@pytest.mark.parametrize("case", range(len(CASES)), ids=["-".join(case) for case in CASES])
def test_a_step_that_is_no_number_on_the_last_rank_is_left_out_by_all(
    case: int, outcomes: list[list[Any]]
) -> None:
    world = len(outcomes)
    ranks, clean = [rank[case][0] for rank in outcomes], outcomes[0][case][1]
    assert len({hash_ for hash_, _, _ in ranks}) == 1
    assert ranks[0][0] != clean[0], "a step was left out"
    assert not clean[1]
    _, rejected, figures = ranks[0]
    assert all(theirs == rejected for _, theirs, _ in ranks)
    assert [images for images, _, _ in rejected] == list(BAD)
    expected = (
        f"the loss of rank {world - 1} is nan"
        if CASES[case][1] == "loss"
        else "every loss is finite, but not the gradient"
    )
    assert all(why.startswith(expected) for _, why, _ in rejected)
    assert [len(numbers) for numbers in rejected[0][2]] == [12 // world] * world
    assert all(value == value for point in figures for value in point.values())


def test_steps_that_are_left_out_leave_weights_and_optimiser_as_they_were(source: Path) -> None:
    run = Run(asked("ae", source, train__non_finite="skip"))
    spoil(run.learning.phases[0].phase, lambda seen: 24 <= seen < 60, "loss")
    hashes = [
        run.hash() for report in run.reports(every=12) if report.metrics and report.images <= 72
    ]
    assert len(set(hashes[1:5])) == 1, "nothing moved from 24 to 60"
    assert len(set(hashes)) == 3


@pytest.mark.parametrize("bad_steps", [1, 2, 3])
@pytest.mark.parametrize("lag", [0, 1])
def test_running_statistics_are_not_spoiled(
    lag: int, bad_steps: int, source: Path, monkeypatch: Any
) -> None:
    """On a GPU (lag 1) the host hears of a bad step when the next one is on its way, and has used
    its statistics.
    """
    monkeypatch.setitem(finite_guard.LAG, "cpu", lag)
    flags = {
        "method__network__kind": "conv",
        "method__network__widths": "4",
        "method__network__norm": "batch",
    }
    run = Run(asked("ae", source, train__non_finite="skip", **flags))
    loss = run.learning.phases[0].phase.loss

    def spoiled(batch: Batch) -> Any:
        if 60 <= batch.seen < 60 + 12 * bad_steps:
            batch.images.fill_(float("nan"))
        return loss(batch)

    object.__setattr__(run.learning.phases[0].phase, "loss", spoiled)
    reports = list(run.reports(every=10**6, validate=10**6))
    rejected = [report.images for report in reports if report.rejected]
    assert rejected == [72 + 12 * step for step in range(bad_steps)]
    buffers = list(run.learning.method.buffers())
    assert buffers
    assert all(buffer.isfinite().all() for buffer in buffers)


def test_a_stop_under_bfloat16_names_the_wider_type_first(source: Path) -> None:
    run = Run(asked("vae", source, train__precision="bfloat16"))
    spoil(run.learning.phases[0].phase, lambda seen: seen in BAD, "loss")
    with pytest.raises(TrainingError, match="images: train with train.precision = float32, lower"):
        list(run.reports())


def test_a_run_stops_before_the_step_unless_set_to_skip(source: Path) -> None:
    run, before = Run(asked("vae", source)), Run(asked("vae", source, train__total_images="60"))
    spoil(run.learning.phases[0].phase, lambda seen: seen in BAD, "loss")
    with pytest.raises(
        TrainingError, match="the loss of rank 0 is nan after 60 images: lower train.learning_rate"
    ):
        list(run.reports())
    list(before.reports())
    assert run.hash() == before.hash()


def worked(experiment: Experiment, bad_attempts: int) -> tuple[dict[str, Any], str]:
    """A whole run of `work` in which steps 120 to 168 of the first attempts are spoiled on the last
    rank.
    """
    ranks, passes = Ranks(), Counter[int]()
    kind = methods.find("ae")
    phases = kind.phases

    def spoiled(self: Any) -> tuple[Phase, ...]:
        (phase,) = phases(self)

        def where(seen: int) -> bool:
            passes[seen] += 1
            return (
                ranks.rank == ranks.world - 1 and 120 <= seen < 168 and passes[seen] <= bad_attempts
            )

        spoil(phase, where, "loss")
        return (phase,)

    kind.phases = spoiled  # type: ignore[method-assign]
    try:
        return work(experiment, prepare(experiment.data), ranks), ""
    except TrainingError as error:
        return {}, str(error)
    finally:
        kind.phases = phases  # type: ignore[method-assign]


@pytest.mark.parametrize("world", [1, 2])
def test_four_in_a_row_go_back_to_the_last_checkpoint_with_another_order(
    world: int, source: Path, tmp_path: Path
) -> None:
    flags = {"track__mode": "off", "train__report_images": "24", "evaluate__every_images": "60"}
    experiment = asked("ae", source, run__folder=str(tmp_path), train__non_finite="skip", **flags)
    outcomes = (
        gloo.run(2, worked, experiment, 1, seconds=240) if world == 2 else [worked(experiment, 1)]
    )
    assert [result["images"] for result, _ in outcomes] == [240] * world
    folder = RunFolder(tmp_path)
    lines = folder.messages.read_text()
    assert lines.count("with another order of the images from there on (1 of 2 times)") == 1
    assert "resumed after 120 images" in lines
    stored = [json.loads(line) for line in folder.non_finite.read_text().splitlines()]
    assert [line["images"] for line in stored] == [120, 132, 144, 156]
    assert stored[0]["why"] == f"the loss of rank {world - 1} is nan"
    assert [len(rank["keys"]) for rank in stored[0]["ranks"]] == [12 // world] * world
    assert [point["images"] for point in folder.points()][-1] == 240


def test_a_run_goes_back_at_most_twice_and_says_so(source: Path, tmp_path: Path) -> None:
    flags = {"track__mode": "off", "evaluate__every_images": "60", "run__folder": str(tmp_path)}
    _, error = worked(asked("ae", source, train__non_finite="skip", **flags), 3)
    assert error.startswith(
        "the loss of rank 0 is nan after 156 images, step 4 in a row that is not finite, "
        "and the run went back 2 times: lower train.learning_rate"
    )
