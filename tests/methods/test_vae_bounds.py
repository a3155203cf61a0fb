"""The bound of several latents and the mixture prior, against closed forms and Monte Carlo."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

from tests.methods.cases import CASES, DENSE, batch, made
from udl_dist.core import rng
from udl_dist.errors import UsageError
from udl_dist.methods.losses import priors
from udl_dist.methods.method import Batch

SIGMA = 0.3
IWAE = DENSE | {"likelihood": "bernoulli", "binarise": "static", "objective": "iwae"}
VAMP = DENSE | {"prior": "vamp"}


def log_density(distribution: Distribution, values: Tensor) -> Tensor:
    density: Tensor = distribution.log_prob(values)
    return density


class Posterior(torch.nn.Module):
    """That of the linear model with its covariance cut down to a diagonal, and wider."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        precision = torch.eye(2, dtype=weights.dtype) + weights.T @ weights / SIGMA**2
        covariance = torch.linalg.inv(precision)
        self.matrix = covariance @ weights.T / SIGMA**2
        self.logvar = (1.5 * covariance.diagonal()).log()

    def forward(self, images: Tensor) -> Tensor:
        mean = images.flatten(1) @ self.matrix.T
        logvar = 20 * torch.atanh(self.logvar / 20)  # what the method's smooth bound undoes
        return torch.cat([mean, logvar.expand_as(mean)], 1)


