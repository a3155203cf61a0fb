"""The discretised logistic mixture: probabilities that sum to 1, and its mean."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods.cases import DENSE, batch, made
from udl_dist.evaluation.extractor import OWN_EXTRACTORS
from udl_dist.evaluation.likelihood import Likelihood
from udl_dist.evaluation.metric_group import HELD_OUT, MetricBatch, Subject
from udl_dist.evaluation.settings import MetricSettings
from udl_dist.methods.losses import logistic_mixture

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def outputs(channels: int, spread: float = 1.0) -> Tensor:
    """What a decoder might say of one pixel."""
    torch.manual_seed(channels)
    return spread * torch.randn(1, logistic_mixture.outputs(channels), 1, 1, dtype=torch.float64)


def probabilities(output: Tensor, rows: Tensor) -> Tensor:  # [N, C] -> [N]
    images = rows[:, :, None, None]
    return (-logistic_mixture.surprise(images, output.expand(len(rows), -1, -1, -1))).exp()


@pytest.mark.parametrize("spread", [0.1, 1.0, 8.0])
def test_the_levels_of_a_grey_pixel_sum_to_1(spread: float) -> None:
    assert logistic_mixture.outputs(1) == 30
    total = probabilities(outputs(1, spread), LEVELS[:, None]).sum()
    torch.testing.assert_close(total, torch.ones((), dtype=torch.float64), rtol=1e-9, atol=0)


def test_the_levels_of_each_channel_sum_to_the_probability_of_those_before_it() -> None:
    assert logistic_mixture.outputs(3) == 100
    output = outputs(3)
    before = LEVELS[[200, 31]]
    rows = torch.cat([before.expand(256, 2), LEVELS[:, None]], 1)
    # The first two channels of a mixture of three are one of two, with the first slope.
    grouped = output.view(10, 10)  # logits, 3 means, 3 scales, 3 slopes, of 10 components each
    two = grouped[[0, 1, 2, 4, 5, 7]].reshape(1, 60, 1, 1)
    torch.testing.assert_close(
        probabilities(output, rows).sum(), probabilities(two, before[None])[0], rtol=1e-9, atol=0
    )


def test_one_level_has_the_mass_of_the_logistic_between_its_neighbours() -> None:
    mean, log_scale = 0.2, -2.5
    output = torch.zeros(1, 30, 1, 1, dtype=torch.float64)
    output[0, 10:20], output[0, 20:30] = mean, log_scale

    def up_to(level: float) -> float:  # the middle between it and the next
        return 1 / (1 + math.exp(-((level + 1) / 127.5 - 1 - 1 / 255 - mean) / math.exp(log_scale)))

    found = probabilities(output, LEVELS[[0, 150, 255]][:, None])
    wanted = torch.tensor([up_to(0), up_to(150) - up_to(149), 1 - up_to(254)], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)


def test_pixels_in_the_tails_have_finite_losses_and_gradients() -> None:
    for extreme in (1e4, -1e4):
        output = torch.full((1, 100, 1, 1), extreme, requires_grad=True)
        value = logistic_mixture.surprise(torch.full((1, 3, 1, 1), 0.5), output).sum()
        (gradient,) = torch.autograd.grad(value, output)
        assert value.isfinite()
        assert gradient.isfinite().all()


def test_the_mean_image_is_that_of_many_draws() -> None:
    # Narrow components well inside the range, where cutting at the ends changes no mean.
    torch.manual_seed(0)
    output = 0.3 * torch.randn(1, 100, 1, 1, dtype=torch.float64)
    output[0, 40:70] = -4.0
    found = logistic_mixture.mean_image(output, 3)[0, :, 0, 0]
    logits, means, scales, slopes = torch.split(output.view(10, 10), [1, 3, 3, 3])
    which = torch.multinomial(logits[0].softmax(0), 200_000, replacement=True)
    uniform = torch.rand(3, len(which), dtype=torch.float64)
    noise = (uniform.log() - (-uniform).log1p()) * scales.exp()[:, which]
    drawn = [means[0, which] + noise[0]]
    drawn.append(means[1, which] + slopes[0, which].tanh() * drawn[0] + noise[1])
    shift = slopes[1, which].tanh() * drawn[0] + slopes[2, which].tanh() * drawn[1]
    drawn.append(means[2, which] + shift + noise[2])
    torch.testing.assert_close(found, torch.stack(drawn).mean(1), atol=5e-3, rtol=0)


def test_bits_of_a_pixel_are_those_of_its_probability() -> None:
    method: Any = made("vae", DENSE | {"likelihood": "logistic"})
    group = Likelihood(
        Subject(
            method,
            (1, 8, 8),
            3,
            MetricSettings(bound_samples=0),
            OWN_EXTRACTORS["pixels"],
            None,
            "",
        )
    )
    data = batch()
    with torch.no_grad():
        seen = MetricBatch(data, torch.zeros(6, dtype=torch.int64), 0)
        found = group.metrics(group.collect(HELD_OUT, seen), None, {})
    elbo, bits = found["negative_elbo"].value, found["bits_per_dimension"]
    assert bits.value == pytest.approx(elbo / (64 * math.log(2)))
    assert bits.floor == {"even chances": 8.0}
