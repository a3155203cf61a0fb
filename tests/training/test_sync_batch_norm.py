"""Batch normalisation over the images of all ranks: torch's own, which needs GPUs for two ranks."""

from pathlib import Path

import pytest
from torch import nn

from tests.training import gloo
from tests.training.learn import Run, asked
from udl_dist.errors import TrainingError
from udl_dist.experiment import Experiment
from udl_dist.training.distributed import Ranks


def normalised(source: Path, **flags: str) -> Experiment:
    return asked("ae", source, method__network__norm="batch", **flags)


def test_one_rank_trains_alike_and_its_weights_keep_their_names(source: Path) -> None:
    plain = Run(normalised(source))
    together = Run(normalised(source, train__sync_batch_norm="true"))
    kinds = [type(module) for module in together.learning.method.modules()]
    assert nn.SyncBatchNorm in kinds and nn.BatchNorm1d not in kinds
    for run in (plain, together):
        list(run.reports())
    assert together.hash() == plain.hash()


def refusal(experiment: Experiment) -> str:
    try:
        Run(experiment, Ranks())
    except TrainingError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("world", [1, 2])
def test_two_ranks_on_cpus_are_refused(world: int, source: Path) -> None:
    experiment = normalised(source, train__sync_batch_norm="true")
    words = "train.sync_batch_norm needs GPUs: leave it out, or set run.workers to 1"
    assert gloo.run(world, refusal, experiment) == ["" if world == 1 else words] * world
