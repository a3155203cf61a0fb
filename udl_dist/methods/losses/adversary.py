"""The adversary of an autoencoder: a discriminator of patches that sharpens reconstructions.

As in VQGAN (Esser et al. 2021), with three cures of what is known to fail: it may learn for a while
before it acts, its weight follows the gradients of the whole global batch and not of one rank, and
all that it remembers is in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional, grad

from udl_dist.core.config_schema import setting
from udl_dist.errors import UsageError
from udl_dist.methods.method import Loss, Shape
from udl_dist.methods.networks.patch_gan import PatchDiscriminator

MOST = 1e4  # of the adaptive factor (Esser et al. 2021)
DECAY = 0.999  # of the mean logits of LeCAM, in a step (Tseng et al. 2021)
RECENT = 0.99  # of the error before the adversary acts, in a step
WORSE = 2.0  # times that error


@dataclass(frozen=True)
class AdversarySettings:
    """Settings of the discriminator, its loss and its weight."""

    weight: float = setting(0.5, "of the adversary in the autoencoder's loss; 0: none", low=0)
    adaptive: bool = setting(
        True,
        "the weight is multiplied by the ratio of the gradients of error and adversary at the last"
        " layer, of the step before (Esser et al. 2021, eq. 7)",
    )
    learns_after_images: int = setting(
        0, "images of the run after which the discriminator learns", low=0
    )
    acts_after_images: int = setting(
        150_000, "images after which the autoencoder learns from it", low=0
    )
    ramp_images: int = setting(5_000, "images over which its weight rises", low=0)
    loss: Literal["hinge", "softplus"] = setting(
        "hinge", "hinge (Lim & Ye 2017), or -log of the probability of being right"
    )
    lecam: float = setting(
        0.001, "weight of the distance of logits from their means (Tseng et al. 2021)", low=0
    )
    rate: float = setting(1.0, "factor on train.learning_rate for it", above=0)
    width: int = setting(64, "channels of its first layer", low=1)
    halvings: int = setting(
        0, "how often it halves the map; 0: 3 from 48 px on, 2 from 24 px, else 1", low=0, high=6
    )

    def __post_init__(self) -> None:
        plain = {field.name: field.default for field in fields(self)}
        other = [name for name in plain if getattr(self, name) != plain[name]]
        if not self.weight and other != ["weight"]:
            raise UsageError(
                f"method.adversary.{other[1]} has no meaning when method.adversary.weight is 0"
            )
        if self.acts_after_images < self.learns_after_images:
            raise UsageError(
                f"method.adversary.acts_after_images is {self.acts_after_images}, before it learns"
                f" at {self.learns_after_images}: let it learn first"
            )

    def warnings(self, total: int) -> tuple[str, ...]:
        """What is wrong in a run of `total` images."""
        if not self.weight or self.acts_after_images < total:
            return ()
        return (
            f"the adversary never acts: method.adversary.acts_after_images is"
            f" {self.acts_after_images:,}, the run ends after {total:,}",
        )


class Adversary(nn.Module):
    """The discriminator, [B, C, H, W] -> [B, 1, h, w], and what it remembers of earlier steps.

    `factor` is the adaptive factor λ of the next step; it is 0 until the first step in which the
    adversary acts has measured it.
    """

    def __init__(self, settings: AdversarySettings, shape: Shape) -> None:
        super().__init__()
        self.settings = settings
        self.discriminator = PatchDiscriminator(shape, settings.width, settings.halvings)
        self.factor: Tensor
        self.register_buffer("factor", torch.zeros(()) if settings.adaptive else torch.ones(()))
        self.mean_logits: Tensor  # of real and of reconstructed images
        self.register_buffer("mean_logits", torch.zeros(2))
        self.error_before: Tensor  # of reconstructions, before the adversary acted
        self.register_buffer("error_before", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.discriminator(images)
        return logits

    def acts(self, seen: int) -> bool:
        """Whether the autoencoder learns from the discriminator in the step after `seen` images."""
        return self.settings.weight > 0 and seen >= self.settings.acts_after_images

    def weight(self, seen: int) -> Tensor:  # []
        """The weight of the adversary in the step after `seen` images."""
        since = seen - self.settings.acts_after_images
        ramp = min(1.0, since / self.settings.ramp_images) if self.settings.ramp_images else 1.0
        return self.factor * self.settings.weight * ramp

    def against(self, output: Tensor) -> Tensor:  # [B, C, H, W] -> [B]
        """What the autoencoder minimises: its reconstructions shall be taken for real."""
        logits = self(output).to(output.dtype).flatten(1)
        return (-logits if self.settings.loss == "hinge" else functional.softplus(-logits)).mean(1)

    # [B, C, H, W] twice -> Loss
    def loss(self, images: Tensor, output: Tensor) -> Loss:
        """What the discriminator minimises, from images and their reconstructions."""
        # One forward over both: two before one backward fail under DDP with buffers (pytorch
        # #175024).
        logits = self(torch.cat([images, output])).to(images.dtype).flatten(1)
        real, fake = logits.chunk(2)
        if self.settings.loss == "hinge":
            values = (functional.relu(1 - real) + functional.relu(1 + fake)) / 2
        else:
            values = functional.softplus(-real) + functional.softplus(fake)
        value = values.mean()
        plots = {
            "discriminator": value,
            "real_logit": real.detach().mean(),
            "fake_logit": fake.detach().mean(),
        }
        if self.settings.lecam:
            mean_real, mean_fake = self.mean_logits.to(real.dtype)
            distance = functional.relu(real - mean_fake).square()
            distance = distance + functional.relu(mean_real - fake).square()
            plots["lecam"] = distance.mean()
            value = value + self.settings.lecam * plots["lecam"]
        judged = torch.stack([real.detach().mean(1).sum(), fake.detach().mean(1).sum()])
        return Loss(value, plots, {"judged": judged, "judged_images": rows_of(images)})

    # [B, C, H, W], the gradients of error and adversary by the output [B, C, H, W], the input of
    # the last layer [B, D, H, W], its weight
    def measured(
        self, gradients: tuple[Tensor, Tensor], features: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """Sums for `after_step`: both gradients by the weight of the decoder's last layer."""
        # From the gradients by the output, without a second backward through the networks.
        error, adversary = (
            grad.conv2d_weight(  # type: ignore[no-untyped-call]
                features.detach().to(each.dtype), list(weight.shape), each, padding=1
            )
            for each in gradients
        )
        # These are of means over this part; sums over its rows add up to those of the batch.
        rows = len(features)
        return {"error_gradient": error * rows, "adversary_gradient": adversary * rows}

    def after_step(self, sums: Mapping[str, Tensor]) -> None:
        """Follow the error, the mean logits and the ratio of gradients of the global batch."""
        if "judged" in sums:
            self.mean_logits.lerp_(sums["judged"] / sums["judged_images"], 1 - DECAY)
        if "error_gradient" in sums:
            error, adversary = (
                (sums[name] / sums["images"]).norm()
                for name in ("error_gradient", "adversary_gradient")
            )
            self.factor.copy_((error / (adversary + 1e-4)).clamp(max=MOST))
        if "error" in sums:
            now = sums["error"] / sums["images"]
            # The first error as it is, so that the mean does not begin at zero.
            self.error_before.lerp_(now, torch.where(self.error_before == 0, 1.0, 1 - RECENT))

    def alarms(self, error: float, seen: int) -> dict[str, str]:
        """The adversary spoils reconstructions, or its factor is at its limit."""
        if not self.acts(seen):
            return {}
        found, before = {}, float(self.error_before)
        if before and error > WORSE * before:
            found["the adversary wins"] = (
                f"the error of reconstructions is {error:.2g}, {error / before:.2g} times what it"
                " was before the adversary acted: lower method.adversary.weight, or let it act"
                " later"
            )
        if float(self.factor) >= MOST:
            found["no gradient from the adversary"] = (
                f"its factor is at its limit of {MOST:g}: the discriminator is constant; raise"
                " method.adversary.lecam, or let it learn for longer before it acts"
            )
        return found


def rows_of(images: Tensor) -> Tensor:  # -> []
    """The number of images, as a sum for `after_step`."""
    return torch.tensor(float(len(images)), device=images.device)
