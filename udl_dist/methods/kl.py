"""The KL autoencoder of latent diffusion (Rombach et al. 2022): maps with a normal posterior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from udl_dist.core import rng
from udl_dist.core.config_schema import setting
from udl_dist.methods.method import Batch
from udl_dist.methods.networks.hub import HubLayout, hub_layout
from udl_dist.methods.tokenizer import Latents, Tokenizer, TokenizerSettings

LEAST, MOST = -30.0, 20.0  # of a log-variance, as diffusers has it


@dataclass(frozen=True)
class KLSettings(TokenizerSettings):
    """The same, and the weight of the KL."""

    kl_weight: float = setting(
        1e-6, "of the KL of all numbers of an image, over its pixels: C·H·W", low=0
    )


class KLAutoencoder(Tokenizer):
    """The bottleneck draws z = μ + σ ε of q(z|x) and pays `kl_weight` · KL(q ‖ N(0, 1)) / C·H·W.

    Next to an error that is a sum over pixels, as in LDM, the same weight stands before the KL.
    """

    Settings = KLSettings
    settings: KLSettings

    def channels(self) -> tuple[int, int, int]:
        latent = self.settings.latent_channels
        return 2 * latent, 2 * latent, latent  # means and log-variances

    def bottleneck(self, compressed: Tensor, keys: Tensor) -> Latents:
        mean, logvar = self._moments(compressed)
        noise = rng.normal(keys, "latent", self.latent_shape).to(mean.dtype)
        kl = _kl(mean, logvar)
        maps = mean + (logvar / 2).exp() * noise
        weight = self.settings.kl_weight / math.prod(self.shape)
        return Latents(maps, weight * kl, {"kl": kl.detach().mean()})

    def encode(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, z, h, w]
        """The means of q(z|x)."""
        return self._moments(self.compressed(images))[0]

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        mean, logvar = self._moments(self.compressed(batch.images))
        return self.measured(batch.images, mean) | {"kl": _kl(mean, logvar)}

    def metrics(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        return super().metrics(means) | {"kl": float(means["kl"])}

    def hub(self) -> HubLayout:
        own = {"use_quant_conv": True, "use_post_quant_conv": True}
        statistics = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
        return hub_layout(self, "AutoencoderKL", own, statistics)

    def _moments(self, compressed: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = compressed.chunk(2, 1)
        return mean, logvar.clamp(LEAST, MOST)


def _kl(mean: Tensor, logvar: Tensor) -> Tensor:  # [B, z, h, w] twice -> [B]
    """The KL from N(0, 1) in nats, summed over the map (Kingma & Welling 2014, eq. 10)."""
    return (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1) / 2
