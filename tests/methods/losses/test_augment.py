"""Augmentation by keys: what it changes, how often, and the chance that `ada` follows."""

import math
from typing import Any

import pytest
import torch

from tests.methods.cases import GAN, batch, made
from udl_dist.core import rng
from udl_dist.methods.losses import augment
from udl_dist.methods.losses.augment import CHANGES, augmented, next_chance

KEYS = rng.keys(5, 400)


@pytest.mark.parametrize("kind", CHANGES)
def test_each_image_changes_by_its_own_key_alone(kind: str) -> None:
    images = torch.rand(6, 3, 16, 12)
    whole = CHANGES[kind](images, KEYS[:6], "a")
    assert whole.shape == images.shape
    torch.testing.assert_close(CHANGES[kind](images[2:4], KEYS[2:4], "a"), whole[2:4])
    assert not torch.equal(CHANGES[kind](images, KEYS[:6], "b"), whole)


@pytest.mark.parametrize("kind", CHANGES)
def test_gradients_pass_twice(kind: str) -> None:
    images = torch.rand(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)

    def changed(images: torch.Tensor) -> torch.Tensor:
        return CHANGES[kind](images, KEYS[:2], "a").square()

    assert torch.autograd.gradcheck(changed, images)
    assert torch.autograd.gradgradcheck(changed, images)


def test_a_shift_moves_whole_pixels_and_brings_gray() -> None:
    images = torch.arange(1.0, 257).view(1, 1, 16, 16).expand(400, 1, 16, 16)
    moved, seen = augment.translation(images, KEYS, "a"), set()
    for number in range(400):
        corner = int(moved[number, 0, 8, 8]) - 1  # the pixel that came to the middle
        down, across = 8 - corner // 16, 8 - corner % 16
        seen.add((down, across))
        by_hand = torch.zeros(16, 16)
        rows = slice(max(0, down), 16 + min(0, down)), slice(max(0, across), 16 + min(0, across))
        from_rows = slice(max(0, -down), 16 + min(0, -down))
        from_columns = slice(max(0, -across), 16 + min(0, -across))
        by_hand[rows] = images[number, 0, from_rows, from_columns]
        assert torch.equal(moved[number, 0], by_hand)
    assert seen == {(down, across) for down in range(-2, 3) for across in range(-2, 3)}


