"""A codebook with restarts in the loop is the same in every world and after a resume."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training import gloo
from tests.training.learn import Run, asked
from tests.training.test_loop import PLAIN
from udl_dist.experiment import Experiment
from udl_dist.methods.losses.quantizers import QuantizerSettings, new_quantizer
from udl_dist.methods.method import Batch, Loss, Method, Phase
from udl_dist.training.distributed import Ranks

WORLDS = (1, 3)
CODEBOOK = QuantizerSettings(codes=256, dimensions=4, decay=0.5, dead_below=0.3)
UNEVEN = {"train__batch_size": "13", "train__total_images": "130"}  # 10 steps


class Coded(Method):
    """An autoencoder of one layer each whose latents are codes; many entries restart in a step."""

    def __init__(self, settings: Any, shape: Any, classes: tuple[str, ...] = ()) -> None:
        super().__init__(settings, shape, classes)
        self.latent_shape = (4, 4, 4)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Unflatten(1, (4, 4, 4)))
        self.quantizer = new_quantizer(CODEBOOK)
        self.decoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Unflatten(1, shape))
        self.restarts = 0

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(("encoder", "quantizer", "decoder"), self.loss),)

    def loss(self, batch: Batch) -> Loss:
        found = self.quantizer(self.encoder(batch.images), batch.keys)
        error = (self.decoder(found.latents) - batch.images).square().mean()
        return Loss(error + found.loss.mean(), {"error": error}, found.sums)

    def after_step(self, sums: Mapping[str, Tensor]) -> None:
        before = self.quantizer.get_buffer("counts").clone()
        self.quantizer.after_step(sums)
        # An entry that is not used loses use, but by a restart.
        more = self.quantizer.get_buffer("counts") > before
        self.restarts += int((more & (sums["codes"][:, -1] == 0)).sum())


class Learned:
    """A finished run: its hash, its tensors and how many entries it restarted after the start."""

    def __init__(self, experiment: Experiment) -> None:
        run = Run(experiment, Ranks(), Coded)
        reports = run.reports(every=13, validate=10**6)
        next(reports)
        method: Any = run.learning.method
        first = method.restarts
        list(reports)
        self.restarts = method.restarts - first
        self.hash, self.weights = run.hash(), run.weights()
        self.buffers = dict(method.quantizer.named_buffers())


def learned(experiments: list[Experiment]) -> list[Learned]:
    return [Learned(experiment) for experiment in experiments]


@pytest.fixture(scope="module")
def worlds(source: Path) -> dict[int, list[list[Learned]]]:
    """By world and rank: 10 steps of 13 images, averaged over ranks and elastic."""
    experiments = [
        asked("ae", source, **UNEVEN, **PLAIN),
        asked("ae", source, **UNEVEN, run__determinism="elastic"),
    ]
    return {world: gloo.run(world, learned, experiments) for world in WORLDS}


def test_codebooks_agree_in_every_world(worlds: dict[int, list[list[Learned]]]) -> None:
    alone = worlds[1][0][0]
    assert alone.restarts > 100, "restarts are what could differ"
    for world in WORLDS[1:]:
        ranks = [outcomes[0] for outcomes in worlds[world]]
        assert len({one.hash for one in ranks}) == 1
        for name, value in alone.buffers.items():
            torch.testing.assert_close(ranks[0].buffers[name], value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ranks[0].weights, alone.weights, rtol=0, atol=1e-6)


def test_elastic_codebooks_are_equal_to_the_bit(worlds: dict[int, list[list[Learned]]]) -> None:
    assert len({one[1].hash for ranks in worlds.values() for one in ranks}) == 1


def test_a_resumed_codebook_is_equal_to_the_bit(source: Path) -> None:
    experiment = asked("ae", source, **UNEVEN)
    whole, half = Run(experiment, kind=Coded), {}
    for report in whole.reports(every=13, validate=10**6):
        if report.images == 65:
            half = whole.state()
    again = Run(experiment, kind=Coded)
    again.learning.restore(half)
    list(again.reports(65, validate=10**6))
    assert again.hash() == whole.hash()
