"""Cosines of learning rate, beta2 and the half-life: by hand, in the optimiser, over a resume."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.training.learn import Run, asked
from udl_dist.core.schedules import cosine
from udl_dist.errors import UsageError
from udl_dist.training.settings import TrainSettings

# The recipe of R3GAN in small: 20 million images there.
RECIPE: dict[str, Any] = {
    "learning_rate": 2e-4,
    "learning_rate_end": 5e-5,
    "schedule": "cosine",
    "beta2": 0.9,
    "beta2_end": 0.99,
    "average_half_life": 500,
    "average_ramp": True,
    "decay_images": 2000,
    "batch_size": 20,
}


def test_a_cosine_goes_from_start_to_end_and_stays() -> None:
    assert [cosine(2, 4, done) for done in (0, 0.5, 1, 7)] == pytest.approx([2, 3, 4, 4])
    assert cosine(1, 0, 0.25) == pytest.approx((1 + math.sqrt(0.5)) / 2)


def test_the_recipe_has_its_values_at_start_middle_and_end() -> None:
    settings = TrainSettings(**RECIPE)
    for images, rate, beta2, half_life in (
        (0, 2e-4, 0.9, 0),
        (1000, 1.25e-4, 0.945, 250),
        (2000, 5e-5, 0.99, 500),
        (9000, 5e-5, 0.99, 500),
    ):
        rates = settings.rates_at(images, 10_000)
        assert (rates.learning_rate, rates.beta2) == pytest.approx((rate, beta2))
        weight = 1 - 0.5 ** (20 / half_life) if half_life else 1
        assert settings.average_weight(images) == pytest.approx(weight)


def test_without_their_ends_rates_go_to_zero_over_the_run_or_stay() -> None:
    settings = TrainSettings(schedule="cosine", warmup_images=0, learning_rate=0.5)
    assert settings.rates_at(500, 1000).learning_rate == pytest.approx(0.25)
    assert settings.rates_at(1000, 1000).learning_rate == pytest.approx(0)
    assert settings.rates_at(500, 1000).beta2 == settings.beta2
    ending = TrainSettings(beta2=0.5, beta2_end=0.7)
    assert ending.rates_at(500, 1000).beta2 == pytest.approx(0.6)
    warm = TrainSettings(
        schedule="cosine", warmup_images=200, decay_images=1000, learning_rate_end=1e-4
    )
    assert warm.learning_rate_at(200, 5000) == warm.learning_rate
    assert warm.learning_rate_at(600, 5000) == pytest.approx(5.5e-4)


def test_the_optimiser_gets_them_and_a_resume_has_the_same_bits(source: Path) -> None:
    flags = {f"train__{name}": str(value).lower() for name, value in RECIPE.items()}
    experiment = asked("gan", source, **flags | {"train__batch_size": "12"})
    whole, saved, found = Run(experiment), {}, []
    for report in whole.reports(every=12):
        groups = [phase.optimizer.param_groups[0] for phase in whole.learning.phases]
        found.append([(group["lr"], group["betas"]) for group in groups])
        if report.images == 120:
            saved = whole.state()
    for step, (one, other) in enumerate(found):
        rates = experiment.train.rates_at(12 * step, 240)
        assert one == other == (rates.learning_rate, (0.9, rates.beta2))
    assert found[0] != found[-1]
    again = Run(experiment)
    again.learning.restore(saved)
    list(again.reports(120))
    assert again.hash() == whole.hash()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"learning_rate_end": 1e-4}, "train.learning_rate_end has no meaning when train.schedule"),
        ({"beta2_end": 0.9, "optimizer": "sgd"}, "train.beta2_end has no meaning"),
        ({"average_ramp": True, "average_half_life": 9}, "train.average_ramp needs"),
        ({"average_ramp": True, "decay_images": 9}, "train.average_ramp needs"),
        ({"decay_images": 9}, "train.decay_images has no meaning when nothing follows a cosine"),
    ],
)
def test_ends_that_would_be_ignored_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        TrainSettings(**values)
