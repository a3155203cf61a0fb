"""The vector-quantised tokenizer: each position of the latent map is one of K codes.

VQ-VAE (van den Oord et al. 2017) with the error and the adversary of VQGAN (Esser et al. 2021), or
finite scalar quantisation (Mentzer et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from udl_dist.core.config_schema import setting
from udl_dist.errors import UsageError
from udl_dist.methods.losses import quantizers
from udl_dist.methods.losses.quantizers import QuantizerSettings, new_quantizer
from udl_dist.methods.method import Batch, Shape
from udl_dist.methods.networks.hub import HubLayout, hub_layout
from udl_dist.methods.tokenizer import Latents, Tokenizer, TokenizerSettings

COLLAPSED = 0.1  # share of codes in use


@dataclass(frozen=True)
class VQSettings(TokenizerSettings):
    """The same, and the quantizer."""

    latent_channels: int = setting(
        256, "channels of the encoder's output, projected to the dimensions of a code", low=1
    )
    quantizer: QuantizerSettings = setting(QuantizerSettings, "what makes latents codes")


class VectorQuantisedAutoencoder(Tokenizer):
    """The bottleneck puts each latent on its code; the gradient goes straight through.

    `encode` gives the codes as maps of numbers, `indices` which codes they are.
    """

    Settings = VQSettings
    incomparable: ClassVar = {
        **Tokenizer.incomparable,
        **dict.fromkeys(("usage", "perplexity"), ()),
    }
    settings: VQSettings

    def __init__(self, settings: VQSettings, shape: Shape, classes: tuple[str, ...] = ()) -> None:
        super().__init__(settings, shape, classes)
        self.quantizer = new_quantizer(settings.quantizer)
        self.code_count = self.quantizer.size

    def channels(self) -> tuple[int, int, int]:
        quantizer = self.settings.quantizer
        fixed = quantizer.kind == "fsq"
        dimensions = len(quantizer.levels) if fixed else quantizer.dimensions
        return self.settings.latent_channels, dimensions, dimensions

    def bottleneck(self, compressed: Tensor, keys: Tensor) -> Latents:
        found = self.quantizer(compressed, keys)
        return Latents(found.latents, found.loss, {"codebook": found.loss.mean()}, found.sums)

    def after_step(self, sums: Mapping[str, Tensor]) -> None:
        super().after_step(sums)
        self.quantizer.after_step(sums)

    def check_images(self, images: int, total: int) -> tuple[str, ...]:
        codes, positions = self.quantizer.size, math.prod(self.latent_shape[1:])
        if codes > images * positions:
            raise UsageError(
                f"method.quantizer makes {codes:,} codes, more than the {images * positions:,}"
                f" positions of {images:,} training images: ask for fewer codes"
            )
        return super().check_images(images, total)

    def indices(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, h, w] int64
        """The codes of images."""
        return self.quantizer.indices(self.compressed(images))

    def encode(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, D, h, w]
        return self.quantizer.lookup(self.indices(images)).to(images.dtype)

    def decode_indices(self, indices: Tensor) -> Tensor:  # [B, h, w] int64 -> [B, C, H, W]
        """The images of codes."""
        return self.decode(self.quantizer.lookup(indices))

    def hub(self) -> HubLayout:
        asked = self.settings.quantizer
        if asked.kind == "fsq" or (asked.kind == "gradient" and asked.normalise):
            raise UsageError(
                f"diffusers has no class for method.quantizer.kind = {asked.kind}"
                f"{' with normalise' * (asked.kind == 'gradient')}: its VQModel looks up entries as"
                " they are stored; export it without --format diffusers"
            )
        own = {"num_vq_embeddings": asked.codes, "vq_embed_dim": asked.dimensions}
        layout = hub_layout(self, "VQModel", own, ("scaling_factor",))
        codebook = "quantizer.codebook" if asked.kind == "ema" else "quantizer.weight"
        names = {**layout.names, "quantize.embedding.weight": codebook}
        return replace(layout, names=names, complete=self._with_averages)

    def _with_averages(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same, and averages as if all entries had been used once in each step."""
        codebook = tensors.get("quantizer.codebook")
        if codebook is None:
            return tensors
        counts = codebook.new_ones(len(codebook))
        return tensors | {"quantizer.counts": counts, "quantizer.totals": codebook.clone()}

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """The same, and how often each image uses each code."""
        indices = self.indices(batch.images)
        latents = self.quantizer.lookup(indices).to(batch.images.dtype)
        used = quantizers.counts(indices, self.quantizer.size)
        return self.measured(batch.images, latents) | {"used": used}

    def metrics(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """The same, and over all held-out images: the share of codes in use, and exp H of them."""
        return super().metrics(means) | {
            "usage": quantizers.usage(means["used"]),
            "perplexity": quantizers.perplexity(means["used"]),
            "bits": quantizers.bits(self.quantizer.size, math.prod(self.latent_shape[1:])),
        }

    def alarms(self, metrics: Mapping[str, float], seen: int) -> dict[str, str]:
        usage = metrics.get("val/usage", 1.0)
        found = super().alarms(metrics, seen)
        if usage >= COLLAPSED:
            return found
        return found | {
            "codebook collapse": (
                f"{usage:.1%} of {self.quantizer.size:,} codes are in use: raise"
                " method.quantizer.dead_below or method.quantizer.decay, or ask for fewer codes"
            )
        }
