"""A phase that begins late and has an optimiser of its own: it begins when it should, and a run
that was stopped before or after that goes on with the same bits.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training import gloo
from tests.training.learn import Run, asked
from udl_dist.experiment import Experiment
from udl_dist.methods.method import Batch, Loss, Method, Phase, PhaseOptimizer
from udl_dist.training import checkpoint, optimizers
from udl_dist.training.distributed import Ranks

BEGIN = 60
OWN = PhaseOptimizer(rate=0.5, beta1=0.5, beta2=0.9, weight_decay=0.1)
States = dict[int, dict[str, dict[str, Tensor]]]


class Late(Method):
    """A linear autoencoder; after 60 images `refiner` learns to add what its images lack."""

    def __init__(self, settings: Any, shape: Any, classes: tuple[str, ...] = ()) -> None:
        super().__init__(settings, shape, classes)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Linear(4, 64))
        self.refiner = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 64))

    def phases(self) -> tuple[Phase, ...]:
        late = Phase(("refiner",), self.refine, start_images=BEGIN, optimizer=OWN)
        return (Phase(("body",), self.rebuild), late)

    def rebuild(self, batch: Batch) -> Loss:
        return self._error(batch, self.body(batch.images), "body")

    def refine(self, batch: Batch) -> Loss:
        with torch.no_grad():
            first = self.body(batch.images)
        return self._error(batch, first + self.refiner(first), "refined")

    def _error(self, batch: Batch, output: Tensor, name: str) -> Loss:
        error = (output - batch.images.flatten(1)).square().sum(1).mean()
        return Loss(error, {name: error})


def late(experiment: Experiment, ranks: Ranks | None = None) -> Run:
    return Run(experiment, ranks, Late)


def whole(experiment: Experiment, ranks: Ranks | None = None) -> tuple[Run, States]:
    """A finished run, and its state after each step."""
    run, states = late(experiment, ranks), dict[int, dict[str, dict[str, Tensor]]]()
    states[0] = run.state()
    for report in run.reports():
        states[report.images] = run.state()
    return run, states


def refiner(state: dict[str, dict[str, Tensor]]) -> Tensor:
    tensors = state["networks"]
    return torch.cat([tensors[name].flatten() for name in tensors if name.startswith("refiner.")])


def test_it_begins_after_its_images_with_its_own_rate_and_not_before(source: Path) -> None:
    _, states = whole(asked("ae", source))
    for images in range(0, BEGIN + 1, 12):
        assert torch.equal(refiner(states[images]), refiner(states[0])), images
        assert not states[images]["optimizer-1"]
    moved = (refiner(states[BEGIN + 12]) - refiner(states[BEGIN])).abs()
    # The first step of Adam is one of the learning rate for every weight, here half of 1e-3; the
    # decay adds at most a tenth of a weight to its gradient.
    assert moved.max() == pytest.approx(0.5e-3, rel=1e-3)
    steps = [int(value) for name, value in states[240]["optimizer-1"].items() if "step" in name]
    assert steps == [15] * 4
    steps = [int(value) for name, value in states[240]["optimizer-0"].items() if "step" in name]
    assert steps == [20] * 4


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_its_steps_are_those_of_an_optimiser_with_its_settings(
    optimizer: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: torch's own optimiser, not fused, on the gradients that the run had."""
    run, gradients, weights = late(asked("ae", source, train__optimizer=optimizer)), [], []
    state = run.learning.phases[1]
    step = optimizers.step
    start = [value.detach().clone() for value in state.parameters()]

    def noted(stepped: torch.optim.Optimizer) -> None:
        if stepped is not state.optimizer:
            return step(stepped)
        gradients.append(
            [value.grad.clone() for value in state.parameters() if value.grad is not None]
        )
        step(stepped)
        weights.append([value.detach().clone() for value in state.parameters()])

    monkeypatch.setattr(optimizers, "step", noted)
    list(run.reports())
    assert len(weights) == 15
    copies = [nn.Parameter(value) for value in start]
    kind = torch.optim.AdamW if optimizer == "adamw" else torch.optim.Adam
    plain = kind(copies, lr=0.5e-3, betas=(0.5, 0.9), weight_decay=0.1)
    for slopes, expected in zip(gradients, weights, strict=True):
        for copy, slope in zip(copies, slopes, strict=True):
            copy.grad = slope
        plain.step()
        for copy, value in zip(copies, expected, strict=True):
            torch.testing.assert_close(copy.detach(), value, rtol=1e-4, atol=1e-6)


def test_a_phase_that_asks_for_nothing_has_the_settings_of_train(source: Path) -> None:
    flags = {"train__beta1": "0.8", "train__beta2": "0.95", "train__weight_decay": "0.01"}
    first, own = (
        state.optimizer.param_groups[0]
        for state in late(asked("ae", source, **flags)).learning.phases
    )
    assert (first["betas"], first["weight_decay"]) == ((0.8, 0.95), 0.01)
    assert (own["betas"], own["weight_decay"]) == ((0.5, 0.9), 0.1)
    sgd = late(asked("ae", source, train__optimizer="sgd", **flags)).learning.phases
    assert [state.optimizer.param_groups[0]["momentum"] for state in sgd] == [0.8, 0.5]


@pytest.mark.parametrize("determinism", ["world", "elastic"])
def test_resuming_before_at_and_after_its_begin_gives_the_same_bits(
    determinism: str, source: Path, tmp_path: Path
) -> None:
    flags = {"train__average_half_life": "100", "train__schedule": "cosine"}
    experiment = asked("ae", source, run__determinism=determinism, **flags)
    first, states = whole(experiment)
    for images in (36, BEGIN - 12, BEGIN, BEGIN + 12, 204):
        checkpoint.save(tmp_path, images, states[images], {})
        files, _ = checkpoint.load(checkpoint.path_of(tmp_path, images))
        again = late(experiment)
        again.learning.restore(files)
        list(again.reports(images))
        assert again.hash() == first.hash(), f"resumed after {images} images"
        (group,) = again.learning.phases[1].optimizer.param_groups
        assert (group["betas"], group["weight_decay"]) == ((0.5, 0.9), 0.1)


def in_a_world(plain: Experiment, elastic: Experiment) -> tuple[Tensor, list[bool], str]:
    """Weights of a plain run, whether resumes have its bits, and the hash of an elastic run."""
    run, states = whole(plain, Ranks())
    alike = []
    for images in (36, BEGIN, 120):
        again = late(plain, Ranks())
        again.learning.restore(states[images])
        list(again.reports(images))
        alike.append(again.hash() == run.hash())
    return run.weights(), alike, whole(elastic, Ranks())[0].hash()


def test_worlds_agree_and_resume_to_the_bit(source: Path) -> None:
    plain = asked(
        "ae", source, train__optimizer="sgd", train__beta1="0", train__learning_rate="1e-4"
    )
    elastic = asked("ae", source, run__determinism="elastic")
    found = {world: gloo.run(world, in_a_world, plain, elastic) for world in (1, 2, 3)}
    alone, _, hashed = found[1][0]
    for ranks in found.values():
        for weights, alike, elastic_hash in ranks:
            assert (weights - alone).abs().max().item() <= 1e-6
            assert alike == [True] * 3
            assert elastic_hash == hashed


def test_its_plots_begin_with_it(source: Path) -> None:
    names = {
        report.images: {name for name in report.metrics if name.startswith("train/")}
        for report in late(asked("ae", source)).reports()
    }
    assert "train/refined" not in names[BEGIN]
    assert "train/refined" in names[BEGIN + 12]
    assert all("train/body" in of for of in names.values())
