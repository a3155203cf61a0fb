"""The variational bound by hand, by Monte Carlo and at its analytic optima."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Normal, kl_divergence

from tests.methods.cases import DENSE, batch, made
from udl_dist.core import rng
from udl_dist.methods.losses.likelihoods import SPEED
from udl_dist.methods.method import Batch

BERNOULLI = DENSE | {"likelihood": "bernoulli"}
GAUSSIAN = DENSE | {"likelihood": "gaussian", "sigma": 0.3}


def log_density(distribution: Distribution, values: Tensor) -> Tensor:
    density: Tensor = distribution.log_prob(values)
    return density


def by_hand(method: Any, data: Batch, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q(z|x), a draw of it as the method draws, and the raw output of the decoder."""
    mean, logvar = method.encoder(images).chunk(2, 1)
    deviation = torch.exp(20 * torch.tanh(logvar / 20) / 2)
    latents = mean + deviation * rng.normal(data.keys, "latent", (3,))
    return mean, deviation, method.decoder(latents)


def test_the_bernoulli_bound_equals_torch_distributions() -> None:
    method, data = made("vae", BERNOULLI | {"binarise": "static"}), batch()
    images = method.targets(data)
    mean, deviation, logits = by_hand(method, data, images)
    surprise = -log_density(Bernoulli(logits=logits), (images + 1) / 2).flatten(1).sum(1)
    kl = kl_divergence(Normal(mean, deviation), Normal(0.0, 1.0)).sum(1)
    figures = method.measure(data)
    torch.testing.assert_close(figures["reconstruction"], surprise)
    torch.testing.assert_close(figures["kl"], kl)
    torch.testing.assert_close(figures["negative_elbo"], surprise + kl)
    torch.testing.assert_close(method.loss(data).value, (surprise + kl).mean())


@pytest.mark.parametrize("variance", ["fixed", "learned"])
def test_the_gaussian_bound_equals_torch_distributions(variance: str) -> None:
    method, data = made("vae", GAUSSIAN | {"variance": variance}), batch()
    mean, deviation, output = by_hand(method, data, data.images)
    sigma = (
        torch.tensor(0.3)
        if variance == "fixed"
        else (-6 + torch.nn.functional.softplus(torch.log(torch.tensor(0.3)) + 6)).exp()
    )
    surprise = -log_density(Normal(torch.tanh(output), sigma), data.images).flatten(1).sum(1)
    kl = kl_divergence(Normal(mean, deviation), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(method.measure(data)["reconstruction"], surprise)
    torch.testing.assert_close(method.loss(data).value, (surprise + kl).mean())


def test_the_closed_kl_equals_monte_carlo() -> None:
    method, data, count = made("vae", DENSE), batch(1), 200_000
    with torch.no_grad():
        method.encoder[-1].weight.mul_(3)
        mean, logvar = method.posterior(data.images)
        q = Normal(mean, (logvar / 2).exp())
        draws = q.mean + q.stddev * rng.normal(rng.keys(0, count), "mc", (3,))
        log_ratio = (log_density(q, draws) - log_density(Normal(0.0, 1.0), draws)).sum(1)
        closed = method.measure(data)["kl"]
    assert closed > 1
    assert abs(log_ratio.mean() - closed) < 4 * log_ratio.std() / math.sqrt(count)


def test_the_learned_variance_is_best_at_the_mean_squared_error() -> None:
    method, data = made("vae", GAUSSIAN | {"variance": "learned"}), batch()
    *_, output = by_hand(method, data, data.images)
    error = (data.images - torch.tanh(output)).square().mean().detach()
    free = method.sigma.weight
    slopes = []
    for factor in (0.9, 1.0, 1.1):
        with torch.no_grad():
            log_sigma = -6 + torch.log(torch.expm1(error.sqrt().log() + math.log(factor) + 6))
            free.copy_(log_sigma / SPEED)
        slopes.append(float(torch.autograd.grad(method.loss(data).value, free)[0]) / SPEED)
        torch.testing.assert_close(method.loss(data).plots["sigma"], error.sqrt() * factor)
    assert slopes[0] < -5
    assert abs(slopes[1]) < 0.01
    assert slopes[2] > 5


def test_a_learned_variance_has_a_floor() -> None:
    method, data = made("vae", GAUSSIAN | {"variance": "learned"}), batch()
    with torch.no_grad():
        method.sigma.weight.fill_(-100.0)
    torch.testing.assert_close(method.loss(data).plots["sigma"], torch.tensor(math.exp(-6)))


def test_binarisation_is_drawn_with_the_pixel_s_probability() -> None:
    count = 500
    images = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8).expand(count, -1, -1, -1)
    drawn = made("vae", BERNOULLI | {"binarise": "epoch"}).targets(
        Batch(images, rng.keys(0, count), rng.keys(1, count), 0)
    )
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(drawn[:, 0, 0, 0], -torch.ones(count))
    assert torch.equal(drawn[:, 0, 7, 7], torch.ones(count))
    assert (drawn.mean(0) - images[0]).abs().max() < 0.2


