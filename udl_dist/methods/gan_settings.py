"""The settings of a GAN: networks, loss, penalties and augmentation, in any combination that has a
meaning.
"""

from __future__ import annotations

from dataclasses import dataclass

from udl_dist.core.config_schema import setting
from udl_dist.core.schedules import cosine
from udl_dist.errors import UsageError
from udl_dist.methods.losses.augment import CHANGES, AugmentKind
from udl_dist.methods.losses.gan_losses import LOSSES, LossName
from udl_dist.methods.networks import ChainSettings
from udl_dist.methods.networks.adversaries import Adversary, AdversaryPlan


@dataclass(frozen=True)
class GANSettings:
    """Settings of both networks, of their losses, penalties and augmentation."""

    latent_dim: int = setting(64, "normal numbers that an image is generated from", low=1)
    generator: Adversary = setting(
        "resnet",
        "residual blocks; those of R3GAN (Huang et al. 2024); transposed convolutions (Radford et"
        " al. 2016); dense 256-512-1024, then transposed convolutions; or the decoder of `network`",
    )
    discriminator: Adversary = setting(
        "resnet",
        "residual blocks; those of R3GAN; strided convolutions; two convolutions of 64 and 128"
        " filters with dropout; or the encoder of `network`",
    )
    width: int = setting(
        16,
        "channels of resnet, r3 and dcgan generators at full size, doubled by each halving;"
        " discriminators of resnet and dcgan have twice as many",
        low=1,
    )
    r3_widths: tuple[int, ...] = setting(
        (), "channels of r3 networks at each size, from about 4 pixels on; empty: by width", low=1
    )
    network: ChainSettings = setting(ChainSettings, "the networks that are conv")
    conditional: bool = setting(
        False,
        "images are made for a class: an embedding next to the latent, and a discriminator by"
        " projection (Miyato & Koyama 2018)",
    )
    dropout: float = setting(
        0.3, "share of features that the article's discriminator drops", low=0, high=0.9
    )
    loss: LossName = setting(
        "non_saturating",
        "what both minimise; relativistic compares a real with a generated image (R3GAN)",
    )
    r1: float = setting(
        1.0, "weight γ of R1, the gradient penalty on real images (Mescheder et al. 2018)", low=0
    )
    r1_end: float = setting(0.0, "what r1 comes to, along a cosine; 0: it stays", low=0)
    r2: float = setting(0.0, "weight γ of R2, the same on generated images", low=0)
    r2_end: float = setting(0.0, "what r2 comes to, along a cosine; 0: it stays", low=0)
    gradient_penalty: float = setting(
        0.0,
        "weight of WGAN-GP, which holds the gradient between real and generated images at length 1"
        " (Gulrajani et al. 2017); 10 is usual",
        low=0,
    )
    r1_every: int = setting(
        4,
        "R1 and other penalties are computed in about one of this many steps, with this many times"
        " the weight",
        low=1,
    )
    spectral_norm: bool = setting(
        False,
        "weights of the discriminator are divided by their largest singular value (Miyato et al."
        " 2018)",
    )
    augment: AugmentKind = setting(
        "none",
        "of all that the discriminator sees: with the chance augment_chance (Zhao et al. 2020), or"
        " with one that follows how sure it is of real images (Karras et al. 2020)",
    )
    augment_by: tuple[str, ...] = setting(tuple(CHANGES), f"of {', '.join(CHANGES)}")
    augment_chance: float = setting(
        1.0, "diffaug: chance of each change of an image", low=0, high=1
    )
    augment_chance_end: float = setting(
        0.0, "diffaug: what it comes to, along a cosine; 0: it stays", low=0, high=1
    )
    ada_target: float = setting(
        0.6, "ada: mean sign of logits of real images that it holds", above=-1, below=1
    )
    ada_images: int = setting(500_000, "ada: images for a chance from 0 to 1, the fastest", low=1)
    decay_images: int = setting(
        0, "images after which cosines of r1, r2 and augment_chance are at their ends", low=0
    )
    discriminator_rate: float = setting(
        1.0, "factor on train.learning_rate for the discriminator", above=0
    )
    discriminator_steps: int = setting(
        1, "steps of the discriminator for one of the generator; each sees new images", low=1
    )

    def plan(self) -> AdversaryPlan:
        """What the networks are made from."""
        return AdversaryPlan(self.width, self.r3_widths, self.network, self.dropout)

    def penalty_weights(self, seen: int) -> dict[str, float]:
        """The weight of each penalty that is in use, in a step that has penalties."""
        # `r1_every` makes up for the steps without a penalty (Karras et al. 2020, appendix B).
        weights = {
            "r1": self._at(self.r1, self.r1_end, seen) / 2 * self.r1_every,
            "r2": self._at(self.r2, self.r2_end, seen) / 2 * self.r1_every,
            "gradient_penalty": self.gradient_penalty * self.r1_every,
        }
        return {name: weight for name, weight in weights.items() if getattr(self, name)}

    def chance_at(self, seen: int) -> float:
        """The chance of each change by `diffaug` in the step after `seen` images."""
        return self._at(self.augment_chance, self.augment_chance_end, seen)

    def _at(self, start: float, end: float, seen: int) -> float:
        return cosine(start, end, seen / self.decay_images) if end else start


