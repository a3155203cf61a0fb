"""The adversaries' losses by hand, and R1 against finite differences."""

from itertools import groupby
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from tests.methods.cases import batch, made
from udl_dist.core import rng
from udl_dist.methods.method import Batch

CONV = {"latent_dim": 4, "generator": "conv", "discriminator": "conv", "network.widths": [4, 8]}
CONV |= {"r1": 0.0, "r1_every": 1}


def fakes(method: Any, data: Batch, draw: str) -> torch.Tensor:
    latents = rng.normal(data.keys, draw, (4,))
    return torch.tanh(method.generator(latents))


def test_the_discriminator_minimises_the_cross_entropy_of_real_and_generated() -> None:
    method, data = made("gan", CONV), batch()
    judge = method.discriminator
    real, fake = judge(data.images), judge(fakes(method, data, "discriminator"))
    by_hand = -(torch.sigmoid(real).log().mean() + (1 - torch.sigmoid(fake)).log().mean())
    loss = method.discriminator_loss(data)
    plots = loss.plots
    torch.testing.assert_close(loss.value, by_hand)
    torch.testing.assert_close(plots["discriminator"], by_hand)
    torch.testing.assert_close(plots["real_logit"], real.mean())
    torch.testing.assert_close(plots["fake_logit"], fake.mean())
    assert plots["r1"] == 0


def test_the_generator_s_losses_are_those_of_the_paper() -> None:
    data = batch()
    minimax, saturating = (
        made("gan", CONV | {"loss": "minimax"}),
        made("gan", CONV | {"loss": "non_saturating"}),
    )
    logits = minimax.discriminator(fakes(minimax, data, "generator"))
    torch.testing.assert_close(
        minimax.generator_loss(data).value, (1 - torch.sigmoid(logits)).log().mean()
    )
    torch.testing.assert_close(saturating.generator_loss(data).value, -logsigmoid(logits).mean())


def test_the_discriminator_s_turn_leaves_the_generator_alone() -> None:
    method = made("gan", CONV)
    method.discriminator_loss(batch()).value.backward()
    assert all(value.grad is None for value in method.generator.parameters())


def test_r1_equals_finite_differences() -> None:
    gamma, small = 3.0, 1e-5
    method, data = made("gan", CONV | {"r1": gamma}), batch(2, dtype=torch.float64)
    judge = method.double().discriminator
    moves = small * torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8)
    with torch.no_grad():
        slopes = [
            (judge(image + moves) - judge(image - moves)) / (2 * small) for image in data.images
        ]
    square = torch.stack(slopes).square().sum() / 2
    loss = method.discriminator_loss(data)
    plots = loss.plots
    torch.testing.assert_close(plots["r1"], gamma / 2 * square, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(loss.value, plots["discriminator"] + plots["r1"])


def test_lazy_r1_is_rarer_and_as_much_stronger() -> None:
    every, lazy = made("gan", CONV | {"r1": 1.0}), made("gan", CONV | {"r1": 1.0, "r1_every": 4})
    due = [lazy.is_penalised(seen) for seen in range(0, 4000 * 32, 32)]
    assert 900 < sum(due) < 1100
    assert max(len(list(steps)) for turn, steps in groupby(due) if not turn) < 40
    for seen in (due.index(True) * 32, due.index(False) * 32):
        rare, always = (m.discriminator_loss(after(seen)).plots["r1"] for m in (lazy, every))
        torch.testing.assert_close(rare, 4 * always * lazy.is_penalised(seen))


def after(seen: int) -> Batch:
    data = batch(2)
    return Batch(data.images, data.keys, data.record_keys, seen)


@pytest.mark.parametrize("kind", ["article", "conv", "dcgan", "r3", "resnet"])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 28, 28),
        (3, 32, 32),
        (1, 45, 27),
        (3, 64, 64),
        (3, 96, 96),
        (3, 128, 128),
        (3, 17, 200),
        (1, 4, 4),
    ],
    ids=str,
)
def test_all_networks_reach_every_size(kind: str, shape: tuple[int, int, int]) -> None:
    settings: dict[str, Any] = {"generator": kind, "discriminator": kind}
    settings |= {"network.widths": [4, 4]} if kind == "conv" else {}
    method = made("gan", settings, shape)
    assert method.sample(rng.keys(0, 2)).shape == (2, *shape)
    assert method.discriminator(torch.zeros(2, *shape)).shape == (2,)


def test_the_article_s_networks_have_its_layers() -> None:
    article = {"generator": "article", "discriminator": "article", "latent_dim": 100}
    method = made("gan", article, (1, 28, 28))
    dense = [
        tuple(layer.weight.shape)
        for layer in method.generator
        if isinstance(layer, torch.nn.Linear)
    ]
    assert dense == [(256, 100), (512, 256), (1024, 512), (256 * 4 * 4, 1024)]
    judge = [*method.discriminator.body, method.discriminator.head]
    filters = [
        (layer.out_channels, layer.kernel_size, layer.stride)
        for layer in judge
        if isinstance(layer, torch.nn.Conv2d)
    ]
    assert filters == [(64, (4, 4), (2, 2)), (128, (4, 4), (2, 2))]
    assert [layer.p for layer in judge if isinstance(layer, torch.nn.Dropout)] == [0.3, 0.3]
    assert judge[-1].out_features == 1


def test_only_the_generator_is_averaged_and_rates_differ() -> None:
    method = made("gan", CONV | {"discriminator_rate": 2.5})
    assert method.averaged() == ("generator",)
    assert [(phase.trains, phase.optimizer.rate) for phase in method.phases()] == [
        (("discriminator",), 2.5),
        (("generator",), 1.0),
    ]


def test_each_turn_draws_its_own_images() -> None:
    method, data = made("gan", CONV), batch()
    images = [fakes(method, data, draw) for draw in ("discriminator", "generator", "sample")]
    assert not torch.allclose(images[0], images[1])
    torch.testing.assert_close(method.sample(data.keys), images[2])
