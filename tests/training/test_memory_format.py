"""Channels-last weights: state that is restored or exchanged keeps its meaning, whatever its order
in memory.
"""

from pathlib import Path

import pytest
import torch

from tests.training import gloo
from tests.training.learn import Run, asked
from udl_dist.experiment import Experiment
from udl_dist.methods.method import Batch, Loss
from udl_dist.training import checkpoint
from udl_dist.training.distributed import Ranks

CONV = {"method__network__kind": "conv", "method__network__widths": "4,8"}
FLAGS = {
    "ae": CONV,
    "vae": CONV | {"train__optimizer": "sgd"},
    "gan": {
        "method__discriminator": "conv",
        "method__dropout": "0.3",
        "method__network__widths": "4,8",
        "train__average_half_life": "100",
    },
}


def convolutions(method: str, source: Path, **flags: str) -> Experiment:
    return asked(method, source, **FLAGS[method], **flags)


@pytest.mark.parametrize(
    ("network", "asked_for", "last"),
    [(CONV, "true", True), (CONV, "false", False), ({}, "true", False)],
    ids=["conv", "conv, not asked for", "dense"],
)
def test_images_and_convolutions_lie_in_channels_last_format_where_it_is_asked_for(
    network: dict[str, str], asked_for: str, last: bool, source: Path
) -> None:
    flags = {"data__channels": "3", "train__total_images": "24", **network}
    run = Run(asked("ae", source, train__channels_last=asked_for, **flags))
    seen: list[torch.Tensor] = []
    (turn,) = run.learning.phases
    loss = turn.phase.loss

    def noted(batch: Batch) -> Loss:
        seen.append(batch.images)
        return loss(batch)

    object.__setattr__(turn.phase, "loss", noted)
    list(run.reports())
    kernels = [weight for weight in run.learning.method.parameters() if weight.dim() == 4]
    assert len(seen) >= 2 and bool(kernels) == bool(network)
    for tensor in (*seen, *kernels):
        assert tensor.is_contiguous(memory_format=torch.channels_last) == last


@pytest.mark.parametrize("method", list(FLAGS))
def test_a_run_resumed_from_its_files_has_the_weights_of_one_that_never_stopped(
    method: str, source: Path, tmp_path: Path
) -> None:
    experiment = convolutions(method, source)
    whole = Run(experiment)
    for report in whole.reports():
        if report.images == 120:
            checkpoint.save(tmp_path, 120, whole.learning.tensors(), {})
    resumed = Run(experiment)
    files, _ = checkpoint.load(checkpoint.path_of(tmp_path, 120))
    resumed.learning.restore(files)
    list(resumed.reports(120))
    assert resumed.hash() == whole.hash()


@pytest.mark.parametrize("method", list(FLAGS))
def test_restored_state_lies_in_memory_as_its_parameters_do(
    method: str, source: Path, tmp_path: Path
) -> None:
    experiment = convolutions(method, source, train__total_images="24")
    run = Run(experiment)
    list(run.reports())
    checkpoint.save(tmp_path, 24, run.learning.tensors(), {})
    again = Run(experiment)
    again.learning.restore(checkpoint.load(checkpoint.path_of(tmp_path, 24))[0])
    compared = 0
    for turn in again.learning.phases:
        for parameter, state in turn.optimizer.state.items():
            for value in state.values():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    assert value.stride() == parameter.stride()
                    compared += value.dim() == 4
    assert compared


def elastic_hash(experiment: Experiment) -> str:
    run = Run(experiment, Ranks())
    list(run.reports(every=240, validate=240))
    return run.hash()


def test_an_elastic_channels_last_run_has_the_same_bits_on_one_rank_and_on_two(
    source: Path,
) -> None:
    experiment = convolutions("ae", source, run__determinism="elastic", train__batch_size="24")
    hashes = {found for world in (1, 2) for found in gloo.run(world, elastic_hash, experiment)}
    assert len(hashes) == 1
