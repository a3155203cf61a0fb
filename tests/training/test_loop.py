"""The loop: exact over ranks, over restarts and over parts of a batch, for every method alike."""

import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import gloo
from tests.training.learn import SMALL, Run, asked
from udl_dist.errors import TrainingError
from udl_dist.experiment import Experiment
from udl_dist.methods.method import Batch
from udl_dist.training.checkpoint import bytes_of
from udl_dist.training.distributed import Ranks
from udl_dist.training.settings import TrainSettings
from udl_dist.training.validation import validate

METHODS = ["ae", "vae", "gan"]


Outcome = tuple[torch.Tensor, str, list[dict[str, float]]]
PLAIN = {
    "train__optimizer": "sgd",
    "train__beta1": "0",
    "train__learning_rate": "1e-4",
    "train__clip_norm": "1",
}
# Adam divides by the size of a gradient: where that is rounding alone, it is rounding that moves a
# weight, by the rate at most; which weights these are depends on the processor.
ADAM = {"train__learning_rate": "1e-4"}
WORLDS = (1, 2, 5)


def trained(experiments: list[Experiment]) -> list[Outcome]:
    """Weights, hash and figures (without speeds) after whole trainings in this rank."""
    outcomes = []
    for experiment in experiments:
        run = Run(experiment, Ranks())
        figures = [
            {name: value for name, value in report.metrics.items() if not name.startswith("perf/")}
            for report in run.reports()
        ]
        outcomes.append((run.weights(), run.hash(), figures))
    return outcomes


@pytest.fixture(scope="module")
def worlds(source: Path) -> dict[tuple[int, str, str], list[Outcome]]:
    """Twenty steps of 12 images in each world (of 5 ranks: parts of 2, 2, 3, 2, 3), by world,
    method and optimiser.
    """
    kinds = [(method, name) for method in METHODS for name in ("plain", "adam")]
    experiments = [
        asked(method, source, **(PLAIN if name == "plain" else ADAM)) for method, name in kinds
    ]
    found = {}
    for world in WORLDS:
        ranks = gloo.run(world, trained, experiments, seconds=240)
        for number, (method, name) in enumerate(kinds):
            found[world, method, name] = [outcomes[number] for outcomes in ranks]
    return found


