"""Spectral normalisation against torch.linalg, and that it moves once a step alone."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.methods.cases import batch, made
from udl_dist.methods.networks import spectral_norm
from udl_dist.methods.networks.layers import conv, linear

KINDS = ("resnet", "dcgan", "article", "conv")


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(conv(3, 8), nn.LeakyReLU(), nn.Flatten(), linear(8 * 16, 5))


def largest(weight: torch.Tensor) -> float:
    return float(torch.linalg.svdvals(weight.detach().flatten(1).double())[0])


def test_weights_come_to_the_largest_singular_value_one() -> None:
    plain = network()
    normed = copy.deepcopy(plain)
    spectral_norm.normalise(normed)
    for _ in range(200):
        spectral_norm.iterate(normed)
    for place in (0, 3):
        weight, before = normed[place].weight, plain[place].weight
        torch.testing.assert_close(weight, before / largest(before), rtol=1e-5, atol=1e-7)
        assert largest(weight) == pytest.approx(1, rel=1e-5)


def test_the_first_estimate_is_near_and_follows_a_moving_weight() -> None:
    normed = network()
    spectral_norm.normalise(normed)
    original = normed[0].parametrizations["weight"].original
    assert largest(normed[0].weight) == pytest.approx(1, abs=0.05)
    for step in range(60):
        with torch.no_grad():
            original += 0.01 * torch.randn(
                original.shape, generator=torch.Generator().manual_seed(step)
            )
        spectral_norm.iterate(normed)
    assert largest(normed[0].weight) == pytest.approx(1, abs=0.05)


def test_its_gradient_is_that_of_a_weight_over_its_singular_value() -> None:
    normed = network().double()
    spectral_norm.normalise(normed)
    for _ in range(4000):
        spectral_norm.iterate(normed)
    stored = normed[3].parametrizations["weight"]
    weight = stored.original.detach().clone().requires_grad_(True)
    by_svd = (weight / torch.linalg.svdvals(weight)[0]).sin().sum()
    (wanted,) = torch.autograd.grad(by_svd, weight)
    (found,) = torch.autograd.grad(normed[3].weight.sin().sum(), stored.original)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_all_layers_of_a_discriminator_are_normalised_and_nothing_is_zero(kind: str) -> None:
    settings = {"discriminator": kind, "spectral_norm": True, "conditional": True}
    method = made("gan", settings)
    weights = [
        layer.weight
        for layer in method.discriminator.modules()
        if isinstance(getattr(layer, "weight", None), torch.Tensor)
        and layer.weight.dim() > 1
        and not isinstance(layer, nn.Embedding)
    ]
    assert len(weights) >= 2
    for weight in weights:
        assert largest(weight) == pytest.approx(1, abs=0.3)
    assert method.discriminator_loss(batch()).value.isfinite()


def test_only_a_step_moves_the_estimate() -> None:
    method = made("gan", {"spectral_norm": True, "width": 4})
    before = [buffer.clone() for buffer in method.own_buffers()]
    method.train()
    for phase in method.phases():
        phase.loss(batch())
    assert before
    assert all(map(torch.equal, method.own_buffers(), before))
    method.after_step({})
    # But not the last layer's, of one row, whose singular vectors are found at once.
    moved = [
        not torch.equal(now, old) for now, old in zip(method.own_buffers(), before, strict=True)
    ]
    assert sum(moved) >= 2
    assert not made("gan", {"width": 4}).own_buffers()
