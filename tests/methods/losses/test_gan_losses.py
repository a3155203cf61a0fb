"""Losses and penalties with values known from a linear discriminator, D(x) = a·x + b."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from tests.methods.cases import GAN, SHAPE, batch, made
from udl_dist.errors import UsageError
from udl_dist.methods.losses.gan_losses import LOSSES, between
from udl_dist.methods.method import Batch

ZEROS = torch.zeros(5)
SLOPE = torch.linspace(-0.4, 0.5, 64)  # a


def linear_gan(bias: float = 0.3, **settings: Any) -> Any:
    """A GAN whose discriminator is SLOPE·x, plus `bias` where the loss has one."""
    method = made("gan", GAN | {"r1": 0.0, "r1_every": 1} | settings)
    head = nn.Linear(64, 1, bias=method.discriminator.head.bias is not None)
    with torch.no_grad():
        head.weight.copy_(SLOPE)
        if head.bias is not None:
            head.bias.fill_(bias)
    method.discriminator.body, method.discriminator.head = nn.Flatten(), head
    return method


@pytest.mark.parametrize("name", ["r1", "r2"])
def test_r1_and_r2_are_half_gamma_times_the_squared_slope(name: str) -> None:
    loss = linear_gan(**{name: 3.0}).discriminator_loss(batch())
    torch.testing.assert_close(loss.plots[name], 1.5 * SLOPE.square().sum())
    torch.testing.assert_close(loss.value, loss.plots["discriminator"] + loss.plots[name])


def test_wgan_gp_is_ten_times_the_squared_distance_of_the_slope_from_one() -> None:
    method = linear_gan(loss="wasserstein", gradient_penalty=10.0)
    penalty = method.discriminator_loss(batch()).plots["gradient_penalty"]
    torch.testing.assert_close(penalty, 10 * (SLOPE.norm() - 1).square())
    with torch.no_grad():  # at slope 1 it is least, at slope 0 it has a gradient that is a number
        method.discriminator.head.weight.copy_(SLOPE / SLOPE.norm())
    torch.testing.assert_close(
        method.discriminator_loss(batch()).plots["gradient_penalty"], torch.tensor(0.0)
    )
    nn.init.zeros_(method.discriminator.head.weight)
    loss = method.discriminator_loss(batch())
    torch.testing.assert_close(loss.plots["gradient_penalty"], torch.tensor(10.0))
    (slope,) = torch.autograd.grad(loss.value, method.discriminator.head.weight)
    assert slope.isfinite().all()


def test_points_between_lie_on_the_lines_by_their_keys() -> None:
    data = batch()
    real, fake = data.images, torch.zeros_like(data.images)
    share = between(real, fake, data.keys).flatten(1) / real.flatten(1)
    assert share.std(1).max() < 1e-6
    assert (share.mean(1) > 0).all()
    assert (share.mean(1) < 1).all()
    assert share.mean(1).std() > 0.1
    torch.testing.assert_close(
        between(real[2:3], fake[2:3], data.keys[2:3]), between(real, fake, data.keys)[2:3]
    )


def test_both_penalties_at_once_are_those_of_each() -> None:
    data, settings = batch(), GAN | {"r1_every": 1}
    both = made("gan", settings | {"r1": 2.0, "r2": 3.0}).discriminator_loss(data).plots
    for name, weight in (("r1", 2.0), ("r2", 3.0)):
        alone = made("gan", settings | {"r1": 0.0} | {name: weight}).discriminator_loss(data).plots
        torch.testing.assert_close(both[name], alone[name])
    assert both["r1"] != both["r2"]


@pytest.mark.parametrize(
    ("loss", "real", "fake", "discriminator", "generator"),
    [
        ("hinge", 2.0, -2.0, 0.0, 2.0),
        ("hinge", 0.5, -0.5, 1.0, 0.5),
        ("hinge", -1.0, 3.0, 6.0, -3.0),
        ("least_squares", 1.0, 0.0, 0.0, 0.5),
        ("least_squares", 3.0, 2.0, 4.0, 0.5),
        ("wasserstein", 3.0, -1.0, -4.0, 1.0),
        ("relativistic", 7.0, 7.0, math.log(2), math.log(2)),
        ("relativistic", 1.0, 0.0, math.log(1 + math.exp(-1)), math.log(1 + math.e)),
    ],
)
def test_losses_have_the_values_of_their_papers(
    loss: Any, real: float, fake: float, discriminator: float, generator: float
) -> None:
    game, (real_logits, fake_logits) = LOSSES[loss], (ZEROS + real, ZEROS + fake)
    judged = fake_logits - real_logits if game.pairs else fake_logits
    assert float(game.discriminator(real_logits, fake_logits)) == pytest.approx(discriminator)
    assert float(game.generator(judged)) == pytest.approx(generator)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_value_of_chance_is_that_of_equal_logits(loss: Any) -> None:
    game = LOSSES[loss]
    value = float(game.discriminator(ZEROS, ZEROS))
    assert value == pytest.approx(game.chance or 0)


@pytest.mark.parametrize("loss", LOSSES)
def test_relative_losses_are_blind_to_a_bias(loss: Any) -> None:
    """Its gradient is 0, but it has one, as DDP needs."""
    game = LOSSES[loss]
    real, fake, bias = torch.randn(8), torch.randn(8), torch.zeros((), requires_grad=True)
    value = game.discriminator(real + bias, fake + bias)
    (gradient,) = torch.autograd.grad(value, bias)
    assert (abs(float(gradient)) < 1e-6) == game.relative
    # So the last layer has none, instead of one that follows the rounding of sums.
    own = made("gan", GAN | {"loss": loss}).discriminator.head.bias
    assert (own is None) == game.relative


def test_the_relativistic_loss_compares_rows_of_the_batch() -> None:
    method, data = linear_gan(loss="relativistic"), batch()
    with torch.no_grad():
        fake = method._generate(data, "generator").flatten(1) @ SLOPE
    real = data.images.flatten(1) @ SLOPE
    torch.testing.assert_close(
        method.generator_loss(data).value, (1 + (real - fake).exp()).log().mean()
    )
    swapped = Batch(data.images.flip(0), data.keys, data.record_keys, data.seen)
    assert not torch.allclose(
        method.generator_loss(swapped).value, method.generator_loss(data).value
    )


def test_the_penalties_of_a_step_are_in_float32_under_autocast() -> None:
    method, data = made("gan", GAN | {"r1_every": 1, "r2": 1.0}), batch()
    plain = method.discriminator_loss(data).plots
    with torch.autocast("cpu", torch.bfloat16):
        coarse = method.discriminator_loss(data).plots
        assert method._logits(data.images, None).dtype == torch.float32
    # Real images are the same to the bit, generated ones come out of bfloat16.
    assert torch.equal(coarse["r1"], plain["r1"])
    torch.testing.assert_close(coarse["r2"], plain["r2"], rtol=0.05, atol=0)


def test_gamma_follows_a_cosine_over_the_images_seen() -> None:
    method = made(
        "gan",
        GAN
        | {"r1": 2.0, "r1_end": 0.2, "r2": 1.0, "r2_end": 0.5, "decay_images": 1000}
        | {"r1_every": 1},
    )
    of = method.settings.penalty_weights
    # By hand: 0.2 + 1.8 (1 + cos πt) / 2, halved as in γ/2.
    assert of(0) == pytest.approx({"r1": 1.0, "r2": 0.5})
    assert of(250)["r1"] == pytest.approx((0.2 + 0.9 * (1 + math.cos(math.pi / 4))) / 2)
    assert of(500) == pytest.approx({"r1": 0.55, "r2": 0.375})
    assert of(1000) == of(10**9) == pytest.approx({"r1": 0.1, "r2": 0.25})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"gradient_penalty": 10.0}, "gradient to length 1, method.r1 and method.r2 draw it to 0"),
        (
            {"r1": 0.0, "loss": "wasserstein"},
            "method.loss = wasserstein has no least value when nothing bounds",
        ),
        ({"r2_end": 1.0, "decay_images": 9}, "method.r2_end has no meaning when method.r2 is 0"),
        ({"r1_end": 0.1}, "method.decay_images is when method.r1_end"),
        ({"decay_images": 1000}, "method.decay_images is when method.r1_end"),
        (
            {"discriminator": "r3", "spectral_norm": True},
            "method.spectral_norm has no meaning with method.discriminator = r3",
        ),
        ({"r3_widths": [16, 8]}, "method.r3_widths has no meaning when neither network is r3"),
        (
            {"augment_chance": 0.5},
            "method.augment_chance has no meaning when method.augment is non",
        ),
        ({"ada_target": 0.5, "augment": "diffaug"}, "method.ada_target has no meaning when"),
        ({"augment_by": ["color"]}, "method.augment_by has no meaning when method.augment is none"),
        ({"augment": "ada", "augment_chance": 0.5}, "method.augment_chance has no meaning when"),
        ({"augment": "diffaug", "augment_by": ["colour"]}, "'colour' is not one of color, trans"),
        ({"augment": "diffaug", "augment_by": []}, "method.augment_by is empty"),
        ({"augment": "diffaug", "augment_chance": 0.0}, "method.augment_chance is 0: raise it"),
        (
            {"augment": "ada", "loss": "relativistic"},
            "method.augment = ada follows the sign of logits, which has no meaning",
        ),
        (
            {"discriminator": "r3", "r3_widths": [16]},
            "has 1 entries, but images of data.size have 2",
        ),
        ({"discriminator": "r3", "width": 12}, "method.width gives an r3 network 12 channels"),
    ],
)
def test_combinations_that_mean_nothing_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        made("gan", values, SHAPE)
