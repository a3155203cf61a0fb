"""A hierarchical variational autoencoder: latent maps of many sizes (VDVAE, Child 2021).

A map is drawn given all smaller ones, so a large one holds what the small ones leave open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from udl_dist.core import rng
from udl_dist.core.config_schema import setting
from udl_dist.errors import UsageError
from udl_dist.methods.losses import likelihoods, priors
from udl_dist.methods.method import Batch, Loss, Method, Phase, Shape
from udl_dist.methods.networks.ladder import (
    Choice,
    LadderDecoder,
    LadderEncoder,
    LatentMap,
    plan_of,
)
from udl_dist.methods.networks.layers import SMALL

DEAD = 0.01  # nats of an image: maps of a size with less tell nothing


@dataclass(frozen=True)
class LadderSettings:
    """Settings of the networks and of the likelihood."""

    width: int = setting(64, "channels of all maps", low=4)
    latent_channels: int = setting(8, "channels of each latent map", low=1)
    blocks: tuple[int, ...] = setting(
        (),
        "latent maps of each size, the whole image first and each next size half as large, such as"
        " 0,2,2,1; empty: 2 of each size up to 32 pixels that is smaller than the image, 1 of one"
        " pixel",
        low=0,
    )
    likelihood: Literal["bernoulli", "logistic"] = setting(
        "logistic",
        "the distribution of a pixel: of 256 levels a mixture of 10 logistics, or black and white",
    )
    binarise: Literal["none", "static", "epoch"] = setting(
        "none", "bernoulli: pixels are drawn black or white, once for all epochs or again in each"
    )


class LadderVAE(Method):
    """Minimises -log p(x|z) + Σ KL(q(z_l|z_<l, x) ‖ p(z_l|z_<l)) over the latent maps z_l.

    A code is the smallest map alone. `decode` gives those that follow the means of their priors;
    `reconstruct` takes the means of all posteriors, and `sample` draws all of them.
    """

    Settings = LadderSettings
    defaults: ClassVar = {
        "train.batch_size": 32,
        "train.optimizer": "adamw",
        "train.beta2": 0.9,
        "train.average_half_life": 50_000,
        "train.average_share": 0.05,
    }
    best = "negative_elbo"
    incomparable: ClassVar = {
        **dict.fromkeys(("negative_elbo", "reconstruction"), ("likelihood", "binarise")),
        "kl": (),
    }
    density = False
    settings: LadderSettings

    def __init__(
        self, settings: LadderSettings, shape: Shape, classes: tuple[str, ...] = ()
    ) -> None:
        super().__init__(settings, shape, classes)
        if settings.likelihood == "logistic" and settings.binarise != "none":
            raise UsageError("method.binarise has no meaning when method.likelihood is logistic")
        self.plan = plan_of(settings.blocks, settings.width, settings.latent_channels, shape)
        self.latent_shape = (settings.latent_channels, *self.plan.sides[-1])
        outputs = likelihoods.outputs(settings.likelihood, shape)[0]
        gain = 1.0 if settings.likelihood == "logistic" else SMALL
        self.encoder = LadderEncoder(shape[0], self.plan)
        self.decoder = LadderDecoder(outputs, self.plan, gain)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(("encoder", "decoder"), self.loss),)

    def loss(self, batch: Batch) -> Loss:
        """The negative ELBO; plots have the KL of each size of map."""
        values = {name: value.mean() for name, value in self._bound(batch).items()}
        return Loss(values["negative_elbo"], values)

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """The bound and its terms, and the squared error of `reconstruct` for pixels in [0, 1]."""
        errors = (self.reconstruct(batch.images) - batch.images) / 2
        return self._bound(batch) | {"mse": errors.square().flatten(1).mean(1)}

    def encode(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, z, h, w]
        """The means of the smallest map."""
        return self._means(images)[0][0].latents

    # [B, C, H, W] -> [B, C, H, W]
    def reconstruct(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return self._mean_image(self._means(images)[1])

    # [B, z, h, w] -> [B, C, H, W]
    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        def choose(number: int, prior: Tensor, posterior: Tensor | None) -> Tensor:
            return _moments(prior)[0] if number else latents

        return self._mean_image(self.decoder(len(latents), None, choose)[1])

    def prior(self, keys: Tensor) -> Tensor:  # [N] int64 -> [N, z, h, w]
        """The smallest map, drawn; its prior is learned."""
        return self._sampled(keys)[0][0].latents

    # [N] int64 -> [N, C, H, W]
    def sample(self, keys: Tensor, labels: Tensor | None = None) -> Tensor:
        return self._mean_image(self._sampled(keys)[1])

    def log_weights(self, batch: Batch, keys: Tensor) -> Tensor:  # [K, B] int64 -> [K, B]
        images = self.targets(batch)
        maps = [each.repeat(len(keys), 1, 1, 1) for each in self.encoder(images)]
        found, output = self.decoder(keys.numel(), maps, _drawing(keys.flatten()))
        repeated = images.repeat(len(keys), 1, 1, 1)
        surprise = self._surprise(repeated, output)
        return (torch.stack([_log_ratio(each) for each in found]).sum(0) - surprise).view(
            keys.shape
        )

    def pixel_levels(self) -> int:
        if self.settings.likelihood == "logistic":
            return 256
        return 0 if self.settings.binarise == "none" else 2

    def alarms(self, metrics: Mapping[str, float], seen: int) -> dict[str, str]:
        """Sizes of maps whose KL is almost zero: what they draw tells nothing about an image."""
        dead = [
            f"{name} {metrics[f'val/{name}']:.2g} nats"
            for name in self._kl_names()
            if metrics.get(f"val/{name}", math.inf) < DEAD
        ]
        if not dead:
            return {}
        advice = "give method.blocks fewer maps of these sizes, or train for longer"
        return {"dead levels": f"{', '.join(dead)}: {advice}"}

    def targets(self, batch: Batch) -> Tensor:  # -> [B, C, H, W]
        """The images whose likelihood is taken: as they are, or each pixel drawn as -1 or 1."""
        if self.settings.binarise == "none":
            return batch.images
        keys = batch.record_keys if self.settings.binarise == "static" else batch.keys
        return likelihoods.binarised(batch.images, keys)

    def _bound(self, batch: Batch) -> dict[str, Tensor]:  # each [B]
        images = self.targets(batch)
        found, output = self.decoder(len(images), self.encoder(images), _drawing(batch.keys))
        kls = dict.fromkeys(self._kl_names(), torch.zeros_like(batch.keys, dtype=images.dtype))
        for each in found:
            kls[_name(each.side)] = kls[_name(each.side)] + _kl(each)
        surprise, kl = self._surprise(images, output), torch.stack([*kls.values()]).sum(0)
        whole = {"reconstruction": surprise, "kl": kl, "negative_elbo": surprise + kl}
        return whole | kls

    def _kl_names(self) -> list[str]:
        plan = self.plan
        return [_name(side) for side, n in zip(plan.sides, plan.blocks, strict=True) if n]

    def _means(self, images: Tensor) -> tuple[list[LatentMap], Tensor]:
        def choose(number: int, prior: Tensor, posterior: Tensor | None) -> Tensor:
            assert posterior is not None
            return _moments(posterior)[0]

        found: tuple[list[LatentMap], Tensor] = self.decoder(
            len(images), self.encoder(images), choose
        )
        return found

    def _sampled(self, keys: Tensor) -> tuple[list[LatentMap], Tensor]:
        found: tuple[list[LatentMap], Tensor] = self.decoder(len(keys), None, _drawing(keys))
        return found

    def _surprise(self, images: Tensor, output: Tensor) -> Tensor:  # -> [B]
        output = output.to(images.dtype)
        return likelihoods.surprise(self.settings.likelihood, images, output, None)

    def _mean_image(self, output: Tensor) -> Tensor:
        return likelihoods.mean_image(self.settings.likelihood, output, self.shape[0])


def _drawing(keys: Tensor) -> Choice:
    """Draws each map by keys, [B]: from its posterior, or else from its prior."""

    def choose(number: int, prior: Tensor, posterior: Tensor | None) -> Tensor:
        mean, logvar = _moments(prior if posterior is None else posterior)
        name = f"latent {number}" if number else "latent"
        noise = rng.normal(keys, name, tuple(mean.shape[1:])).to(mean.dtype)
        return mean + (logvar / 2).exp() * noise

    return choose


def _moments(numbers: Tensor) -> tuple[Tensor, Tensor]:  # [B, 2z, h, w] -> [B, z, h, w] twice
    mean, logvar = numbers.chunk(2, 1)
    return mean, priors.bounded(logvar)


def _kl(drawn: LatentMap) -> Tensor:  # -> [B]
    """KL(q ‖ p) of two diagonal Gaussians in nats, summed over the map."""
    assert drawn.posterior is not None
    (mean, logvar), (other, spread) = _moments(drawn.posterior), _moments(drawn.prior)
    ratio = (logvar.exp() + (mean - other).square()) * (-spread).exp()
    return (ratio - 1 + spread - logvar).flatten(1).sum(1) / 2


def _log_ratio(drawn: LatentMap) -> Tensor:  # -> [B]
    """log p(z) - log q(z) of the drawn map."""
    assert drawn.posterior is not None
    latents = drawn.latents.flatten(1)
    prior, posterior = (
        priors.log_normal(latents, *(value.flatten(1) for value in _moments(numbers)))
        for numbers in (drawn.prior, drawn.posterior)
    )
    return prior - posterior


def _name(side: tuple[int, int]) -> str:
    return f"kl_{side[0]}x{side[1]}"