@pytest.mark.parametrize("optimizer", ["plain", "adam"])
@pytest.mark.parametrize("method", METHODS)
def test_ranks_equal_one_rank_of_the_whole_batch_even_if_shares_are_uneven(
    method: str, optimizer: str, worlds: dict[tuple[int, str, str], list[Outcome]]
) -> None:
    ((alone, _, figures),) = worlds[1, method, optimizer]
    for world in WORLDS[1:]:
        ranks = worlds[world, method, optimizer]
        assert len({hash_ for _, hash_, _ in ranks}) == 1, "weights differ between ranks"
        assert all(theirs == ranks[0][2] for _, _, theirs in ranks), "metrics differ between ranks"
        apart = (ranks[0][0] - alone).abs()
        assert apart.quantile(0.99).item() <= 1e-6
        assert apart.max().item() <= (1e-6 if optimizer == "plain" else 1e-4)
        for ours, theirs in zip(figures, ranks[0][2], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_resuming_at_any_step_gives_the_same_bits(method: str, source: Path) -> None:
    experiment = asked(
        method,
        source,
        train__average_half_life="100",
        train__schedule="cosine",
        train__warmup_images="48",
        train__accumulate="2",
        data__flip="true",
    )
    whole = Run(experiment)
    states: dict[int, Any] = {}
    points: dict[int, float] = {}
    for report in whole.reports():
        states[report.images] = {
            file: {name: value.clone() for name, value in tensors.items()}
            for file, tensors in whole.learning.tensors().items()
        }
        points[report.images] = report.metrics["train/learning_rate"]
    assert sorted(states) == list(range(12, 241, 12))
    for images in random.Random(0).sample(sorted(states)[:-1], 5):
        again = Run(experiment)
        again.learning.restore(states[images])
        later = list(again.reports(images))
        assert again.hash() == whole.hash(), f"resumed after {images} images"
        assert {report.images: report.metrics["train/learning_rate"] for report in later} == {
            count: rate for count, rate in points.items() if count > images
        }


def test_a_change_in_chance_is_noticed_by_the_hash(source: Path) -> None:
    """What the tests above stand on: another seed gives other bits."""
    runs = [Run(asked("vae", source, train__seed=seed)) for seed in ("0", "0", "1")]
    for run in runs:
        list(run.reports())
    assert runs[0].hash() == runs[1].hash() != runs[2].hash()


@pytest.mark.parametrize("method", METHODS)
def test_accumulated_parts_equal_the_whole_batch(method: str, source: Path) -> None:
    whole = Run(asked(method, source, **PLAIN))
    parts = Run(asked(method, source, train__accumulate="5", **PLAIN))
    for run in (whole, parts):
        list(run.reports())
    assert (whole.weights() - parts.weights()).abs().max().item() <= 1e-6


def test_every_record_is_learned_from_once_an_epoch(source: Path) -> None:
    run = Run(asked("ae", source, train__total_images="0", train__epochs="3"))
    seen: Counter[int] = Counter()
    loss = run.learning.phases[0].phase.loss

    def counted(batch: Batch) -> Any:
        seen.update(batch.record_keys.tolist())
        return loss(batch)

    for turn in run.learning.phases:
        object.__setattr__(turn.phase, "loss", counted)
    images = [report.images for report in run.reports()][-1]
    records = run.stream.records
    assert images == math.ceil(3 * records / 12) * 12
    assert len(seen) == records
    assert set(seen.values()) <= {3, 4}
    assert sum(seen.values()) == images


def test_validation_counts_each_held_out_image_once_and_moves_nothing(source: Path) -> None:
    run = Run(asked("vae", source))
    reports = list(run.reports())
    assert [report.images for report in reports if report.validated] == [120, 240]
    assert run.held_out is not None
    assert "val/negative_elbo" in reports[-1].metrics
    unseen = Run(asked("vae", source))
    unseen.held_out = None
    list(unseen.reports())
    assert unseen.hash() == run.hash()


def test_rank_zero_stops_every_rank_at_the_same_images(source: Path) -> None:
    outcomes = gloo.run(3, stopped_by_rank_zero, asked("ae", source, train__total_images="1200"))
    assert len(set(outcomes)) == 1
    images, stopped = outcomes[0]
    assert stopped
    # The fifth message asks; the sixth brings it. Between two of them there are at most 8 steps.
    assert 60 <= images <= 12 * 8 * 6


def stopped_by_rank_zero(experiment: Experiment) -> tuple[int, bool]:
    run = Run(experiment, Ranks())
    asked_at = iter(range(1000))
    *_, last = run.reports(
        every=1000, stop_requested=lambda: run.ranks.is_main and next(asked_at) >= 4
    )
    return last.images, last.stopped


def test_a_loss_that_is_no_number_ends_the_run_by_name(source: Path) -> None:
    run = Run(asked("ae", source, train__optimizer="sgd", train__learning_rate="1e9"))
    with pytest.raises(
        TrainingError, match=r"the loss of rank 0 is (nan|inf) after \d+ images: lower train"
    ):
        list(run.reports())


def test_the_average_follows_with_its_half_life(source: Path) -> None:
    run = Run(asked("ae", source, train__average_half_life="12", train__total_images="12"))
    first = run.weights().clone()
    list(run.reports())
    assert run.learning.average is not None
    mean = torch.cat([value.flatten() for value in run.learning.average.parameters()])
    assert torch.allclose(mean, (first + run.weights()) / 2, atol=1e-7)


def test_what_no_average_follows_is_the_living_network(source: Path) -> None:
    """A GAN's held-out logits are of the discriminator of now, not of the one that the run started
    with.
    """
    run = Run(asked("gan", source, train__average_half_life="12"))
    *_, last = run.reports()
    assert run.learning.average is not None
    assert (
        run.learning.average.networks["discriminator"]
        is run.learning.method.networks["discriminator"]
    )
    assert (
        run.learning.average.networks["generator"] is not run.learning.method.networks["generator"]
    )
    assert not any(name.startswith("discriminator") for name in run.learning.tensors()["average"])
    assert run.held_out is not None
    first = Run(asked("gan", source, train__average_half_life="12", train__total_images="12"))
    *_, early = first.reports(every=12)
    assert early.metrics["val/real_logit"] != last.metrics["val/real_logit"]


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    settings = asked("ae", Path("x"), train__warmup_images="120", train__schedule="cosine").train
    rates = [settings.learning_rate_at(images, 1200) for images in range(0, 1200, 12)]
    assert rates[:11] == sorted(rates[:11])
    assert rates[10] == max(rates) == 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert settings.learning_rate_at(1200, 1200) == pytest.approx(0)


def test_the_half_life_of_the_average_grows_with_the_images_seen_to_its_greatest() -> None:
    settings = TrainSettings(batch_size=100, average_half_life=1000, average_share=0.05)
    # Half-lives of 100 and 500 images, and 1,000 from 20,000 images on: halved in 1, 5, 10 steps.
    for images, half_life in ((2_000, 100), (10_000, 500), (20_000, 1000), (90_000, 1000)):
        kept = 0.5 ** (100 / half_life)
        assert settings.average_weight(images) == pytest.approx(1 - kept, rel=1e-12)
    assert settings.average_weight(2_000) == pytest.approx(0.5)
    assert settings.average_weight(0) == 0  # no image was seen, so there is nothing to forget
    always = TrainSettings(batch_size=100, average_half_life=1000)
    assert always.average_weight(100) == always.average_weight(10**6) == pytest.approx(1 - 0.5**0.1)
    assert TrainSettings(average_share=0.05).average_weight(5_000) == 0  # no average


def test_eight_stages_are_those_of_the_published_protocol() -> None:
    settings = TrainSettings(learning_rate=1e-3, batch_size=20, schedule="stages")
    epoch, total = 60_000, 3280 * 60_000
    ends = [sum(3**i for i in range(stage + 1)) * epoch for stage in range(8)]
    assert ends[-1] == total
    for stage, end in enumerate(ends):
        rate = pytest.approx(1e-3 * 10 ** (-stage / 7))
        begin = end - 3**stage * epoch
        assert (
            settings.learning_rate_at(begin, total)
            == settings.learning_rate_at(end - 20, total)
            == rate
        )


@pytest.mark.parametrize(
    "flags",
    [{}, {"train__optimizer": "sgd"}, {"train__optimizer": "sgd", "train__beta1": "0"}],
    ids=["adam", "momentum", "plain"],
)
def test_a_checkpoint_takes_what_was_foreseen_before_the_first_step(
    flags: dict[str, str], source: Path
) -> None:
    run = Run(asked("ae", source, train__average_half_life="9", train__total_images="12", **flags))
    foreseen = run.learning.checkpoint_bytes()
    list(run.reports())
    counters = 4 * sum(1 for _ in run.learning.method.parameters())  # Adam's, of steps
    assert 0 <= bytes_of(run.learning.tensors()) - foreseen <= counters
    assert run.learning.checkpoint_bytes() == bytes_of(run.learning.tensors())


@pytest.mark.parametrize("method", sorted(SMALL.keys() - {"codebook_vae"}))
def test_validation_computes_as_training_does(method: str, source: Path) -> None:
    """In bfloat16 the networks' products, not what is summed over pixels and images."""
    run = Run(asked(method, source, train__precision="bfloat16"))
    dtypes = set[torch.dtype]()
    for layer in run.learning.in_use.modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            layer.register_forward_hook(lambda *heard: dtypes.add(heard[2].dtype))
    assert run.held_out
    settings = run.experiment.train
    figures = validate(run.learning, run.held_out, settings, run.ranks)
    assert torch.bfloat16 in dtypes
    exact = validate(run.learning, run.held_out, replace(settings, precision="tf32"), run.ranks)
    for name, value in exact.items():
        assert figures[name] == pytest.approx(value, rel=0.05, abs=0.02), name


def test_bfloat16_and_channels_last_train_too(source: Path) -> None:
    run = Run(
        asked(
            "ae",
            source,
            train__precision="bfloat16",
            train__channels_last="true",
            method__network__kind="conv",
            method__network__widths="4",
        )
    )
    reports = list(run.reports())
    assert reports[-1].metrics["train/loss"] < reports[0].metrics["train/loss"]
    assert all(value.dtype == torch.float32 for value in run.learning.method.parameters())
