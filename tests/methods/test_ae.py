"""The autoencoder's losses and noises by hand."""

import pytest
import torch

from tests.methods.cases import DENSE, batch, made
from udl_dist.core import rng
from udl_dist.methods.method import Batch

TIED = {"latent_dim": 3, "network.kind": "dense", "tied": True}


def test_the_loss_is_the_squared_error_summed_over_pixels() -> None:
    method, data = made("ae", DENSE), batch()
    outputs = torch.tanh(method.decoder(method.encoder(data.images)))
    by_hand = sum(((data.images[i] - outputs[i]) ** 2).sum() for i in range(6)) / 6
    loss = method.loss(data)
    torch.testing.assert_close(loss.value, by_hand)
    torch.testing.assert_close(loss.plots["reconstruction"], by_hand)
    torch.testing.assert_close(method.measure(data)["reconstruction"].mean(), by_hand)
    pixels = ((data.images + 1) / 2 - (outputs + 1) / 2).square().mean()
    torch.testing.assert_close(method.measure(data)["mse"].mean(), pixels)


def test_the_article_s_network_has_its_layers() -> None:
    method = made(
        "ae",
        {"latent_dim": 32, "network.kind": "dense", "network.widths": [64], "network.norm": "none"},
        (1, 28, 28),
    )
    shapes = [tuple(value.shape) for value in method.parameters() if value.dim() == 2]
    assert shapes == [(64, 784), (32, 64), (64, 32), (784, 64)]
    assert method.reconstruct(-torch.ones(1, 1, 28, 28)).min() < 0


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_tied_weights_give_the_energy_of_the_transpose(activation: str) -> None:
    method, data = made("ae", TIED | {"network.activation": activation}), batch()
    (weights, inner), (outer,) = (
        method.encoder.parameters(),
        method.decoder.parameters(),
    )
    with torch.no_grad():
        inner.normal_()
        outer.normal_()
    by_hand = []
    for image in data.images.flatten(1):
        latent = getattr(torch, activation)(weights @ image + inner)
        by_hand.append(0.5 * (image - (weights.T @ latent + outer)).square().sum())
    torch.testing.assert_close(method.loss(data).value, torch.stack(by_hand).mean())
    assert weights.shape == (3, 64)
    assert sum(value.numel() for value in method.parameters()) == 3 * 64 + 3 + 64


def test_the_target_of_denoising_is_clean() -> None:
    method, data = made("ae", DENSE | {"noise": "gaussian", "noise_level": 0.7}), batch()
    damaged = method.damage(data)
    assert not torch.equal(damaged, data.images)
    outputs = torch.tanh(method.decoder(method.encoder(damaged)))
    torch.testing.assert_close(method.loss(data).value, (outputs - data.images).square().sum() / 6)


def greys(count: int = 400) -> Batch:
    return Batch(torch.full((count, 1, 8, 8), 0.25), rng.keys(0, count), rng.keys(1, count), 0)


def test_gaussian_noise_has_the_level_asked() -> None:
    noise = made("ae", DENSE | {"noise": "gaussian", "noise_level": 0.3}).damage(greys()) - 0.25
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 0.3) < 0.01


@pytest.mark.parametrize(
    ("noise", "level", "shares"),
    [("mask", 0.3, {-1.0: 0.3}), ("salt_and_pepper", 0.4, {-1.0: 0.2, 1.0: 0.2})],
)
def test_noise_sets_the_share_asked_to_black_or_white(
    noise: str, level: float, shares: dict[float, float]
) -> None:
    damaged = made("ae", DENSE | {"noise": noise, "noise_level": level}).damage(greys())
    assert set(damaged.unique().tolist()) == {0.25, *shares}
    for value, share in shares.items():
        assert abs((damaged == value).float().mean() - share) < 0.01


@pytest.mark.parametrize("noise", ["gaussian", "mask", "salt_and_pepper", "patches"])
def test_noise_depends_on_the_key_and_on_nothing_else(noise: str) -> None:
    method, data = made("ae", DENSE | {"noise": noise, "noise_level": 0.5}), greys(20)
    later = Batch(data.images, data.keys, rng.keys(9, 20), 5000)
    assert torch.equal(method.damage(data), method.damage(later))
    other = Batch(data.images, rng.keys(9, 20), data.record_keys, 0)
    assert not torch.equal(method.damage(data), method.damage(other))


PATCHES = DENSE | {"noise": "patches", "noise_level": 0.5, "patch": 3}


def test_the_same_number_of_whole_patches_is_masked_in_each_image() -> None:
    method, data = made("ae", PATCHES, (2, 8, 10)), rng.keys(3, 900)
    images = torch.full((900, 2, 8, 10), 0.25)
    damaged = method.damage(Batch(images, data, data, 0))
    # 3 rows and 4 columns of patches, of which the last are cut off by the border.
    blocks = torch.full((900, 9, 12), float("nan"))
    blocks[:, :8, :10] = damaged[:, 0]
    blocks = blocks.view(900, 3, 3, 4, 3).permute(0, 1, 3, 2, 4).flatten(3)
    some = blocks.nanmean(3)
    assert ((some == 0) | (some == 0.25)).all()
    assert ((some == 0).sum((1, 2)) == 6).all()
    assert torch.equal(damaged[:, 0], damaged[:, 1])
    # Every patch of all equally often.
    torch.testing.assert_close(
        (some == 0).float().mean(0), torch.full((3, 4), 0.5), atol=0.07, rtol=0
    )


def test_the_error_is_of_masked_pixels_alone() -> None:
    method, data = made("ae", PATCHES, (3, 8, 8)), batch(shape=(3, 8, 8))
    damaged = method.damage(data)
    hidden = damaged != data.images
    outputs = torch.tanh(method.decoder(method.encoder(damaged)))
    squares = torch.where(hidden, (outputs - data.images).square(), 0.0).flatten(1).sum(1)
    torch.testing.assert_close(method.loss(data).value, squares.mean())
    found = method.measure(data)
    torch.testing.assert_close(found["reconstruction"], squares)
    torch.testing.assert_close(found["mse"], squares / 4 / hidden.flatten(1).sum(1))
    # What is seen is no target.
    (slope,) = torch.autograd.grad(
        method._error(data, leaf := outputs.detach().requires_grad_()).sum(), leaf
    )
    assert torch.equal(slope != 0, hidden)
