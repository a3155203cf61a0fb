"""The hierarchical VAE: with one latent map a plain VAE, with more closed KLs of each."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from tests.methods.cases import SHAPE, batch, made
from udl_dist.core import rng
from udl_dist.errors import UsageError
from udl_dist.methods.method import Batch

BLACK = {"likelihood": "bernoulli", "binarise": "static"}
SMALL = {"width": 8, "latent_channels": 2}


def two_levels() -> Any:
    """Maps of 4 and 2 pixels, with priors that are not N(0, 1)."""
    method = made("ladder", SMALL | BLACK | {"blocks": [0, 1, 1]})
    torch.manual_seed(1)
    with torch.no_grad():
        for blocks in method.decoder.levels:
            for block in blocks:
                block.prior.c4.weight.normal_(std=0.5)
                block.prior.c4.bias.normal_(std=0.5)
    return method


class Encoder(nn.Module):
    """The numbers of the posterior of a ladder of one map."""

    def __init__(self, ladder: Any) -> None:
        super().__init__()
        self.ladder = [ladder]  # not a child

    def forward(self, images: Tensor) -> Tensor:
        def choose(number: int, prior: Tensor, posterior: Tensor | None) -> Tensor:
            return prior[:, :2]

        (ladder,) = self.ladder
        found, _ = ladder.decoder(len(images), ladder.encoder(images), choose)
        numbers: Tensor = found[0].posterior
        return numbers.flatten(1)


class Decoder(nn.Module):
    """The output of a ladder of one map."""

    def __init__(self, ladder: Any) -> None:
        super().__init__()
        self.ladder = [ladder]

    def forward(self, latents: Tensor) -> Tensor:
        def choose(number: int, prior: Tensor, posterior: Tensor | None) -> Tensor:
            return latents.view(-1, 2, 1, 1)

        output: Tensor = self.ladder[0].decoder(len(latents), None, choose)[1]
        return output


@pytest.mark.parametrize("likelihood", [BLACK, {"likelihood": "logistic"}])
def test_one_latent_map_is_a_vae(likelihood: dict[str, str]) -> None:
    ladder = made("ladder", SMALL | likelihood | {"blocks": [0, 0, 0, 1]})
    plain = made("vae", {"latent_dim": 2, "network.kind": "dense"} | likelihood)
    plain.encoder, plain.decoder = Encoder(ladder), Decoder(ladder)
    data = batch()
    loss, other = ladder.loss(data), plain.loss(data)
    torch.testing.assert_close(loss.value, other.value, rtol=1e-6, atol=0)
    for name in ("kl", "reconstruction", "negative_elbo"):
        torch.testing.assert_close(loss.plots[name], other.plots[name], rtol=1e-6, atol=1e-6)
    found, wanted = ladder.measure(data), plain.measure(data)
    torch.testing.assert_close(found["mse"], wanted["mse"], rtol=1e-5, atol=1e-6)
    keys = torch.stack([rng.keys(1, 6), rng.keys(2, 6)])
    torch.testing.assert_close(ladder.log_weights(data, keys), plain.log_weights(data, keys))
    latents = ladder.prior(data.keys)
    torch.testing.assert_close(latents.flatten(1), plain.prior(data.keys))
    torch.testing.assert_close(ladder.sample(data.keys), ladder.decode(latents))
    torch.testing.assert_close(ladder.sample(data.keys), plain.sample(data.keys))


def test_the_kl_of_each_size_is_that_of_torch_distributions() -> None:
    method, data = two_levels(), batch()
    images, shapes = method.targets(data), [(2, 2, 2), (2, 4, 4)]

    def normal(numbers: Tensor) -> Normal:
        mean, logvar = numbers.chunk(2, 1)
        return Normal(mean, (20 * torch.tanh(logvar / 20) / 2).exp())

    def choose(number: int, prior: Tensor, posterior: Tensor | None) -> Tensor:
        assert posterior is not None
        q, name = normal(posterior), f"latent {number}" if number else "latent"
        return q.mean + q.stddev * rng.normal(data.keys, name, shapes[number])

    found, output = method.decoder(6, method.encoder(images), choose)
    kls = [
        kl_divergence(normal(each.posterior), normal(each.prior)).flatten(1).sum(1)
        for each in found
    ]
    values = method.measure(data)
    torch.testing.assert_close(values["kl_2x2"], kls[0])
    torch.testing.assert_close(values["kl_4x4"], kls[1])
    torch.testing.assert_close(values["kl"], kls[0] + kls[1])
    assert min(kls[0].min(), kls[1].min()) > 0.1
    surprise = nn.functional.binary_cross_entropy_with_logits(
        output, (images + 1) / 2, reduction="none"
    )
    torch.testing.assert_close(values["negative_elbo"], surprise.flatten(1).sum(1) + sum(kls))
    torch.testing.assert_close(method.loss(data).value, values["negative_elbo"].mean())


@torch.no_grad()
def test_weights_average_to_the_elbo_and_bound_it() -> None:
    method, data, count = two_levels(), batch(2), 3000
    weights = method.log_weights(data, rng.keys(7, 2 * count).view(count, 2))
    many = Batch(
        data.images.repeat(count, 1, 1, 1),
        rng.keys(8, 2 * count),
        data.record_keys.repeat(count),
        0,
    )
    elbo = method.measure(many)["negative_elbo"].view(count, 2)
    noise = 4 * (weights.std(0) + elbo.std(0)) / math.sqrt(count)
    assert ((-weights.mean(0) - elbo.mean(0)).abs() < noise).all()
    assert (math.log(count) - weights.logsumexp(0) < elbo.mean(0)).all()


@torch.no_grad()
def test_samples_draw_every_map_and_a_code_gives_the_means_of_the_rest() -> None:
    method = two_levels()
    keys = rng.keys(5, 4)
    first = method.prior(keys)
    assert first.shape == (4, *method.latent_shape) == (4, 2, 2, 2)
    assert not torch.allclose(method.sample(keys), method.decode(first), atol=1e-4)
    assert torch.equal(method.decode(first), method.decode(first))


def test_every_size_of_an_image_has_its_figure_and_its_alarm() -> None:
    method = made("ladder", SMALL, (1, 28, 28))
    assert method.plan.sides == ((28, 28), (14, 14), (7, 7), (4, 4), (2, 2), (1, 1))
    assert method.plan.blocks == (0, 2, 2, 2, 2, 1)
    names = [f"kl_{side}x{side}" for side in (14, 7, 4, 2, 1)]
    plots = method.loss(batch(2, (1, 28, 28))).plots
    assert [name for name in plots if name.startswith("kl_")] == names
    torch.testing.assert_close(plots["kl"], sum(plots[name] for name in names))
    alive = {f"val/{name}": 2.0 for name in names}
    assert not method.alarms(alive, 10_000)
    assert "kl_7x7 0.001 nats" in method.alarms(alive | {"val/kl_7x7": 1e-3}, 10_000)["dead levels"]
    wide = made("ladder", SMALL, (3, 48, 80))
    assert wide.plan.sides[-1] == (1, 2)
    assert wide.sample(rng.keys(0, 2)).shape == (2, 3, 48, 80)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"blocks": [1, 1, 1, 1, 1]}, r"has 5 entries, but an image of 8×8 can be halved 3 times"),
        ({"blocks": [1, 0]}, "method.blocks ends in 0"),
        ({"binarise": "static"}, "method.binarise has no meaning when method.likelihood is logist"),
    ],
)
def test_settings_that_mean_nothing_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        made("ladder", SMALL | values, SHAPE)
