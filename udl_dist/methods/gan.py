"""The generative adversarial network (Goodfellow et al. 2014): a generator against a discriminator.

A step has two phases: the discriminator learns from real and generated images, then the generator
from the discriminator.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import ClassVar

import torch
from torch import Tensor

from udl_dist.core import rng
from udl_dist.methods.gan_settings import GANSettings, refuse_contradictions
from udl_dist.methods.losses import gan_losses
from udl_dist.methods.losses.adversary import rows_of
from udl_dist.methods.losses.augment import augmented, next_chance
from udl_dist.methods.method import Batch, Loss, Method, Phase, PhaseOptimizer, Shape
from udl_dist.methods.metrics import gan_metrics
from udl_dist.methods.networks import spectral_norm
from udl_dist.methods.networks.adversaries import Discriminator, new_discriminator, new_generator
from udl_dist.methods.networks.layers import ClassEmbedding


class GenerativeAdversarialNetwork(Method):
    """By default the discriminator minimises softplus(-D(x)) + softplus(D(G(z))) + γ/2 ‖∇D(x)‖².

    The generator then minimises softplus(-D(G(z))); it ends in tanh. `gan_losses` has the other
    losses and penalties. `chance` is that of each augmentation by `ada`, for the next step.
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
    cannot_see: ClassVar = dict.fromkeys(
        ("frechet_8x8", "frechet_share"),
        "anything finer than 8×8 pixels: blur, noise, grids of dots",
    )
    settings: GANSettings

    def __init__(self, settings: GANSettings, shape: Shape, classes: tuple[str, ...] = ()) -> None:
        super().__init__(settings, shape, classes)
        refuse_contradictions(settings)
        self.game = gan_losses.LOSSES[settings.loss]
        self.latent_shape = (settings.latent_dim,)
        inputs = settings.latent_dim
        if settings.conditional:
            self.conditional = True
            self.embedding = ClassEmbedding(classes)
            inputs += self.embedding.size
        plan = settings.plan()
        self.generator = new_generator(settings.generator, plan, inputs, shape)
        chain = new_discriminator(settings.discriminator, plan, shape)
        judged = classes if settings.conditional else ()
        self.discriminator = Discriminator(chain, judged, self.game.relative)
        if settings.spectral_norm:
            spectral_norm.normalise(self.discriminator)
        if settings.augment == "ada":
            self.chance: Tensor
            self.register_buffer("chance", torch.zeros(()))

    def phases(self) -> tuple[Phase, ...]:
        faster = PhaseOptimizer(rate=self.settings.discriminator_rate)
        return (
            Phase(("discriminator",), self.discriminator_loss, optimizer=faster),
            Phase(self.averaged(), self.generator_loss, every=self.settings.discriminator_steps),
        )

    def averaged(self) -> tuple[str, ...]:
        # As is usual for GANs: only these weights are used afterwards.
        return ("generator", "embedding") if self.conditional else ("generator",)

    def differentiated_twice(self) -> tuple[str, ...]:
        return ("discriminator",) if self.settings.penalty_weights(0) else ()

    def discriminator_loss(self, batch: Batch) -> Loss:
        """The discriminator's loss; penalties are plotted as what they add, 0 in steps without."""
        # No gradient of this phase reaches the generator. The keys are those of the generator's
        # phase, but another name draws other latents.
        with torch.no_grad():
            fake = self._generate(batch, "discriminator")
        images = {"real": batch.images.detach(), "fake": fake}
        weights = self.settings.penalty_weights(batch.seen) if self.is_penalised(batch.seen) else {}
        if "gradient_penalty" in weights:
            images["between"] = gan_losses.between(images["real"], fake, batch.keys)
        for name in weights:
            images[gan_losses.PENALTIES[name][0]].requires_grad_()
        # The gradient by an image would be coarse in bfloat16.
        with gan_losses.full_precision(fake) if weights else nullcontext():
            logits = self._judged(images, batch)
            penalties = gan_losses.penalties(weights, images, logits)
        loss = adversarial = self.game.discriminator(logits["real"], logits["fake"])
        for penalty in penalties.values():
            loss = loss + penalty
        plots = {
            "discriminator": adversarial,
            "real_logit": logits["real"].mean(),
            "fake_logit": logits["fake"].mean(),
        }
        for name in {"r1": 0, **self.settings.penalty_weights(batch.seen)}:
            plots[name] = penalties.get(name, torch.zeros_like(adversarial))
        if self.settings.augment != "none":
            plots["augment_chance"] = torch.as_tensor(self._chance(batch.seen)).to(loss)
        return Loss(loss, plots, self._sums(logits["real"]))

    def generator_loss(self, batch: Batch) -> Loss:
        """What the discriminator's judgement of generated images costs; by pairs, of differences to
        that of the real image in the same row.
        """
        fake = self._generate(batch, "generator")
        logits = self._judged({"fake": fake}, batch)["fake"]
        if self.game.pairs:
            with torch.no_grad():
                real = self._judged({"real": batch.images}, batch)["real"]
            logits = logits - real
        loss = self.game.generator(logits)
        return Loss(loss, {"generator": loss})

    def after_step(self, sums: Mapping[str, Tensor]) -> None:
        """Move the estimated singular vectors, and the chance of `ada` by the global batch."""
        settings = self.settings
        if settings.spectral_norm:
            spectral_norm.iterate(self.discriminator)
        if "real_signs" in sums:
            signs, images = sums["real_signs"], sums["judged_images"]
            target, speed = settings.ada_target, settings.ada_images
            self.chance.copy_(next_chance(self.chance, signs, images, target, speed))

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
        return gan_metrics.alarms(metrics, seen, self.game.chance)

    def is_penalised(self, seen: int) -> bool:
        """Whether penalties are computed in the step after `seen` images."""
        if not self.settings.penalty_weights(seen):
            return False
        # Drawn from `seen` alone, so that all ranks and a resumed run agree without a message.
        return int(rng.keys(seen, 1)) % self.settings.r1_every == 0

    def _generate(self, batch: Batch, draw: str) -> Tensor:  # -> [B, C, H, W]
        """An image for each key of the batch, of the class of the real image."""
        latents = self._latents(batch.keys, draw)
        return self.decode(latents, batch.labels).to(batch.images.dtype)

    def _latents(self, keys: Tensor, draw: str) -> Tensor:  # [N] int64 -> [N, Z]
        latents = rng.normal(keys, draw, (self.settings.latent_dim,))
        # In the type of the weights: float64 in tests of gradients.
        return latents.to(next(self.generator.parameters()).dtype)

    # each [B, C, H, W] -> each [B]
    def _judged(self, images: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The logits of images of the batch's rows, as the discriminator sees them, by name."""
        # One forward over all: two before one backward fail under DDP with batch normalisation
        # (pytorch#175024).
        logits = self._logits(
            torch.cat([self._augmented(each, name, batch) for name, each in images.items()]),
            batch.labels,
        )
        return dict(zip(images, logits.chunk(len(images)), strict=True))

    # [B, C, H, W] -> the same
    def _augmented(self, images: Tensor, name: str, batch: Batch) -> Tensor:
        settings = self.settings
        if settings.augment == "none":
            return images
        chance = self._chance(batch.seen)
        return augmented(images, batch.keys, f"augmented {name}", settings.augment_by, chance)

    def _chance(self, seen: int) -> float | Tensor:
        return self.chance if self.settings.augment == "ada" else self.settings.chance_at(seen)

    def _sums(self, real_logits: Tensor) -> dict[str, Tensor]:  # [B] -> each []
        if self.settings.augment != "ada":
            return {}
        signs = real_logits.detach().sign().sum()
        return {"real_signs": signs, "judged_images": rows_of(real_logits)}

    # [k * B, C, H, W], [B] int64 -> [k * B]
    def _logits(self, images: Tensor, labels: Tensor | None) -> Tensor:
        if not self.conditional or labels is None:
            return self.discriminator(images).to(images.dtype)  # type: ignore[no-any-return]
        # Real and generated images of the same classes stand one behind the other.
        each = labels.repeat(len(images) // len(labels))
        return self.discriminator(images, each).to(images.dtype)  # type: ignore[no-any-return]
