"""A VQ-VAE (van den Oord et al. 2017) in miniature: its codebook is a moving average of codes."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from udl_dist.core.config_schema import setting
from udl_dist.methods.method import Batch, Loss, Method, Phase, Shape
from udl_dist.methods.networks import NetworkSettings, decoder, encoder


@dataclass(frozen=True)
class CodebookSettings:
    codes: int = setting(16, "entries of the codebook", low=2)
    channels: int = setting(4, "numbers of an entry", low=1)
    side: int = setting(2, "height and width of the map of codes", low=1)
    beta: float = setting(0.25, "weight of the commitment loss", low=0)
    decay: float = setting(0.9, "of the codebook's moving average, in a step", low=0, below=1)
    network: NetworkSettings = setting(NetworkSettings, "the encoder; the decoder mirrors it")


class CodebookVAE(Method):
    Settings = CodebookSettings
    best = "mse"
    codebook: Tensor
    counts: Tensor
    totals: Tensor

    def __init__(
        self, settings: CodebookSettings, shape: Shape, classes: tuple[str, ...] = ()
    ) -> None:
        super().__init__(settings, shape, classes)
        self.latent_shape = (settings.channels, settings.side, settings.side)
        self.encoder = encoder(settings.network, shape, self.latent_shape)
        self.decoder = decoder(settings.network, self.latent_shape, shape)
        codebook = torch.randn(settings.codes, settings.channels)
        self.register_buffer("codebook", codebook)
        self.register_buffer("counts", torch.ones(settings.codes))
        self.register_buffer("totals", codebook.clone())

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(("encoder", "decoder"), self.loss),)

    def nearest(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The codes nearest to [B, C, h, w], and which they are as [B·h·w, K] zeros and ones."""
        rows = latents.permute(0, 2, 3, 1).flatten(0, 2)  # [B·h·w, C]
        index = torch.cdist(rows, self.codebook).argmin(1)
        one_hot = (index[:, None] == torch.arange(len(self.codebook), device=index.device)).float()
        codes = (one_hot @ self.codebook).view(len(latents), *latents.shape[2:], -1)
        return codes.permute(0, 3, 1, 2), one_hot

    def loss(self, batch: Batch) -> Loss:
        latents = self.encoder(batch.images)
        codes, one_hot = self.nearest(latents)
        # The gradient of the codes goes straight to the encoder.
        output = self.decoder(latents + (codes - latents).detach()).tanh()
        error = (output - batch.images).square().flatten(1).sum(1).mean()
        commitment = functional.mse_loss(latents, codes)
        rows = latents.detach().permute(0, 2, 3, 1).flatten(0, 2)
        sums = {"counts": one_hot.sum(0), "totals": one_hot.T @ rows}
        return Loss(error + self.settings.beta * commitment, {"error": error}, sums)

    def after_step(self, sums: Mapping[str, Tensor]) -> None:
        weight = 1 - self.settings.decay
        self.counts.lerp_(sums["counts"], weight)
        self.totals.lerp_(sums["totals"], weight)
        self.codebook.copy_(self.totals / self.counts.clamp(min=1e-3)[:, None])

    def encode(self, images: Tensor) -> Tensor:
        return self.nearest(self.encoder(images))[0]

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        images: Tensor = self.decoder(latents).tanh()
        return images

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        errors = (self.reconstruct(batch.images) - batch.images).div(2).square().flatten(1)
        return {"mse": errors.mean(1)}