class Linear(torch.nn.Module):
    """Wz behind the method's tanh."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, latents: Tensor) -> Tensor:
        return torch.atanh((latents @ self.weights.T).clamp(-0.999, 0.999)).view(-1, 1, 2, 3)


def linear_model(samples: int) -> tuple[Any, Batch, Tensor]:
    """x = Wz + noise, some images of it, and their log p(x)."""
    values: dict[str, Any] = {
        "network.kind": "dense",
        "likelihood": "gaussian",
        "variance": "fixed",
    }
    values |= {"latent_dim": 2, "sigma": SIGMA, "objective": "iwae", "samples": samples}
    method = made("vae", values, (1, 2, 3)).double()
    torch.manual_seed(2)
    weights = 0.1 * torch.randn(6, 2, dtype=torch.float64)
    method.encoder, method.decoder = Posterior(weights), Linear(weights)
    covariance = weights @ weights.T + SIGMA**2 * torch.eye(6)
    rows = torch.randn(16, 6, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T
    keys = rng.keys(5, 16)
    exact = log_density(MultivariateNormal(torch.zeros(6).double(), covariance), rows)
    return method, Batch(rows.view(-1, 1, 2, 3), keys, keys, 0), exact


def again(data: Batch, times: int) -> Batch:
    """The images so many times, each with draws of its own."""
    count = times * len(data.images)
    images = data.images.repeat(times, 1, 1, 1)
    return Batch(images, rng.keys(9, count), data.record_keys.repeat(times), 0)


def test_the_bound_rises_with_the_latents_to_the_likelihood_of_a_linear_model() -> None:
    bounds = []
    for samples in (1, 5, 50, 5000):
        method, data, exact = linear_model(samples)
        # Of few latents many bounds, so that each mean is over as many latents.
        with torch.no_grad():
            bounds.append(float(method.loss(again(data, 5000 // samples)).value))
    wanted = -float(exact.mean())
    assert bounds[0] > bounds[1] + 0.01 > bounds[2] + 0.015
    assert bounds[2] == pytest.approx(wanted, abs=5e-3)
    assert bounds[3] == pytest.approx(wanted, abs=5e-3)


def test_one_latent_gives_the_elbo_with_the_kl_of_its_draw() -> None:
    one, plain = made("vae", IWAE | {"samples": 1}), made("vae", IWAE | {"objective": "elbo"})
    data = batch()
    loss, elbo = one.loss(data), plain.loss(data)
    # The same latent, so the same term; the KL is that of the latent, not its mean over latents.
    torch.testing.assert_close(loss.plots["reconstruction"], elbo.plots["reconstruction"])
    torch.testing.assert_close(loss.value, loss.plots["negative_elbo"])
    many = again(data, 2000)
    with torch.no_grad():
        values = one.measure(many)
        apart = values["iwae_bound"] - plain.measure(many)["negative_elbo"]
    assert apart.std() > 0.1
    assert abs(apart.mean()) < 4 * apart.std() / math.sqrt(len(apart)) < 0.1


def test_the_gradient_gives_each_latent_the_share_of_its_weight() -> None:
    method, data = made("vae", IWAE | {"samples": 4}).double(), batch(1, dtype=torch.float64)
    images, last = method.targets(data), method.decoder[-2].bias
    mean, logvar = method.posterior(images)
    noise = rng.normal(data.keys, "latent", (4, 3))[0].double()
    latents = mean + (logvar / 2).exp() * noise
    black = Bernoulli(logits=method.decoder(latents))
    logs = log_density(black, (images + 1) / 2).flatten(1).sum(1)
    logs = logs + log_density(Normal(0.0, 1.0), latents).sum(1)
    logs = logs - log_density(Normal(mean, (logvar / 2).exp()), latents).sum(1)
    gradients = torch.stack([torch.autograd.grad(log, last, retain_graph=True)[0] for log in logs])
    by_hand = -(logs.softmax(0)[:, None] * gradients).sum(0)
    loss = method.loss(data).value
    torch.testing.assert_close(loss, math.log(4) - logs.logsumexp(0))
    torch.testing.assert_close(torch.autograd.grad(loss, last)[0], by_hand)


def test_held_out_images_have_both_bounds() -> None:
    method, data = made("vae", IWAE | {"samples": 50}), batch()
    plain = made("vae", IWAE | {"objective": "elbo"})
    found = method.measure(data)
    # The ELBO is that of a model trained by it: the two can be compared.
    torch.testing.assert_close(found["negative_elbo"], plain.measure(data)["negative_elbo"])
    torch.testing.assert_close(found["iwae_bound"].mean(), method.loss(data).value)
    assert found["iwae_bound"].mean() < found["negative_elbo"].mean()
    assert "iwae_bound" not in plain.measure(data)
    assert "samples" in method.incomparable["iwae_bound"]
    assert "samples" not in method.incomparable["negative_elbo"]


def test_a_mixture_of_one_is_a_normal_prior_by_monte_carlo() -> None:
    method, count = made("vae", VAMP | {"pseudo_inputs": 1}).double(), 20_000
    data = batch(1, dtype=torch.float64)
    many = Batch(data.images.expand(count, -1, -1, -1), rng.keys(7, count), rng.keys(8, count), 0)
    with torch.no_grad():
        method.encoder[-1].weight.mul_(3)
        mean, logvar = method.posterior(data.images)
        other, spread = method.posterior(method.pseudo_inputs())
        closed = kl_divergence(
            Normal(mean, (logvar / 2).exp()), Normal(other, (spread / 2).exp())
        ).sum()
        drawn = method.measure(many)["kl"]
    assert closed > 1
    assert abs(drawn.mean() - closed) < 4 * drawn.std() / math.sqrt(count)


def test_a_mixture_has_the_density_of_torch_distributions() -> None:
    torch.manual_seed(0)
    means, logvars = torch.randn(5, 3), torch.randn(5, 3)
    latents = 2 * torch.randn(2, 700, 3)  # more than are compared at a time
    normal = Independent(Normal(means, (logvars / 2).exp()), 1)
    mixture = MixtureSameFamily(Categorical(torch.ones(5)), normal)
    found = priors.log_mixture(latents, means, logvars)
    torch.testing.assert_close(found, log_density(mixture, latents))


def test_latents_drawn_from_a_mixture_are_those_of_its_components() -> None:
    method = made("vae", VAMP | {"pseudo_inputs": 3})
    with torch.no_grad():
        method.encoder[-1].weight[:3].mul_(30)  # means far apart
        method.encoder[-1].bias[3:].fill_(-12.0)  # narrow
        means, _ = method.posterior(method.pseudo_inputs())
        latents = method.prior(rng.keys(3, 3000))
    nearest = torch.cdist(latents, means).min(1)
    assert nearest.values.max() < 0.1
    shares = nearest.indices.bincount() / 3000
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), atol=0.04, rtol=0)


def test_pseudo_inputs_learn_within_the_range_of_pixels() -> None:
    method = made(*CASES["vamp"])
    with torch.no_grad():
        method.pseudo_inputs.images[0].fill_(1.5)
    assert method.pseudo_inputs().abs().max() == 1
    method.loss(batch()).value.backward()
    moved = method.pseudo_inputs.images.grad
    assert moved[0].abs().max() == 0
    assert moved[1:].abs().min() > 0


def test_more_pseudo_inputs_than_images_are_refused() -> None:
    method = made(*CASES["vamp"])
    method.check_images(4, 9)
    with pytest.raises(UsageError, match=r"pseudo_inputs is 4, more than the 3 training images"):
        method.check_images(3, 9)
    made("vae").check_images(3, 9)
