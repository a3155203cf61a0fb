"""An autoencoder, and a network that learns later what it leaves out, by its own optimiser."""

from dataclasses import dataclass

import torch
from torch import Tensor

from udl_dist.core.config_schema import setting
from udl_dist.methods.method import Batch, Loss, Method, Phase, PhaseOptimizer, Shape
from udl_dist.methods.networks import NetworkSettings, decoder, encoder


@dataclass(frozen=True)
class RefinerSettings:
    latent_dim: int = setting(4, "numbers in the latent of an image", low=1)
    start_images: int = setting(96, "images after which the refiner learns", low=0)
    network: NetworkSettings = setting(NetworkSettings, "the encoder; the decoders mirror it")


class LateRefiner(Method):
    Settings = RefinerSettings
    best = "mse"

    def __init__(
        self, settings: RefinerSettings, shape: Shape, classes: tuple[str, ...] = ()
    ) -> None:
        super().__init__(settings, shape, classes)
        self.latent_shape = (settings.latent_dim,)
        self.encoder = encoder(settings.network, shape, self.latent_shape)
        self.decoder = decoder(settings.network, self.latent_shape, shape)
        self.refiner = decoder(settings.network, self.latent_shape, shape)

    def phases(self) -> tuple[Phase, ...]:
        own = PhaseOptimizer(rate=3.0, beta1=0.0, beta2=0.9)
        start = self.settings.start_images
        return (
            Phase(("encoder", "decoder"), self.loss),
            Phase(("refiner",), self.refiner_loss, every=2, start_images=start, optimizer=own),
        )

    def loss(self, batch: Batch) -> Loss:
        error = self._errors(self.decoder(self.encode(batch.images)).tanh(), batch).mean()
        return Loss(error, {"error": error})

    def refiner_loss(self, batch: Batch) -> Loss:
        with torch.no_grad():
            latents = self.encode(batch.images)
            first = self.decoder(latents).tanh()
        error = self._errors(first + self.refiner(latents), batch).mean()
        return Loss(error, {"refined": error})

    def encode(self, images: Tensor) -> Tensor:
        latents: Tensor = self.encoder(images)
        return latents

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        whole: Tensor = self.decoder(latents).tanh() + self.refiner(latents)
        return whole.clamp(-1, 1)

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        return {"mse": self._errors(self.reconstruct(batch.images), batch)}

    def _errors(self, output: Tensor, batch: Batch) -> Tensor:  # -> [B]
        return (output - batch.images).square().flatten(1).mean(1)
