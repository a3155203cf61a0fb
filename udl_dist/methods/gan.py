"""The generative adversarial network (Goodfellow et al. 2014): a generator against a discriminator.

A step has two phases: the discriminator learns from real and generated images, then the generator
from the discriminator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from udl_dist.core import rng
from udl_dist.core.config_schema import setting
from udl_dist.errors import UsageError
from udl_dist.methods import gan_metrics
from udl_dist.methods.method import Batch, Loss, Method, Phase, PhaseOptimizer, Shape
from udl_dist.methods.networks import ChainSettings
from udl_dist.methods.networks.adversaries import (
    Adversary,
    Discriminator,
    new_discriminator,
    new_generator,
)
from udl_dist.methods.networks.layers import ClassEmbedding


@dataclass(frozen=True)
class GANSettings:
    """Settings of both networks, of their losses and of the gradient penalty."""

    latent_dim: int = setting(64, "normal numbers that an image is generated from", low=1)
    generator: Adversary = setting(
        "resnet",
        "residual blocks; transposed convolutions (Radford et al. 2016);"
        " dense 256-512-1024, then transposed convolutions; or the decoder of `network`",
    )
    discriminator: Adversary = setting(
        "resnet",
        "residual blocks; strided convolutions; two convolutions of 64 and 128 filters with"
        " dropout; or the encoder of `network`",
    )
    width: int = setting(
        16,
        "channels of resnet and dcgan generators at full size, doubled by each halving; their"
        " discriminators have twice as many",
        low=1,
    )
    network: ChainSettings = setting(ChainSettings, "the networks that are conv")
    conditional: bool = setting(
        False,
        "images are made for a class: an embedding beside the latent, and a discriminator by"
        " projection (Miyato & Koyama 2018)",
    )
    dropout: float = setting(
        0.3, "share of features that the article's discriminator drops", low=0, high=0.9
    )
    loss: Literal["minimax", "non_saturating"] = setting(
        "non_saturating", "what the generator minimises"
    )
    r1: float = setting(
        1.0, "weight γ of R1, the gradient penalty on real images (Mescheder et al. 2018)", low=0
    )
    r1_every: int = setting(
        4, "R1 is computed in about one of this many steps, with this many times the weight", low=1
    )
    discriminator_rate: float = setting(
        1.0, "factor on train.learning_rate for the discriminator", above=0
    )


class GenerativeAdversarialNetwork(Method):
    """The discriminator minimises softplus(-D(x)) + softplus(D(G(z))) + γ/2 ‖∇D(x)‖².

    The generator minimises softplus(-D(G(z))), or by minimax -softplus(D(G(z))); it ends in tanh.
    """

    Settings = GANSettings
    # With R1, Adam may go fast. Small batches: on 2,000 photographs of 32 px 16 images a step came
    # to a Fréchet distance (8×8 pixels) of 1.2 after 10,000 images, 32 to 1.8. Without the warm-up
    # a first step of Adam can kill the generator (digits, 64 px).
    defaults: ClassVar = {
        "train.batch_size": 16,
        "train.learning_rate": 1e-3,
        "train.beta1": 0.5,
        "train.beta2": 0.99,
        "train.warmup_images": 3000,
        "train.average_half_life": 50_000,
        "train.average_share": 0.05,
    }
    best = "frechet_detail"
    # Each discriminator has logits on a scale of its own, and noise has variance and detail too.
    incomparable: ClassVar = dict.fromkeys(
        ("real_logit", "fake_logit", "logit_scale", "spread", "contrast", "detail", "headroom"), ()
    )
    cannot_see: ClassVar = {
        "frechet_8x8": "anything finer than 8×8 pixels: blur, noise, grids of dots"
    }
    settings: GANSettings

    def __init__(self, settings: GANSettings, shape: Shape, classes: tuple[str, ...] = ()) -> None:
        super().__init__(settings, shape, classes)
        _refuse_contradictions(settings)
        self.latent_shape = (settings.latent_dim,)
        inputs = settings.latent_dim
        if settings.conditional:
            self.conditional = True
            self.embedding = ClassEmbedding(classes)
            inputs += self.embedding.size
        network = settings.network
        self.generator = new_generator(settings.generator, settings.width, network, inputs, shape)
        chain = new_discriminator(
            settings.discriminator, 2 * settings.width, network, settings.dropout, shape
        )
        self.discriminator = Discriminator(chain, classes if settings.conditional else ())

    def phases(self) -> tuple[Phase, ...]:
        faster = PhaseOptimizer(rate=self.settings.discriminator_rate)
        return (
            Phase(("discriminator",), self.discriminator_loss, optimizer=faster),
            Phase(self.averaged(), self.generator_loss),
        )

    def averaged(self) -> tuple[str, ...]:
        # As is usual for GANs: only these weights are used afterwards.
        return ("generator", "embedding") if self.conditional else ("generator",)

    def differentiated_twice(self) -> tuple[str, ...]:
        return ("discriminator",) if self.settings.r1 else ()

    def discriminator_loss(self, batch: Batch) -> Loss:
        """The discriminator's loss; `r1` is what the penalty adds, 0 in steps without it."""
        # No gradient of this phase reaches the generator. The keys are those of the generator's
        # phase, but another name draws other latents.
        with torch.no_grad():
            fake = self._generate(batch, "discriminator")
        penalised = self.is_penalised(batch.seen)
        real = batch.images.detach().requires_grad_(penalised)
        # One forward over both: two before one backward fail under DDP with batch normalisation
        # (pytorch#175024).
        real_logits, fake_logits = self._logits(torch.cat([real, fake]), batch.labels).chunk(2)
        # softplus(-a) = -log sigmoid(a), but finite for any logit (Goodfellow et al. 2014, eq. 1).
        adversarial = (
            functional.softplus(-real_logits).mean() + functional.softplus(fake_logits).mean()
        )
        r1 = self._penalty(real, real_logits) if penalised else torch.zeros_like(adversarial)
        plots = {
            "discriminator": adversarial,
            "real_logit": real_logits.mean(),
            "fake_logit": fake_logits.mean(),
            "r1": r1,
        }
        return Loss(adversarial + r1, plots)

    def generator_loss(self, batch: Batch) -> Loss:
        """Minimax: log(1 - D); non-saturating: -log D (Goodfellow et al. 2014, section 3)."""
        logits = self._logits(self._generate(batch, "generator"), batch.labels)
        if self.settings.loss == "minimax":
            loss = -functional.softplus(logits).mean()
        else:
            loss = functional.softplus(-logits).mean()
        return Loss(loss, {"generator": loss})

    def prior(self, keys: Tensor) -> Tensor:  # [N] int64 -> [N, Z]
        return self._latents(keys, "sample")

    # [N, Z] -> [N, C, H, W]
    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.conditional:
            latents = self.embedding(latents, labels)
        return self.generator(latents).tanh()  # type: ignore[no-any-return]

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """Logits and statistics of each real image, and of an image generated from its key."""
        fake = self.sample(batch.keys, batch.labels).to(batch.images.dtype)
        real_logit = self._logits(batch.images, batch.labels)
        fake_logit = self._logits(fake, batch.labels)
        values = {
            "real_logit": real_logit,
            "fake_logit": fake_logit,
            "logit_scale": (real_logit.square() + fake_logit.square()) / 2,
        }
        return values | gan_metrics.values_of(batch.images, fake)

    def metrics(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """Mean logits and their root mean square, Fréchet distances, and ratios of fake to real."""
        logits = {name: float(means[name]) for name in ("real_logit", "fake_logit")}
        scale = {"logit_scale": float(means["logit_scale"].sqrt())}
        return logits | scale | gan_metrics.metrics(means)

    def alarms(self, metrics: Mapping[str, float], seen: int) -> dict[str, str]:
        """The failures that metrics of training and validation show."""
        return gan_metrics.alarms(metrics, seen)

    def is_penalised(self, seen: int) -> bool:
        """Whether R1 is computed in the step after `seen` images."""
        # Drawn from `seen` alone, so that all ranks and a resumed run agree without a message.
        return self.settings.r1 > 0 and int(rng.keys(seen, 1)) % self.settings.r1_every == 0

    def _generate(self, batch: Batch, draw: str) -> Tensor:  # -> [B, C, H, W]
        """An image for each key of the batch, of the class of the real image."""
        latents = self._latents(batch.keys, draw)
        return self.decode(latents, batch.labels).to(batch.images.dtype)

    def _latents(self, keys: Tensor, draw: str) -> Tensor:  # [N] int64 -> [N, Z]
        latents = rng.normal(keys, draw, (self.settings.latent_dim,))
        # In the type of the weights: float64 in tests of gradients.
        return latents.to(next(self.generator.parameters()).dtype)

    # [B, C, H, W], [B] or [B / 2] int64 -> [B]
    def _logits(self, images: Tensor, labels: Tensor | None) -> Tensor:
        if not self.conditional or labels is None:
            return self.discriminator(images).to(images.dtype)  # type: ignore[no-any-return]
        # Real and generated images of the same classes stand one behind the other.
        each = labels.repeat(len(images) // len(labels))
        return self.discriminator(images, each).to(images.dtype)  # type: ignore[no-any-return]

    def _penalty(self, real: Tensor, logits: Tensor) -> Tensor:  # [B, C, H, W], [B] -> []
        """γ/2 E‖∇D(x)‖² (Mescheder et al. 2018, eq. 9)."""
        # The sum of logits has each image's own gradient, as long as images do not mix: under
        # batch normalisation this would be the gradient of a whole batch. `r1_every` makes up for
        # the steps without a penalty (Karras et al. 2020, appendix B).
        (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        return gradient.square().flatten(1).sum(1).mean() * (
            self.settings.r1 / 2 * self.settings.r1_every
        )


def _refuse_contradictions(settings: GANSettings) -> None:
    default = GANSettings()
    kinds = (settings.generator, settings.discriminator)
    if "conv" not in kinds and settings.network != default.network:
        raise UsageError(
            "method.network has no meaning when neither network is conv: set method.generator or"
            " method.discriminator to conv"
        )
    if not {"resnet", "dcgan"} & set(kinds) and settings.width != default.width:
        raise UsageError("method.width has no meaning when neither network is resnet or dcgan")
    if settings.discriminator != "article" and settings.dropout != default.dropout:
        raise UsageError(
            "method.dropout belongs to the article's discriminator: set method.discriminator to"
            " article"
        )
    if not settings.r1 and settings.r1_every not in (1, default.r1_every):
        raise UsageError("method.r1_every has no meaning when method.r1 is 0: set method.r1")
