"""The bound of many latents, against a model whose likelihood is known in closed form."""

import math
from typing import Any

import pytest
import torch

from tests.methods.cases import batch, made
from udl_dist.core import rng
from udl_dist.evaluation.extractor import OWN_EXTRACTORS
from udl_dist.evaluation.io import Metric
from udl_dist.evaluation.likelihood import Likelihood
from udl_dist.evaluation.metric_group import HELD_OUT, MetricBatch, Subject
from udl_dist.evaluation.settings import MetricSettings
from udl_dist.methods.method import Batch

SHAPE = (1, 2, 3)
SIGMA = 0.3
BERNOULLI = {"latent_dim": 3, "likelihood": "bernoulli"}


class Encoder(torch.nn.Module):
    """The posterior of the linear model, its covariance cut down to a diagonal."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        covariance = torch.linalg.inv(torch.eye(2) + weights.T @ weights / SIGMA**2)
        self.matrix, self.logvar = covariance @ weights.T / SIGMA**2, covariance.diagonal().log()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.flatten(1) @ self.matrix.T
        logvar = 20 * torch.atanh(self.logvar / 20)  # what the method's smooth bound undoes
        return torch.cat([mean, logvar.expand_as(mean)], 1)


class Decoder(torch.nn.Module):
    """Linear behind the method's tanh."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.atanh((latents @ self.weights.T).clamp(-0.999, 0.999)).view(-1, *SHAPE)


@pytest.fixture
def linear() -> Any:
    """x = Wz + noise, with two latents and six pixels; W is small, so that Wz stays within [-1,
    1].
    """
    method = made(
        "vae",
        {
            "latent_dim": 2,
            "network.kind": "dense",
            "network.widths": [3],
            "likelihood": "gaussian",
            "variance": "fixed",
            "sigma": SIGMA,
        },
        SHAPE,
    )
    torch.manual_seed(2)
    weights = torch.randn(6, 2) * 0.1
    method.encoder, method.decoder = Encoder(weights), Decoder(weights)
    method.weights = weights
    return method


def images(method: Any, count: int = 8) -> Batch:
    covariance = method.weights @ method.weights.T + SIGMA**2 * torch.eye(6)
    factor, keys = torch.linalg.cholesky(covariance), rng.keys(5, count)
    return Batch((torch.randn(count, 6) @ factor.T).view(-1, *SHAPE), keys, keys, 0)


def measured(
    method: Any, some: Batch, shape: tuple[int, int, int] = SHAPE, **asked: Any
) -> dict[str, Metric]:
    wanted = MetricSettings(**asked)
    group = Likelihood(
        Subject(
            method, shape, method.settings.latent_dim, wanted, OWN_EXTRACTORS["pixels"], None, ""
        )
    )
    with torch.no_grad():
        collected = group.collect(
            HELD_OUT, MetricBatch(some, torch.zeros(len(some.images), dtype=torch.int64), 0)
        )
    return group.metrics(collected, None, {})


def test_the_bound_of_many_latents_is_the_likelihood_of_a_linear_model(linear: Any) -> None:
    some = images(linear)
    covariance = linear.weights @ linear.weights.T + SIGMA**2 * torch.eye(6)
    exact: Any = torch.distributions.MultivariateNormal(torch.zeros(6), covariance)
    expected = -float(exact.log_prob(some.images.flatten(1)).mean())
    found = measured(linear, some, bound_samples=5000)
    assert found["iwae_5000"].value == pytest.approx(expected, abs=2e-3)
    assert found["negative_elbo"].value > expected - 0.2  # of one latent: not below but for chance
    bits = expected / (6 * math.log(2)) + math.log2(255 / 2)
    assert found["bits_per_dimension"].value == pytest.approx(bits, abs=1e-3)


def test_the_bound_does_not_depend_on_how_many_latents_are_held_at_once(
    linear: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = images(linear)
    whole = measured(linear, some, bound_samples=37)["iwae_37"].value
    monkeypatch.setattr("udl_dist.evaluation.likelihood.AT_ONCE", 20)
    assert measured(linear, some, bound_samples=37)["iwae_37"].value == pytest.approx(
        whole, rel=1e-6
    )


def test_more_latents_tighten_the_bound_and_black_and_white_pixels_have_bits() -> None:
    method, some = made("vae", BERNOULLI | {"binarise": "static"}), batch(16)
    one, many = (measured(method, some, (1, 8, 8), bound_samples=count) for count in (1, 200))
    assert many["iwae_200"].value < one["iwae_1"].value
    assert many["bits_per_dimension"].value == pytest.approx(
        many["iwae_200"].value / (64 * math.log(2))
    )
    assert many["bits_per_dimension"].floor == {"even chances": 1.0}


def test_grey_pixels_have_a_cross_entropy_and_no_bits() -> None:
    found = measured(made("vae", BERNOULLI), batch(4), (1, 8, 8), bound_samples=2)
    assert "bits_per_dimension" not in found
    assert found["negative_elbo"].protocol["binarise"] == "none"
