"""A conditional VAE: encoder and decoder see the class of an image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from udl_dist.core import rng
from udl_dist.core.config_schema import setting
from udl_dist.methods.method import Batch, Loss, Method, Phase, Shape
from udl_dist.methods.networks import NetworkSettings, decoder, encoder
from udl_dist.methods.networks.layers import ClassEmbedding


@dataclass(frozen=True)
class LabelledSettings:
    latent_dim: int = setting(4, "dimensions of the latent", low=1)
    network: NetworkSettings = setting(NetworkSettings, "the encoder; the decoder mirrors it")


class LabelledVAE(Method):
    Settings = LabelledSettings
    best = "negative_elbo"
    conditional = True

    def __init__(
        self, settings: LabelledSettings, shape: Shape, classes: tuple[str, ...] = ()
    ) -> None:
        super().__init__(settings, shape, classes)
        self.latent_shape = (settings.latent_dim,)
        self.embedding = ClassEmbedding(classes)
        self.encoder = encoder(settings.network, shape, (2 * settings.latent_dim,))
        inputs = settings.latent_dim + self.embedding.size
        self.decoder = decoder(settings.network, (inputs,), shape)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(tuple(self.networks), self.loss),)

    def terms(self, batch: Batch) -> tuple[Tensor, Tensor]:  # -> [B], [B]
        mean, logvar = self.encoder(batch.images).chunk(2, 1)
        noise = rng.normal(batch.keys, "latent", self.latent_shape)
        output = self.decode(mean + (logvar / 2).exp() * noise, batch.labels)
        error = (output - batch.images).square().flatten(1).sum(1)
        return error, (mean.square() + logvar.exp() - 1 - logvar).sum(1) / 2

    def loss(self, batch: Batch) -> Loss:
        error, kl = self.terms(batch)
        return Loss((error + kl).mean(), {"error": error.mean(), "kl": kl.mean()})

    def encode(self, images: Tensor) -> Tensor:
        mean: Tensor = self.encoder(images).chunk(2, 1)[0]
        return mean

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        assert labels is not None
        images: Tensor = self.decoder(self.embedding(latents, labels)).tanh()
        return images

    def prior(self, keys: Tensor) -> Tensor:
        return rng.normal(keys, "latent", self.latent_shape)

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        return {"negative_elbo": torch.stack(self.terms(batch)).sum(0)}
