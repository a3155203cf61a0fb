"""What image tokenizers share: the networks, the error, the adversary and the figures.

A tokenizer compresses an image to a small map, [z, H/f, W/f], for a second model that learns these
maps (Esser et al. 2021; Rombach et al. 2022). Networks have the layout of diffusers' AutoencoderKL.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from udl_dist.core.config_schema import setting
from udl_dist.methods.losses import perceptual
from udl_dist.methods.losses.adversary import Adversary, AdversarySettings, rows_of
from udl_dist.methods.method import Batch, Loss, Method, Phase, PhaseOptimizer, Shape
from udl_dist.methods.metrics import tokenizer_metrics
from udl_dist.methods.networks.layers import Bias, conv
from udl_dist.methods.networks.resnet import ResNetDecoder, ResNetEncoder, even_plan


@dataclass(frozen=True)
class TokenizerSettings:
    """Settings of the networks, the error and the adversary."""

    latent_channels: int = setting(4, "channels z of the latent map", low=1)
    widths: tuple[int, ...] = setting(
        (128, 256, 512, 512),
        "channels of each level, half as large as the one before: the latent is f = 2^(n - 1) times"
        " smaller than the image, 8 times with 4 levels",
        low=1,
    )
    blocks: int = setting(2, "residual blocks of a level; the decoder has one more", low=1, high=16)
    attention: Literal["none", "middle", "smallest"] = setting(
        "middle", "self-attention: in the middle, or also after each block of the smallest maps"
    )
    error: Literal["l1", "l2"] = setting("l1", "of pixels in [-1, 1], a mean over the image")
    learned_scale: bool = setting(
        False, "the error is divided by a learned scale, one for all images (Rombach et al. 2022)"
    )
    perceptual: str = setting(
        "",
        "a network whose features of reconstructions are compared too: efficientnet-lite0, or the"
        " path of a safetensors, TorchScript or .pt2 file; empty: none",
    )
    perceptual_weight: float = setting(1.0, "of that distance, added to the error", above=0)
    adversary: AdversarySettings = setting(AdversarySettings, "the discriminator of patches")

    def __post_init__(self) -> None:
        object.__setattr__(self, "perceptual", perceptual.absolute(self.perceptual))


@dataclass(frozen=True)
class Latents:
    """What the bottleneck makes of a batch in training."""

    maps: Tensor  # [B, z, h, w], as the decoder gets them
    penalty: Tensor  # [B], added to the error
    plots: Mapping[str, Tensor] = field(default_factory=dict)
    sums: Mapping[str, Tensor] = field(default_factory=dict)


class Tokenizer(Method):
    """Minimises error + perceptual distance + penalty of the bottleneck + λ · adversary.

    All are means over an image. λ is the adversary's weight, by default times the ratio of the
    gradients of the error and of the adversary at the decoder's last layer in the *step before*,
    over the whole global batch: one message for all ranks, and equal after a resume.
    """

    defaults: ClassVar = {
        "train.batch_size": 16,
        "train.learning_rate": 1e-4,
        "train.beta2": 0.95,
        "train.clip_norm": 1.0,
        "train.average_half_life": 50_000,
        "train.average_share": 0.05,
    }
    loss_files = ("perceptual",)
    best = "frechet_detail"
    higher_is_better = ("psnr",)
    incomparable: ClassVar = {
        **dict.fromkeys(("sharpness", "latent_std"), ()),
        "error": ("error",),
        "perceptual": ("perceptual",),
    }
    about_samples = "There are no samples: a tokenizer needs a second model to draw latent maps"
    settings: TokenizerSettings

    def __init__(
        self, settings: TokenizerSettings, shape: Shape, classes: tuple[str, ...] = ()
    ) -> None:
        super().__init__(settings, shape, classes)
        plan = even_plan(settings.widths, settings.blocks, settings.attention, shape)
        encoded, compressed, latent = self.channels()
        side = plan.levels[-1].side
        self.latent_shape = (latent, *side)
        self.encoder = ResNetEncoder(plan, shape, (encoded, *side))
        self.quant_conv = conv(encoded, compressed, (1, 1))
        self.post_quant_conv = conv(latent, settings.latent_channels, (1, 1))
        self.decoder = ResNetDecoder(plan, (settings.latent_channels, *side), shape)
        if settings.perceptual:
            self.frozen = ("perceptual",)
            self.perceptual = perceptual.load(settings.perceptual, shape)
        if settings.learned_scale:
            self.log_scale = Bias(1)
        if settings.adversary.weight:
            self.adversary = Adversary(settings.adversary, shape)

    @abstractmethod
    def channels(self) -> tuple[int, int, int]:
        """Channels of the encoder's output, of what the bottleneck gets, and of the latent."""

    @abstractmethod
    def bottleneck(self, compressed: Tensor, keys: Tensor) -> Latents:
        """The latents of `compressed` images, [B, D, h, w], with random draws by keys."""

    def phases(self) -> tuple[Phase, ...]:
        own = Phase(self.averaged(), self.loss)
        if not self.settings.adversary.weight:
            return (own,)
        asked = self.settings.adversary
        optimizer = PhaseOptimizer(rate=asked.rate)
        start = asked.learns_after_images
        return own, Phase(("adversary",), self.adversary_loss, 1, start, optimizer)

    def averaged(self) -> tuple[str, ...]:
        return tuple(name for name in self.networks if name != "adversary")

    def loss(self, batch: Batch) -> Loss:
        """The autoencoder's loss.

        The gradients of error and adversary by the output are found here, and go through the
        decoder together.
        """
        images = batch.images
        latents = self._latents(batch)
        output, features = self._decoded(latents.maps)
        output = output.to(images.dtype)
        error = self.errors(images, output).mean()
        plots = {"error": error.detach(), **latents.plots}
        sums = {"images": rows_of(images), **latents.sums}
        total = error
        if self.settings.perceptual:
            distance = self.perceptual(output, images).mean()
            plots["perceptual"] = distance.detach()
            total = error + self.settings.perceptual_weight * distance
        scale = torch.zeros_like(error)
        if self.settings.learned_scale:
            scale = self.log_scale(scale[None])[0]
        value = total.detach() * (-scale).exp() + scale + latents.penalty.mean()
        gradient = _gradient(total, output) * (-scale.detach()).exp()
        if not self._acts(batch.seen):
            sums["error"] = error.detach() * len(images)
        else:
            against = self.adversary.against(output).mean()
            opposed, weight = _gradient(against, output), self.adversary.weight(batch.seen)
            plots |= {"adversary": against.detach(), "adversary_weight": weight.clone()}
            if self.settings.adversary.adaptive:
                last = self.decoder.get_parameter("conv_out.weight")
                sums |= self.adversary.measured((gradient, opposed), features, last)
            gradient = gradient + weight * opposed
            value = value + weight * against.detach()
        # Has the value 0 and the gradient of both.
        through = (output * gradient).sum()
        return Loss(value + through - through.detach(), plots, sums)

    def adversary_loss(self, batch: Batch) -> Loss:
        """The discriminator's loss, from images and reconstructions without gradient."""
        with torch.no_grad():
            output, _ = self._decoded(self._latents(batch).maps)
        return self.adversary.loss(batch.images, output.to(batch.images.dtype))

    def check_images(self, images: int, total: int) -> tuple[str, ...]:
        return self.settings.adversary.warnings(total)

    def after_step(self, sums: Mapping[str, Tensor]) -> None:
        if self.settings.adversary.weight:
            self.adversary.after_step(sums)

    def errors(self, images: Tensor, output: Tensor) -> Tensor:  # [B, C, H, W] twice -> [B]
        """The error of each reconstruction."""
        difference = images - output
        powers = difference.abs() if self.settings.error == "l1" else difference.square()
        return powers.flatten(1).mean(1)

    # [B, *latent_shape] -> [B, C, H, W]
    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        output, _ = self._decoded(latents)
        return output.clamp(-1, 1)

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        return self.measured(batch.images, self.encode(batch.images))

    # [B, C, H, W], [B, *latent_shape] -> each [B] or [B, D]
    def measured(self, images: Tensor, latents: Tensor) -> dict[str, Tensor]:
        """Errors of each image and moments of its latents and of descriptors."""
        output = self.decode(latents).to(images.dtype)
        values = {
            "error": self.errors(images, output),
            **tokenizer_metrics.values_of(images, output),
        }
        if self.settings.perceptual:
            values["perceptual"] = self.perceptual(output, images)
        latents = latents.double().flatten(2)
        return values | {"latent": latents.mean(2), "latent_square": latents.square().mean(2)}

    def metrics(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """Errors, those of `tokenizer_metrics`, and the deviation of latents in their channels."""
        plain = {name: float(means[name]) for name in ("error", "perceptual") if name in means}
        variance = means["latent_square"] - means["latent"].square()
        std = {"latent_std": float(variance.mean().sqrt())}
        return plain | tokenizer_metrics.metrics(means) | std

    def alarms(self, metrics: Mapping[str, float], seen: int) -> dict[str, str]:
        if not self.settings.adversary.weight:
            return {}
        return self.adversary.alarms(metrics.get("val/error", 0.0), seen)

    def _acts(self, seen: int) -> bool:
        return self.settings.adversary.weight > 0 and self.adversary.acts(seen)

    def _latents(self, batch: Batch) -> Latents:
        # In float32 under autocast too, which leaves what is no convolution as it is.
        return self.bottleneck(self.compressed(batch.images), batch.keys)

    def compressed(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, D, h, w]
        """What the bottleneck gets of images, in their own type."""
        compressed: Tensor = self.quant_conv(self.encoder(images))
        return compressed.to(images.dtype)

    def _decoded(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The output, [B, C, H, W], and the input of the last layer, [B, D, H, W]."""
        found: tuple[Tensor, Tensor] = self.decoder(self.post_quant_conv(latents), True)
        return found


def _gradient(value: Tensor, output: Tensor) -> Tensor:  # [], [B, C, H, W] -> [B, C, H, W]
    if not output.requires_grad:
        return torch.zeros_like(output)
    (found,) = torch.autograd.grad(value, output)
    return found