def refuse_contradictions(settings: GANSettings) -> None:
    """Raise UsageError for settings that would be ignored, or that work against each other."""
    ends = ("r1_end", "r2_end", "augment_chance_end")
    if bool(settings.decay_images) != any(getattr(settings, name) for name in ends):
        raise UsageError(
            "method.decay_images is when method.r1_end, method.r2_end and"
            " method.augment_chance_end are reached: set it and one of them, or none"
        )
    _refuse_networks(settings)
    _refuse_penalties(settings)
    _refuse_augmentation(settings)


def _refuse_networks(settings: GANSettings) -> None:
    default = GANSettings()
    kinds = {settings.generator, settings.discriminator}
    if "conv" not in kinds and settings.network != default.network:
        raise UsageError(
            "method.network has no meaning when neither network is conv: set method.generator or"
            " method.discriminator to conv"
        )
    if not {"resnet", "dcgan", "r3"} & kinds and settings.width != default.width:
        raise UsageError("method.width has no meaning when neither network is resnet, r3 or dcgan")
    if "r3" not in kinds and settings.r3_widths:
        raise UsageError("method.r3_widths has no meaning when neither network is r3")
    if settings.discriminator != "article" and settings.dropout != default.dropout:
        raise UsageError(
            "method.dropout belongs to the article's discriminator: set method.discriminator to"
            " article"
        )
    if settings.spectral_norm and settings.discriminator == "r3":
        raise UsageError(
            "method.spectral_norm has no meaning with method.discriminator = r3, whose blocks start"
            " at zero and whose scale R1 and R2 hold: leave it out, or choose another network"
        )


def _refuse_penalties(settings: GANSettings) -> None:
    default = GANSettings()
    for name in ("r1", "r2"):
        if getattr(settings, f"{name}_end") and not getattr(settings, name):
            raise UsageError(f"method.{name}_end has no meaning when method.{name} is 0")
    if settings.gradient_penalty and (settings.r1 or settings.r2):
        raise UsageError(
            "method.gradient_penalty draws the discriminator's gradient to length 1, method.r1 and"
            " method.r2 draw it to 0: set method.r1 and method.r2 to 0, or leave it out"
        )
    penalised = bool(settings.penalty_weights(0))
    if not penalised and settings.r1_every not in (1, default.r1_every):
        raise UsageError(
            "method.r1_every has no meaning when method.r1 is 0: set method.r1, or another penalty"
        )
    if LOSSES[settings.loss].chance is None and not (penalised or settings.spectral_norm):
        raise UsageError(
            f"method.loss = {settings.loss} has no least value when nothing bounds the"
            " discriminator: set method.gradient_penalty, method.r1 or method.spectral_norm"
        )


def _refuse_augmentation(settings: GANSettings) -> None:
    default = GANSettings()
    belongs = {
        "augment_by": ("diffaug", "ada"),
        "augment_chance": ("diffaug",),
        "augment_chance_end": ("diffaug",),
        "ada_target": ("ada",),
        "ada_images": ("ada",),
    }
    for name, kinds in belongs.items():
        if settings.augment not in kinds and getattr(settings, name) != getattr(default, name):
            raise UsageError(
                f"method.{name} has no meaning when method.augment is {settings.augment}: set"
                f" method.augment to {' or '.join(kinds)}"
            )
    if unknown := [kind for kind in settings.augment_by if kind not in CHANGES]:
        raise UsageError(f"method.augment_by: {unknown[0]!r} is not one of {', '.join(CHANGES)}")
    if settings.augment == "none":
        return
    if not settings.augment_by:
        raise UsageError("method.augment_by is empty: leave it out, or set method.augment to none")
    if settings.augment == "diffaug" and not (
        settings.augment_chance or settings.augment_chance_end
    ):
        raise UsageError("method.augment_chance is 0: raise it, or set method.augment to none")
    if settings.augment == "ada" and LOSSES[settings.loss].relative:
        raise UsageError(
            "method.augment = ada follows the sign of logits, which has no meaning with method.loss"
            f" = {settings.loss}: take method.augment = diffaug, or another loss"
        )
