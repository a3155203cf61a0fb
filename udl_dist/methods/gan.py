"""The generative adversarial network (Goodfellow et al. 2014): a generator against a discriminator.

Two phases take turns in a step: the discriminator learns from real and generated images, then the
generator from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from udl_dist.core import rng
from udl_dist.core.config_schema import setting
from udl_dist.errors import UsageError
from udl_dist.methods import Batch, Method, Phase, Shape, descriptor, frechet, gan_alarms
from udl_dist.methods.networks import (
    GAINS,
    Network,
    NetworkSettings,
    decoder,
    encoder,
    halvings,
    kernel,
)
from udl_dist.methods.networks.layers import (
    Activation,
    Conv,
    ConvTranspose,
    Dropout,
    Layer,
    Linear,
    Norm,
    Reshape,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from udl_dist.methods import Losses

LEAKY = GAINS["leaky_relu"]
# A generator that starts with nearly equal images is answered by one shift of them all, and never
# leaves that image.
DIVERSE = 1.0


@dataclass(frozen=True)
class GANSettings:
    """What the two adversaries are made of, and how they play."""

    latent_dim: int = setting(100, "normal numbers that an image is made from", low=1)
    generator: Literal["article", "conv"] = setting(
        "article",
        "dense 256-512-1024, then transposed convolutions from 4×4×256, or the decoder of"
        " `network`",
    )
    discriminator: Literal["article", "conv"] = setting(
        "article",
        "two convolutions of 64 and 128 filters with dropout, or the encoder of `network`",
    )
    network: NetworkSettings = setting(NetworkSettings, "the networks that are conv")
    dropout: float = setting(
        0.3, "share of features that the article's discriminator drops", low=0, high=0.9
    )
    loss: Literal["minimax", "non_saturating"] = setting(
        "non_saturating", "what the generator minimises"
    )
    r1: float = setting(
        0.0, "weight γ of R1, the gradient penalty on real images (Mescheder et al. 2018)", low=0
    )
    r1_every: int = setting(
        1, "R1 is computed in about one of so many steps, with so many times the weight", low=1
    )
    discriminator_rate: float = setting(
        1.0, "factor on train.learning_rate for the discriminator", above=0
    )


class GenerativeAdversarialNetwork(Method):
    """The discriminator minimises softplus(-D(x)) + softplus(D(G(z))) + γ/2 ‖∇D(x)‖², the generator
    its own loss.

    The article's generator is dense up to 4×4×256, and two doublings of 4 make 16, never 28. Here
    the image is halved, rounding up, as long as 4 pixels or more are left (28, 14, 7, 4), and
    transposed convolutions with half the channels each go the same way back; a size that does not
    come down to 4 starts from 5, 6 or 7. The last layer is tanh.
    """

    Settings = GANSettings
    best = "frechet_detail"
    # Each discriminator judges by a scale of its own, and a share of nothing but variance is had by
    # noise too.
    incomparable: ClassVar = dict.fromkeys(
        ("real_logit", "fake_logit", "logit_scale", "spread", "contrast", "detail", "headroom"), ()
    )
    cannot_see: ClassVar = {
        "frechet_8x8": "anything finer than 8×8 pixels: blur, noise, grids of dots"
    }
    settings: GANSettings

    def __init__(self, settings: GANSettings, shape: Shape) -> None:
        super().__init__(settings, shape)
        _refuse_nonsense(settings)

    def describe(self) -> dict[str, Network]:
        settings, shape = self.settings, self.shape
        article = settings.generator == "article"
        generator = (
            _article_generator(settings.latent_dim, shape)
            if article
            else decoder(settings.network, settings.latent_dim, shape, DIVERSE)
        )
        article = settings.discriminator == "article"
        discriminator = (
            _article_discriminator(settings.dropout, shape)
            if article
            else encoder(settings.network, shape, 1)
        )
        return {"generator": generator, "discriminator": discriminator}

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase(
                ("discriminator",), self.discriminator_loss, rate=self.settings.discriminator_rate
            ),
            Phase(("generator",), self.generator_loss),
        )

    def averaged(self) -> tuple[str, ...]:
        return ("generator",)

    def differentiated_twice(self) -> tuple[str, ...]:
        return ("discriminator",) if self.settings.r1 else ()

    def discriminator_loss(self, batch: Batch) -> Losses:
        """The discriminator's side; `r1` is what the penalty adds, 0 in the steps that leave it
        out.
        """
        import torch
        from torch.nn import functional

        with torch.no_grad():
            fake = self._generate(batch.keys, "discriminator").to(batch.images.dtype)
        penalised = self.is_penalised(batch.seen)
        real = batch.images.detach().requires_grad_(penalised)
        # One forward over both: two before one backward fail under DDP with batch normalisation
        # (pytorch#175024).
        real_logits, fake_logits = self._logits(torch.cat([real, fake])).tensor_split(2)
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
        return adversarial + r1, plots

    def generator_loss(self, batch: Batch) -> Losses:
        """The generator's side: log(1 - D) by minimax, -log D non-saturating (Goodfellow et al.
        2014, section 3).
        """
        from torch.nn import functional

        logits = self._logits(self._generate(batch.keys, "generator").to(batch.images.dtype))
        minimax = self.settings.loss == "minimax"
        loss = (
            -functional.softplus(logits).mean() if minimax else functional.softplus(-logits).mean()
        )
        return loss, {"generator": loss}

    def prior(self, keys: Tensor) -> Tensor:
        return self._latents(keys, "sample")

    def decode(self, latents: Tensor) -> Tensor:
        return self.networks["generator"](latents).tanh()  # type: ignore[no-any-return]

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """What the discriminator says of each real image and of one generated beside it, and the
        pixels of both.
        """
        fake = self.sample(batch.keys).to(batch.images.dtype)
        real_logit, fake_logit = self._logits(batch.images), self._logits(fake)
        values = {
            "real_logit": real_logit,
            "fake_logit": fake_logit,
            "logit_scale": (real_logit.square() + fake_logit.square()) / 2,
        }
        for name, images in (("real", batch.images), ("fake", fake)):
            pixels = images.flatten(1)
            values |= frechet.moments(frechet.small(images), f"{name}_small")
            values |= frechet.moments(descriptor.describe(images), f"{name}_described")
            values |= {
                name: pixels,
                f"{name}_square": pixels.square(),
                f"{name}_contrast": images.flatten(2).var(2, correction=0).mean(1),
                f"{name}_detail": descriptor.fine_energy(images),
            }
        return values

    def figures(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """The logits and their root mean square, and shares: of generated images in what real ones
        have of each.

        `spread`: the variance of a pixel over images; `contrast`: that within an image; `detail`:
        the energy of what is finer than 3×3 pixels; `headroom`: 1 - x², the slope of tanh, without
        which no gradient comes to the generator. A share of nothing is left out. `frechet_detail`:
        how far the two sets are from each other, each seen as a Gaussian of the numbers of
        `descriptor`; `frechet_8x8`: of 8×8 pixels, blind to what is finer. No FID.
        """
        logits = {name: float(means[name]) for name in ("real_logit", "fake_logit")}
        of = {
            name: {
                "spread": float((means[f"{name}_square"] - means[name].square()).sum()),
                "contrast": float(means[f"{name}_contrast"]),
                "detail": float(means[f"{name}_detail"]),
                "headroom": float((1 - means[f"{name}_square"]).mean()),
            }
            for name in ("real", "fake")
        }
        shares = {name: of["fake"][name] / real for name, real in of["real"].items() if real > 1e-6}
        scale = {"logit_scale": float(means["logit_scale"].sqrt())}
        far = {
            "frechet_detail": frechet.distance(means, "real_described", "fake_described"),
            "frechet_8x8": frechet.distance(means, "real_small", "fake_small"),
        }
        return logits | scale | far | shares

    def alarms(self, figures: Mapping[str, float], seen: int) -> dict[str, str]:
        """Who has won, which images are lost, and what has exploded."""
        return gan_alarms.alarms(figures, seen)

    def is_penalised(self, seen: int) -> bool:
        """Whether R1's turn has come: drawn from the images seen, so all ranks and a resumed run
        agree.
        """
        return self.settings.r1 > 0 and int(rng.keys(seen, 1)) % self.settings.r1_every == 0

    def _generate(self, keys: Tensor, draw: str) -> Tensor:
        return self.decode(self._latents(keys, draw))

    def _latents(self, keys: Tensor, draw: str) -> Tensor:  # -> [N, Z]
        latents = rng.normal(keys, draw, (self.settings.latent_dim,))
        return latents.to(next(self.networks["generator"].parameters()).dtype)

    def _logits(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> [B]
        return self.networks["discriminator"](images).to(images.dtype).squeeze(1)  # type: ignore[no-any-return]

    def _penalty(self, real: Tensor, logits: Tensor) -> Tensor:
        """Mescheder et al. 2018, eq. 9, times `r1_every`: skipped steps are made up for (Karras et
        al. 2020, B).
        """
        import torch

        (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        return gradient.square().flatten(1).sum(1).mean() * (
            self.settings.r1 / 2 * self.settings.r1_every
        )


def _article_generator(latent_dim: int, shape: Shape) -> Network:
    sides = [(shape[1], shape[2])]
    while min((side + 1) // 2 for side in sides[-1]) >= 4:
        sides = halvings(sides[0], len(sides))
    layers: list[Layer] = []
    for inputs, features in ((latent_dim, 256), (256, 512), (512, 1024)):
        layers += [
            Linear(inputs, features, LEAKY, bias=False),
            Norm("batch", features, flat=True),
            _leaky(),
        ]
    start = (256, *sides[-1])
    # Normalised feature by feature: over channels, a pattern that all images share would drown what
    # sets them apart.
    features = math.prod(start)
    layers += [
        Linear(1024, features, LEAKY, bias=False),
        Norm("batch", features, flat=True),
        _leaky(),
        Reshape(start),
    ]
    channels = 256
    for side in sides[-2:0:-1]:
        half = max(32, channels // 2)
        layers += [
            ConvTranspose(channels, half, kernel(side), LEAKY, bias=False),
            Norm("batch", half),
            _leaky(),
        ]
        channels = half
    if len(sides) == 1:
        return Network((latent_dim,), (*layers, Conv(channels, shape[0], (3, 3), 1, DIVERSE)))
    return Network(
        (latent_dim,), (*layers, ConvTranspose(channels, shape[0], kernel(sides[0]), DIVERSE))
    )


def _article_discriminator(dropout: float, shape: Shape) -> Network:
    sides = halvings((shape[1], shape[2]), 2)
    layers: list[Layer] = []
    for inputs, filters, side in ((shape[0], 64, sides[0]), (64, 128, sides[1])):
        layers += [
            Conv(inputs, filters, kernel(side), 2, LEAKY),
            _leaky(),
            *[Dropout(dropout)] * (dropout > 0),
        ]
    features = 128 * math.prod(sides[2])
    return Network(shape, (*layers, Reshape((features,)), Linear(features, 1)))


def _leaky() -> Activation:
    return Activation("leaky_relu", 0.2)


def _refuse_nonsense(settings: GANSettings) -> None:
    default = GANSettings()
    kinds = (settings.generator, settings.discriminator)
    if "conv" not in kinds and settings.network != default.network:
        raise UsageError(
            "method.network has no meaning when generator and discriminator are the article's: set "
            "method.generator or method.discriminator to conv"
        )
    if settings.discriminator == "conv" and settings.dropout != default.dropout:
        raise UsageError(
            "method.dropout belongs to the article's discriminator: set method.discriminator to"
            " article"
        )
    if not settings.r1 and settings.r1_every != default.r1_every:
        raise UsageError("method.r1_every has no meaning when method.r1 is 0: set method.r1")