@pytest.mark.parametrize(("binarise", "changes"), [("static", False), ("epoch", True)])
def test_static_binarisation_stays_and_the_other_changes_with_the_epoch(
    binarise: str, changes: bool
) -> None:
    method, first = made("vae", BERNOULLI | {"binarise": binarise}), batch()
    second = Batch(first.images, rng.keys(50, 6), first.record_keys, 1000)
    assert torch.equal(method.targets(first), method.targets(first))
    assert torch.equal(method.targets(first), method.targets(second)) is not changes


def test_grey_images_stay_grey_without_binarisation() -> None:
    assert torch.equal(made("vae", BERNOULLI).targets(batch()), batch().images)


def test_free_bits_leave_a_dimension_below_them_in_peace() -> None:
    method, data = made("vae", DENSE | {"free_bits": 0.1}), batch()
    mean, logvar = method.posterior(data.images)
    kls = (mean**2 + logvar.exp() - 1 - logvar) / 2
    assert (kls < 0.1).any()
    assert (kls > 0.1).any()
    loss = method.loss(data)
    plots = loss.plots
    torch.testing.assert_close(
        loss.value - plots["reconstruction"],
        torch.where(kls > 0.1, kls, torch.tensor(0.1)).sum(1).mean(),
    )
    torch.testing.assert_close(plots["kl"], kls.sum(1).mean())


def test_the_weight_of_the_kl_grows_with_the_images_seen() -> None:
    method = made("vae", DENSE | {"beta": 4.0, "warmup_images": 1000})
    assert [method.kl_weight(seen) for seen in (0, 250, 1000, 10**9)] == [0, 1, 4, 4]
    data = batch()  # after 100 images
    loss = method.loss(data)
    plots = loss.plots
    torch.testing.assert_close(loss.value, plots["reconstruction"] + 0.4 * plots["kl"])
    torch.testing.assert_close(plots["negative_elbo"], plots["reconstruction"] + plots["kl"])
    torch.testing.assert_close(method.measure(data)["negative_elbo"].mean(), plots["negative_elbo"])


@pytest.mark.parametrize(
    "values", [BERNOULLI, GAUSSIAN | {"variance": "learned"}], ids=["bernoulli", "gaussian"]
)
def test_extreme_outputs_give_finite_losses_and_gradients(values: dict[str, object]) -> None:
    method = made("vae", values)
    with torch.no_grad():
        method.encoder[-1].weight.mul_(1e4)
        method.decoder[-2].weight.mul_(1e4)
    loss = method.loss(batch()).value
    loss.backward()
    assert loss.isfinite()
    assert all(
        value.grad is not None and value.grad.isfinite().all() for value in method.parameters()
    )


def test_decoding_gives_the_mean_of_the_likelihood() -> None:
    method = made("vae", BERNOULLI)
    latents = torch.randn(4, 3)
    probability = torch.sigmoid(method.decoder(latents))
    torch.testing.assert_close(method.decode(latents), probability * 2 - 1)
    torch.testing.assert_close(method.encode(batch().images), method.encoder(batch().images)[:, :3])


def test_a_learned_variance_starts_at_sigma() -> None:
    sigma = made("vae", GAUSSIAN | {"variance": "learned"}).loss(batch()).plots["sigma"]
    assert abs(sigma - 0.3) < 0.01
