"""A GAN of three networks, of which one is frozen: its features of both sets are matched too."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from udl_dist.core import rng
from udl_dist.core.config_schema import setting
from udl_dist.methods.method import Batch, Loss, Method, Phase, Shape
from udl_dist.methods.networks import NetworkSettings, decoder, encoder


@dataclass(frozen=True)
class FeatureGANSettings:
    latent_dim: int = setting(8, "normal numbers that an image is made from", low=1)
    matching: float = setting(0.1, "weight of the distance of features", low=0)
    network: NetworkSettings = setting(NetworkSettings, "both networks")


class FeatureGAN(Method):
    Settings = FeatureGANSettings
    frozen = ("features",)

    def __init__(
        self, settings: FeatureGANSettings, shape: Shape, classes: tuple[str, ...] = ()
    ) -> None:
        super().__init__(settings, shape, classes)
        self.latent_shape = (settings.latent_dim,)
        self.generator = decoder(settings.network, self.latent_shape, shape, gain=1.0)
        self.discriminator = encoder(settings.network, shape, (1,))
        # No file holds them, so they are the same in every process.
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.features = nn.Sequential(nn.Conv2d(shape[0], 8, 3, 2, 1), nn.BatchNorm2d(8))

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase(("discriminator",), self.discriminator_loss),
            Phase(("generator",), self.generator_loss),
        )

    def averaged(self) -> tuple[str, ...]:
        return ("generator",)

    def discriminator_loss(self, batch: Batch) -> Loss:
        with torch.no_grad():
            fake = self.sample(batch.keys)
        on_real, on_fake = self.discriminator(torch.cat([batch.images, fake])).chunk(2)
        loss = (functional.softplus(-on_real) + functional.softplus(on_fake)).mean()
        return Loss(loss, {"discriminator": loss})

    def generator_loss(self, batch: Batch) -> Loss:
        fake = self.sample(batch.keys)
        loss = functional.softplus(-self.discriminator(fake)).mean()
        # Image by image, so that the loss is a mean over images at any batch size.
        distance = functional.mse_loss(self.features(fake), self.features(batch.images))
        return Loss(loss + self.settings.matching * distance, {"matching": distance})

    def prior(self, keys: Tensor) -> Tensor:
        return rng.normal(keys, "latent", self.latent_shape)

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        images: Tensor = self.generator(latents).tanh()
        return images