def test_a_cutout_blanks_at_most_a_quarter_anywhere() -> None:
    left = augment.cutout(torch.ones(400, 3, 8, 8), KEYS, "a")
    assert set(left.flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(left[:, 0], left[:, 2])
    blank = (left[:, 0] == 0).flatten(1).sum(1)
    assert blank.max() == 16
    assert blank.min() == 4  # a corner
    assert (left[:, 0] == 0).any(0).all(), "every pixel is blanked at some time"


def test_colors_have_the_ranges_of_the_article() -> None:
    images = torch.full((400, 3, 4, 4), 0.25)
    shift = (augment.color(images, KEYS, "a") - images)[:, 0, 0, 0]  # of an image of one gray
    assert -0.5 <= shift.min() < -0.45
    assert 0.45 < shift.max() <= 0.5
    checked = torch.tensor([-1.0, 1.0]).repeat(8).view(1, 1, 4, 4).expand(400, 3, 4, 4)
    contrast = augment.color(checked, KEYS, "a").std((1, 2, 3)) / checked.std((1, 2, 3))
    assert 0.5 <= contrast.min() < 0.55
    assert 1.45 < contrast.max() <= 1.5


@pytest.mark.parametrize("chance", [0.0, 0.3, 1.0])
def test_a_change_comes_with_its_chance(chance: float) -> None:
    images = torch.rand(400, 1, 8, 8)
    for given in (chance, torch.tensor(chance)):
        found = augmented(images, KEYS, "a", ("color",), given)
        share = (found != images).flatten(1).any(1).float().mean()
        assert abs(float(share) - chance) <= 4 * math.sqrt(chance * (1 - chance) / 400)


def test_the_chance_of_ada_goes_up_and_down_by_arithmetic() -> None:
    chance = torch.zeros(())
    # 16 of 20 images right: a mean sign of 0.6 is the target, and the chance stays.
    for right, wanted in ((20, 0.02), (19, 0.04), (18, 0.04), (17, 0.02), (0, 0.0), (0, 0.0)):
        signs = torch.tensor(float(2 * right - 20))
        chance = next_chance(chance, signs, torch.tensor(20.0), 0.8, 1000)
        assert float(chance) == pytest.approx(wanted, abs=1e-7)
    high = next_chance(torch.tensor(0.99), torch.tensor(20.0), torch.tensor(20.0), 0.6, 1000)
    assert float(high) == 1


def test_ada_follows_the_signs_of_real_images() -> None:
    method, data = made("gan", GAN | {"augment": "ada", "ada_images": 60}), batch()
    for sign, wanted in ((1, 0.1), (1, 0.2), (-1, 0.1)):
        with torch.no_grad():
            method.discriminator.head.weight.zero_()
            method.discriminator.head.bias.fill_(sign)
        loss = method.discriminator_loss(data)
        assert float(loss.plots["augment_chance"]) == pytest.approx(float(method.chance))
        assert {name: float(value) for name, value in loss.sums.items()} == {
            "real_signs": 6 * sign,
            "judged_images": 6,
        }
        assert not method.generator_loss(data).sums
        method.after_step(loss.sums)
        method.after_step({})  # a step without the discriminator
        assert float(method.chance) == pytest.approx(wanted)
    assert "chance" in method.saved_tensors()


@pytest.mark.parametrize("loss", ["non_saturating", "relativistic"])
def test_all_images_are_augmented_in_both_phases(loss: str) -> None:
    settings: dict[str, Any] = GAN | {"augment": "diffaug", "loss": loss, "r1": 0.0, "r1_every": 1}
    method, data = made("gan", settings), batch()
    seen: list[torch.Tensor] = []
    method.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    method.discriminator_loss(data)
    method.generator_loss(data)
    fakes = [method._generate(data, phase) for phase in ("discriminator", "generator")]
    real = data.images
    plain = [real, fakes[0], fakes[1], *([real] if loss == "relativistic" else [])]
    rows = torch.split(torch.cat(seen), 6)
    assert len(rows) == len(plain)
    for found, raw in zip(rows, plain, strict=True):
        assert (found != raw).flatten(1).any(1).all()


def test_r1_is_the_gradient_by_the_image_before_it_is_augmented() -> None:
    """With D(x) = a·x behind a cutout, the slope by the image is a where nothing was cut."""
    settings = GAN | {"augment": "diffaug", "augment_by": ["cutout"], "r1": 2.0, "r1_every": 1}
    method, data = made("gan", settings), batch()
    slope = torch.linspace(-0.4, 0.5, 64)
    head = torch.nn.Linear(64, 1)
    with torch.no_grad():
        head.weight.copy_(slope)
    method.discriminator.body, method.discriminator.head = torch.nn.Flatten(), head
    left = augment.cutout(torch.ones(6, 1, 8, 8), data.keys, "augmented real").flatten(1)
    torch.testing.assert_close(
        method.discriminator_loss(data).plots["r1"], (left * slope).square().sum(1).mean()
    )


def test_the_chance_of_diffaug_follows_a_cosine() -> None:
    method = made(
        "gan",
        GAN
        | {"augment": "diffaug", "augment_chance": 0.0, "augment_chance_end": 0.3}
        | {"decay_images": 1000},
    )
    of = method.settings.chance_at
    assert [of(0), of(500), of(1000), of(5000)] == pytest.approx([0, 0.15, 0.3, 0.3])
    assert of(250) == pytest.approx(0.15 * (1 - math.cos(math.pi / 4)))
