"""Sums of losses reach `after_step` over the whole global batch, and buffers change there alone:
equal in every world, over parts of a batch, over restarts and over rejected steps.
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training import gloo
from tests.training.learn import Run, asked
from tests.training.test_loop import ADAM, PLAIN
from udl_dist.errors import TrainingError
from udl_dist.experiment import Experiment
from udl_dist.methods.method import Batch, Loss, Method, Phase
from udl_dist.training import finite_guard
from udl_dist.training.distributed import Ranks

WORLDS = (1, 2, 3)
UNEVEN = {"train__batch_size": "13", "train__total_images": "260"}  # 20 steps


class Centred(Method):
    """An autoencoder whose latents are drawn to their running mean, a buffer.

    A second phase in every other step sums squares. `heard` has the sums of each step.
    """

    def __init__(self, settings: Any, shape: Any, classes: tuple[str, ...] = ()) -> None:
        super().__init__(settings, shape, classes)
        self.latent_shape = (4,)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
        self.decoder = nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, shape))
        self.mean: Tensor
        self.images_summed: Tensor
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("images_summed", torch.zeros((), dtype=torch.int64))
        self.heard: list[dict[str, Tensor]] = []

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase(("encoder", "decoder"), self.loss),
            Phase(("decoder",), self.decoder_loss, every=2),
        )

    def loss(self, batch: Batch) -> Loss:
        latents = self.encoder(batch.images)
        error = (self.decoder(latents) - batch.images).square().flatten(1).sum(1)
        value = (error + (latents - self.mean).square().sum(1)).mean()
        sums = {"rows": torch.tensor(len(latents)), "latents": latents.detach().sum(0)}
        return Loss(value, {"error": error.mean()}, sums)

    def decoder_loss(self, batch: Batch) -> Loss:
        output = self.decoder(self.encoder(batch.images))
        squares = output.detach().square().sum(0)  # [C, H, W]
        return Loss(
            (output - batch.images).square().flatten(1).sum(1).mean(), sums={"squares": squares}
        )

    def after_step(self, sums: Mapping[str, Tensor]) -> None:
        assert not torch.is_grad_enabled()
        self.heard.append(dict(sums))
        self.mean.lerp_(sums["latents"] / sums["rows"], 0.1)
        self.images_summed += sums["rows"]

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        return {"distance": (self.encoder(batch.images) - self.mean).square().sum(1)}


class Heard:
    """A finished run of `Centred`: hash, weights, sums and metrics."""

    def __init__(self, experiment: Experiment) -> None:
        run = Run(experiment, Ranks(), Centred)
        self.metrics = [
            {name: value for name, value in report.metrics.items() if not name.startswith("perf/")}
            for report in run.reports(every=int(experiment.train.batch_size))
        ]
        method: Any = run.learning.method
        self.hash, self.weights = run.hash(), run.weights()
        self.sums, self.mean = method.heard, method.mean
        self.images_summed = int(method.images_summed)


def all_heard(experiments: list[Experiment]) -> list[Heard]:
    return [Heard(experiment) for experiment in experiments]


@pytest.fixture(scope="module")
def worlds(source: Path) -> dict[int, list[list[Heard]]]:
    """By world and rank: 20 steps of 13 images with SGD and with Adam, and elastic."""
    experiments = [
        asked("ae", source, **UNEVEN, **PLAIN),
        asked("ae", source, **UNEVEN, **ADAM),
        asked("ae", source, **UNEVEN, run__determinism="elastic"),
    ]
    return {world: gloo.run(world, all_heard, experiments) for world in WORLDS}


def assert_alike(one: Heard, other: Heard, atol: float = 1e-6) -> None:
    assert len(one.sums) == len(other.sums) == 20
    for number, (ours, theirs) in enumerate(zip(one.sums, other.sums, strict=True)):
        assert list(ours) == list(theirs)
        for name in ours:
            torch.testing.assert_close(
                ours[name], theirs[name], rtol=1e-5, atol=13 * atol, msg=f"{name} of step {number}"
            )
    torch.testing.assert_close(one.mean, other.mean, rtol=0, atol=atol)
    assert (one.weights - other.weights).abs().max().item() <= atol


def test_sums_are_those_of_the_phases_of_the_step_by_hand(source: Path) -> None:
    run = Run(asked("ae", source, train__total_images="36"), kind=Centred)
    seen: list[Tensor] = []
    loss = run.learning.phases[0].phase.loss

    def noted(batch: Batch) -> Loss:
        with torch.no_grad():
            seen.append(method.encoder(batch.images).sum(0))
        return loss(batch)

    method: Any = run.learning.method
    object.__setattr__(run.learning.phases[0].phase, "loss", noted)
    list(run.reports())
    assert [list(sums) for sums in method.heard] == [
        ["rows", "latents", "squares"],
        ["rows", "latents"],
        ["rows", "latents", "squares"],
    ]
    mean = torch.zeros(4)
    for sums, by_hand in zip(method.heard, seen, strict=True):
        assert int(sums["rows"]) == 12
        torch.testing.assert_close(sums["latents"], by_hand)
        mean.lerp_(by_hand / 12, 0.1)
    torch.testing.assert_close(method.mean, mean)
    assert [value.dtype for value in method.heard[0].values()] == [
        torch.int64,
        torch.float32,
        torch.float32,
    ]
    assert method.heard[0]["squares"].shape == (1, 8, 8)


@pytest.mark.parametrize("number", [0, 1], ids=["plain", "adam"])
def test_every_world_hears_the_sums_of_the_global_batch(
    number: int, worlds: dict[int, list[list[Heard]]]
) -> None:
    alone = worlds[1][0][number]
    assert alone.images_summed == 260
    for world in WORLDS[1:]:
        ranks = [outcomes[number] for outcomes in worlds[world]]
        assert len({one.hash for one in ranks}) == 1, "buffers or weights differ between ranks"
        assert all(one.metrics == ranks[0].metrics for one in ranks)
        for one in ranks:
            assert one.images_summed == 260, "a count is exact"
            # Adam turns rounding into steps, see test_loop.
            assert_alike(one, alone, 1e-6 if number == 0 else 1e-4)


def test_an_elastic_run_hears_the_same_bits_in_every_world(
    worlds: dict[int, list[list[Heard]]],
) -> None:
    alone = worlds[1][0][2]
    for world in WORLDS:
        for one in (outcomes[2] for outcomes in worlds[world]):
            assert one.hash == alone.hash
            for ours, theirs in zip(one.sums, alone.sums, strict=True):
                assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("parts", ["2", "5", "13"])
def test_accumulated_parts_are_summed(parts: str, source: Path) -> None:
    whole = Heard(asked("ae", source, **UNEVEN, **PLAIN))
    assert_alike(Heard(asked("ae", source, train__accumulate=parts, **UNEVEN, **PLAIN)), whole)


@pytest.mark.parametrize("determinism", ["world", "elastic"])
def test_resuming_at_any_step_gives_the_same_buffers(determinism: str, source: Path) -> None:
    flags = {"train__average_half_life": "100", "run__determinism": determinism}
    experiment = asked("ae", source, **flags)
    whole, states = Run(experiment, kind=Centred), {}
    for report in whole.reports():
        states[report.images] = whole.state()
    assert {"mean", "images_summed"} <= states[240]["networks"].keys()
    assert not {"mean", "images_summed"} & states[240]["average"].keys(), "kept once"
    for images in random.Random(1).sample(sorted(states)[:-1], 5):
        again = Run(experiment, kind=Centred)
        again.learning.restore(states[images])
        list(again.reports(images))
        assert again.hash() == whole.hash(), f"resumed after {images} images"
    average: Any = again.learning.average
    assert average.mean is again.learning.method.mean, "what validates has the buffers of now"


def resumed(experiment: Experiment) -> bool:
    """Whether this rank has the bits of a run that was not stopped, after a resume at 120."""
    whole, half = Run(experiment, Ranks(), Centred), {}
    for report in whole.reports():
        if report.images == 120:
            half = whole.state()
    again = Run(experiment, Ranks(), Centred)
    again.learning.restore(half)
    list(again.reports(120))
    return again.hash() == whole.hash()


def test_resuming_gives_the_same_bits_in_a_world_of_three(source: Path) -> None:
    assert gloo.run(3, resumed, asked("ae", source)) == [True] * 3


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("bad", ["loss", "sums"])
def test_a_rejected_step_leaves_the_buffers_as_they_were(
    bad: str, lag: int, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With lag 1, as on a GPU, the host hears of it when the next step is over."""
    monkeypatch.setitem(finite_guard.LAG, "cpu", lag)
    run = Run(
        asked("ae", source, train__non_finite="skip", train__total_images="144"), kind=Centred
    )
    (first, _), method = run.learning.phases, run.learning.method
    loss, means = first.phase.loss, {}

    def spoiled(batch: Batch) -> Loss:
        means[batch.seen] = method.get_buffer("mean").clone()
        found = loss(batch)
        if batch.seen != 60:
            return found
        nan = torch.tensor(float("nan"))
        if bad == "loss":
            return Loss(found.value * nan, found.plots, found.sums)
        return Loss(
            found.value, found.plots, {**found.sums, "latents": found.sums["latents"] * nan}
        )

    object.__setattr__(first.phase, "loss", spoiled)
    reports = list(run.reports(every=10**6, validate=10**6))
    rejected = [report.images for report in reports if report.rejected]
    assert rejected[0] == 72
    why = next(report.rejected.why() for report in reports if report.rejected)
    if bad == "loss":
        assert why == "the loss of rank 0 is nan"
    else:
        assert why == "every loss is finite, but not the sum latents"
    assert method.get_buffer("mean").isfinite().all()
    if lag == 0:
        assert rejected == [72]
        assert torch.equal(means[72], means[60])
        assert int(method.get_buffer("images_summed")) == 132, "all but one step of 12 images"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda method: method.decoder[0].weight.add_(1), "after_step changed a weight"),
        (
            lambda method: method.register_buffer("mean", method.mean + 1),
            "after_step replaced a buffer: change it in place",
        ),
        (lambda method: setattr(method, "mean", method.mean + 1), "after_step replaced a buffer"),
        (lambda method: method.register_buffer("new", torch.ones(1)), "after_step replaced"),
    ],
    ids=["weight", "registered", "assigned", "new"],
)
def test_what_after_step_must_not_change_is_refused(wrong: Any, said: str, source: Path) -> None:
    class Wrong(Centred):
        def after_step(self, sums: Mapping[str, Tensor]) -> None:
            super().after_step(sums)
            wrong(self)

    with pytest.raises(TrainingError, match=said):
        list(Run(asked("ae", source), kind=Wrong).reports())


def test_validation_uses_the_buffers_of_the_step_and_leaves_them(source: Path) -> None:
    run = Run(asked("ae", source, train__average_half_life="50"), kind=Centred)
    summed = [
        (report.images, int(run.learning.method.get_buffer("images_summed")))
        for report in run.reports()
        if report.validated and report.metrics["val/distance"] > 0
    ]
    assert summed == [(120, 120), (240, 240)]
