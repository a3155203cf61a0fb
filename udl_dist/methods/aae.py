"""The adversarial autoencoder: codes that a discriminator cannot tell from N(0, 1) (Makhzani et al.
2016).

So it samples, as a variational autoencoder does, without a density of codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from udl_dist.core import rng
from udl_dist.core.config_schema import setting
from udl_dist.methods.method import Batch, Loss, Method, Phase, Shape
from udl_dist.methods.metrics import gaussianity
from udl_dist.methods.metrics.alarms import exploding
from udl_dist.methods.networks import ChainSettings, NetworkSettings, decoder, encoder

BEATEN = 0.1  # of the discriminator's loss, which is 2 log 2 = 1.39 where it can tell nothing


@dataclass(frozen=True)
class AAESettings:
    """Settings of the networks and of the weight of the adversary."""

    latent_dim: int = setting(32, "numbers in the latent of an image", low=1)
    network: NetworkSettings = setting(NetworkSettings, "the encoder; the decoder mirrors it")
    adversary_weight: float = setting(
        10.0, "of the adversary, next to an error that is a sum over pixels", above=0
    )
    discriminator_widths: tuple[int, ...] = setting(
        (512, 512), "features of the hidden layers of the discriminator of latents", low=1
    )


class AdversarialAutoencoder(Method):
    """Minimises Σ(x - y)² over pixels in [-1, 1] + w · softplus(-D(z)), z the code of x.

    The discriminator D, whose logits say how normal a code is, minimises softplus(-D(n)) +
    softplus(D(z)), n ~ N(0, 1): the cross-entropy of section 2 with the non-saturating loss for the
    encoder, from logits, since log sigmoid(-40) is not finite.
    """

    Settings = AAESettings
    defaults: ClassVar = {
        "train.batch_size": 32,
        "train.schedule": "cosine",
        "train.beta1": 0.5,
    }
    best = "mse"
    incomparable: ClassVar = dict.fromkeys(("code_mean", "code_std", "latent_scale"), ())
    settings: AAESettings

    def __init__(self, settings: AAESettings, shape: Shape, classes: tuple[str, ...] = ()) -> None:
        super().__init__(settings, shape, classes)
        self.latent_shape = (settings.latent_dim,)
        self.encoder = encoder(settings.network, shape, self.latent_shape)
        self.decoder = decoder(settings.network, self.latent_shape, shape)
        # Without a norm, which would hide the scale of codes from it.
        layers = ChainSettings("dense", settings.discriminator_widths, 0, "none", "leaky_relu")
        self.discriminator = encoder(layers, (settings.latent_dim, 1, 1), (1,))

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase(("encoder", "decoder"), self.loss),
            Phase(("discriminator",), self.discriminator_loss),
        )

    def averaged(self) -> tuple[str, ...]:
        return "encoder", "decoder"

    def loss(self, batch: Batch) -> Loss:
        """The error, and what the discriminator thinks of the codes."""
        latents = self.encode(batch.images)
        reconstruction = self._errors(batch.images, latents).mean()
        adversary = functional.softplus(-self._logits(latents)).mean()
        plots = {"reconstruction": reconstruction, "adversary": adversary}
        return Loss(reconstruction + self.settings.adversary_weight * adversary, plots)

    def discriminator_loss(self, batch: Batch) -> Loss:
        """The cross-entropy of normal numbers and codes."""
        with torch.no_grad():
            latents = self.encode(batch.images)
        normal = self.prior(batch.keys).to(latents.dtype)
        # One forward over both: two before one backward fail under DDP with buffers.
        on_normal, on_codes = self._logits(torch.cat([normal, latents])).chunk(2)
        loss = (functional.softplus(-on_normal) + functional.softplus(on_codes)).mean()
        return Loss(loss, {"discriminator": loss})

    def encode(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, Z]
        latents: Tensor = self.encoder(images)
        return latents.to(images.dtype)

    # [B, Z] -> [B, C, H, W]
    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        output: Tensor = self.decoder(latents)
        return output.tanh()

    def prior(self, keys: Tensor) -> Tensor:  # [N] int64 -> [N, Z]
        return rng.normal(keys, "latent", self.latent_shape)

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """The error as trained, and per pixel in [0, 1]; moments of the code."""
        latents = self.encode(batch.images)
        reconstruction = self._errors(batch.images, latents)
        # A difference in [-1, 1] is twice that in [0, 1].
        mse = reconstruction / (4 * batch.images[0].numel())
        values = {"reconstruction": reconstruction, "mse": mse}
        return values | gaussianity.moments(latents)

    def metrics(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """The errors, how normal the codes are, and the root mean square of codes."""
        scale = {"latent_scale": float(means["power_2"].mean().sqrt())}
        return super().metrics(means) | gaussianity.metrics(means) | scale

    def alarms(self, metrics: Mapping[str, float], seen: int) -> dict[str, str]:
        """Exploding codes; codes that the discriminator always tells from normal ones."""
        found = exploding("latents", metrics.get("val/latent_scale", 0.0))
        loss = metrics.get("train/discriminator", 1.0)
        if loss >= BEATEN:
            return found
        return found | {
            "codes are not normal": (
                f"the discriminator's loss is {loss:.2g}, and 1.39 where it cannot tell them from"
                " N(0, 1): raise method.adversary_weight"
            )
        }

    def _logits(self, latents: Tensor) -> Tensor:  # [B, Z] -> [B]
        logits: Tensor = self.discriminator(latents)
        return logits.to(latents.dtype)[:, 0]

    def _errors(self, images: Tensor, latents: Tensor) -> Tensor:  # -> [B]
        # In the type of the images: autocast returns bfloat16, too coarse to sum over all pixels.
        output = self.decode(latents).to(images.dtype)
        return (output - images).square().flatten(1).sum(1)
