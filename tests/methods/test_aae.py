"""The adversarial autoencoder: its losses by hand, what each phase moves, and normal codes."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.methods.cases import DENSE, batch, made
from udl_dist.core import rng
from udl_dist.methods.method import Batch
from udl_dist.methods.metrics import gaussianity

SMALL = DENSE | {"discriminator_widths": [16]}
CHANCE = 2 * math.log(2)


class Pixels(nn.Module):
    """A code of an image's first pixels, less `shift`."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :3] - self.shift


def normal_codes(count: int, seed: int) -> Batch:
    """Images whose first pixels are normal numbers of other keys than the prior draws."""
    images = rng.normal(rng.keys(seed, count), "pixels", (1, 8, 8))
    return Batch(images, rng.keys(seed + 1, count), rng.keys(seed + 2, count), 0)


def discriminated(method: Any, steps: int = 60) -> float:
    """The loss on new images of a discriminator that has learned."""
    optimiser = torch.optim.Adam(method.discriminator.parameters(), lr=1e-2)
    for step in range(steps):
        optimiser.zero_grad()
        method.discriminator_loss(normal_codes(256, 10 * step)).value.backward()
        optimiser.step()
    return float(method.discriminator_loss(normal_codes(4096, 7001)).value.detach())


def test_the_losses_are_those_of_the_article_from_logits() -> None:
    method, data = made("aae", SMALL | {"adversary_weight": 3.0}), batch()
    latents = method.encoder(data.images)
    on_codes = method.discriminator(latents)
    on_normal = method.discriminator(rng.normal(data.keys, "latent", (3,)))
    ones = torch.ones_like(on_codes)
    entropy = functional.binary_cross_entropy_with_logits
    wanted = entropy(on_normal, ones) + entropy(on_codes, 0 * ones)
    torch.testing.assert_close(method.discriminator_loss(data).value, wanted)
    error = (method.decoder(latents).tanh() - data.images).square().flatten(1).sum(1).mean()
    loss = method.loss(data)
    torch.testing.assert_close(loss.value, error + 3 * entropy(on_codes, ones))
    torch.testing.assert_close(loss.plots["reconstruction"], error)
    torch.testing.assert_close(
        method.measure(data)["mse"],
        (method.reconstruct(data.images) - data.images).div(2).square().flatten(1).mean(1),
    )


def test_normal_codes_leave_the_discriminator_at_chance_and_others_do_not() -> None:
    method = made("aae", SMALL)
    method.encoder = Pixels()
    assert discriminated(method) == pytest.approx(CHANCE, abs=0.03)
    method = made("aae", SMALL)
    method.encoder = Pixels(2.0)
    assert discriminated(method) < 0.5 * CHANCE


def test_the_discriminator_s_phase_leaves_the_autoencoder_untouched() -> None:
    method = made("aae", SMALL)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.discriminator_loss(batch()).value.backward()
    assert all(value.grad is None for value in method.encoder.parameters())
    assert all(value.grad is None for value in method.decoder.parameters())
    torch.optim.Adam([v for v in method.parameters() if v.grad is not None]).step()
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]) is not name.startswith("discriminator")


def test_the_encoder_moves_its_codes_to_the_prior() -> None:
    method = made("aae", SMALL | {"adversary_weight": 100.0})
    method.encoder = Pixels(2.0)
    discriminated(method)
    optimiser = torch.optim.Adam(method.encoder.parameters(), lr=0.05)
    for step in range(20):
        optimiser.zero_grad()
        method.loss(normal_codes(64, step)).value.backward()
        optimiser.step()
    assert 0.0 < float(method.encoder.shift.detach()) < 1.8


def test_moments_are_those_of_scipy_and_add_up_over_ranks() -> None:
    random = np.random.default_rng(0)
    rows = np.stack([random.gamma(3, size=900), random.standard_t(9, size=900) + 50], 1)
    rows = np.concatenate([rows, rows[:, :1] * 2 - rows[:, 1:]], 1)
    latents = torch.from_numpy(rows)
    parts = [gaussianity.moments(part) for part in torch.split(latents, 400)]
    means = {name: torch.cat([part[name] for part in parts]).mean(0) for name in parts[0]}
    found = gaussianity.metrics(means)
    std = rows.std(0)
    correlations = np.asarray(np.corrcoef(rows.T))[np.triu_indices(3, 1)]
    assert found == pytest.approx(
        {
            "code_mean": math.sqrt((rows.mean(0) ** 2).mean()),
            "code_std": math.sqrt((std**2).mean()),
            "skewness": np.abs(scipy.stats.skew(rows)).mean(),
            "excess_kurtosis": np.abs(scipy.stats.kurtosis(rows)).mean(),
            "correlation": math.sqrt((correlations**2).mean()),
        },
        rel=1e-6,
    )


def test_normal_numbers_are_normal_beside_a_dimension_without_variance() -> None:
    rows = rng.normal(rng.keys(1, 20_000), "rows", (4,))
    rows = torch.cat([rows, torch.full((20_000, 1), 0.1)], 1)
    means = {name: value.mean(0) for name, value in gaussianity.moments(rows).items()}
    found = gaussianity.metrics(means)
    assert found.pop("code_std") == pytest.approx(math.sqrt(0.8), abs=0.01)
    assert max(found.values()) < 0.05


def test_many_or_single_latents_have_no_pairs() -> None:
    for size in (1, 257):
        means = {
            name: value.mean(0) for name, value in gaussianity.moments(torch.randn(9, size)).items()
        }
        assert "correlation" not in gaussianity.metrics(means)


def test_alarms_name_a_discriminator_that_wins() -> None:
    method = made("aae", SMALL)
    assert not method.alarms({"train/discriminator": 1.2, "val/latent_scale": 1.0}, 1000)
    assert "codes are not normal" in method.alarms({"train/discriminator": 0.01}, 1000)
    assert "exploding scale" in method.alarms({"val/latent_scale": 500.0}, 1000)
