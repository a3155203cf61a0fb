"""Runs that must agree: trained by any number of ranks, and cut and resumed."""

from collections.abc import Iterable

import torch
from torch import Tensor

from tests.training import gloo
from tests.training.learn import Run
from udl_dist.experiment import Experiment
from udl_dist.training.distributed import Ranks
from udl_dist.training.loop import LoopState

# Of each way to add up a step: by DDP in parts, with an average; and elastic.
WAYS = (
    {"train__accumulate": "2", "train__average_half_life": "60"},
    {"run__determinism": "elastic"},
)
# Where a gradient is about Adam's epsilon, Adam makes a step of its rounding: 1.02e-6 in one weight
# of `vq` on three ranks. Plain steps show a fault of ranks as well and rounding as what it is.
PLAIN_STEPS = {"train__optimizer": "sgd", "train__beta1": "0"}
# The bias of keys adds one number to all logits of a query, which softmax ignores: its gradient is
# rounding alone, and Adam makes steps of it.
UNUSED = "to_k.bias"
Learned = list[tuple[Tensor, str]]  # every number of the state, and the hash, of each training
Worlds = dict[int, list[Learned]]  # by the number of ranks, of each rank


def trained(experiments: list[Experiment]) -> Learned:
    """What this rank learns of each experiment: weights and buffers, and a hash of all."""
    found = []
    for experiment in experiments:
        run = Run(experiment, Ranks())
        list(run.reports(every=120, validate=120))
        state = run.learning.method.saved_tensors().items()
        numbers = [value.double().flatten() for name, value in state if not name.endswith(UNUSED)]
        found.append((torch.cat(numbers), run.hash()))
    return found


def of_worlds(experiments: list[Experiment]) -> Worlds:
    """What 1, 2 and 3 ranks learn of each of the experiments."""
    return {world: gloo.run(world, trained, experiments, seconds=600) for world in (1, 2, 3)}


def refuse_other_worlds(worlds: Worlds, place: int, relative: bool = False) -> None:
    """Compare what worlds learned: at `place` the plain run of a method, behind it the elastic.

    `relative`: to numbers above 1, for sums that reach 12, where floats are 1e-6 apart.
    """
    alone, (_, elastic) = worlds[1][0][place][0], worlds[1][0][place + 1]
    for world in (2, 3):
        for ranks in worlds[world]:
            plain = ranks[place][0]
            scale = alone.abs().clamp(min=1) if relative else 1
            assert ((plain - alone).abs() / scale).max() <= 1e-6, f"{world} ranks"
            assert ranks[place + 1][1] == elastic, f"{world} ranks, elastic"


def refuse_other_bits(experiment: Experiment, stops: Iterable[int]) -> None:
    """Compare a whole run with runs that are cut after so many images and resumed."""
    images = experiment.train.total_images
    whole = Run(experiment)
    list(whole.reports(every=images, validate=images))
    for stop in stops:
        first = Run(experiment)
        state, kept = LoopState(), {}
        for report in first.reports(every=images, validate=images, save_requested=lambda: True):
            if report.images == stop:
                state, kept = report.state, first.state()
                break
        assert kept, f"the run has no step that ends at {stop} images"
        second = Run(experiment)
        second.learning.restore(kept)
        list(second.reports(stop, every=images, validate=images, resumed=state))
        assert second.hash() == whole.hash(), f"cut after {stop} images"
