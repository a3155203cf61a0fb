"""Steps of a huge gradient norm move nothing, and all ranks leave out the same ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training import gloo
from tests.training.learn import Run, asked
from udl_dist.methods.method import Batch, Loss, Phase
from udl_dist.training.distributed import Ranks

HUGE = (60, 96)  # images seen before the steps whose loss is huge


def spoil(phase: Phase) -> None:
    loss = phase.loss

    def spoiled(batch: Batch) -> Loss:
        found = loss(batch)
        return replace(found, value=found.value * (1e8 if batch.seen in HUGE else 1.0))

    object.__setattr__(phase, "loss", spoiled)


def trained(source: Path, spoiled_rank: int, **flags: str) -> tuple[str, torch.Tensor, list[float]]:
    """Hash, weights, and the share of skipped steps at each point; one rank's loss is spoiled."""
    run = Run(asked("ae", source, **flags), Ranks())
    if run.ranks.rank == spoiled_rank:
        spoil(run.learning.phases[0].phase)
    points = [report.metrics for report in run.reports(every=24) if report.metrics]
    return run.hash(), run.weights(), [point.get("train/skipped_steps", -1.0) for point in points]


def test_a_norm_that_no_step_reaches_changes_no_bit(source: Path) -> None:
    plain, _, none = trained(source, -1)
    bounded, _, skipped = trained(source, -1, train__skip_norm="1e30")
    assert bounded == plain
    assert set(none) == {-1.0}  # no such curve where it is not asked for
    assert set(skipped) == {0.0}


def test_huge_steps_are_left_out_and_counted(source: Path) -> None:
    _, start, all_of_them = trained(source, -1, train__skip_norm="1e-30")
    assert set(all_of_them) == {1.0}
    torch.manual_seed(0)
    assert torch.equal(start, Run(asked("ae", source)).weights())
    _, plain, _ = trained(source, -1)
    _, left_out, skipped = trained(source, 0, train__skip_norm="1e5")
    # The steps after 60 and 96 images, each one of two between points.
    assert skipped == [0.0, 0.0, 0.5, 0.0, 0.5, *[0.0] * 5]
    # Two of twenty steps: near the run that has them, which no huge gradient moved.
    assert 0 < (left_out - plain).abs().max() < 5e-3


@pytest.mark.long
@pytest.mark.parametrize("way", ["plain", "elastic"])
def test_ranks_leave_out_the_same_steps(way: str, source: Path) -> None:
    flags = {"run__determinism": "elastic"} if way == "elastic" else {}
    flags["train__skip_norm"] = "1e5"
    one, two = gloo.run(2, _ranks, source, flags, seconds=240)
    assert one[0] == two[0]
    assert one[2] == two[2] == [0.0, 0.0, 0.5, 0.0, 0.5, *[0.0] * 5]


def _ranks(source: Path, flags: dict[str, str]) -> tuple[str, torch.Tensor, list[float]]:
    return trained(source, 1, **flags)
