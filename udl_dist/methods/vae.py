"""The variational autoencoder (Kingma & Welling 2014), with a bound on the likelihood of an image.

Metrics are in nats per image with all constants: `negative_elbo` compares with published values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from udl_dist.core import rng
from udl_dist.core.config_schema import setting
from udl_dist.errors import UsageError
from udl_dist.methods import likelihoods
from udl_dist.methods.alarms import exploding
from udl_dist.methods.method import Batch, Loss, Method, Phase, Shape
from udl_dist.methods.networks import NetworkSettings, decoder, encoder
from udl_dist.methods.networks.layers import ClassEmbedding

LOGVAR_BOUND = 20.0
# Variance over the data of the mean of a latent that is in use (Burda et al. 2016, section 5).
ACTIVE = 0.01
# Nats of KL, which bounds what all latents tell about an image; a healthy small VAE dips to 0.2.
COLLAPSED = 0.1


@dataclass(frozen=True)
class VAESettings:
    """Settings of the networks, the likelihood and the weight of the KL."""

    latent_dim: int = setting(32, "dimensions of the latent", low=1)
    network: NetworkSettings = setting(NetworkSettings, "the encoder; the decoder mirrors it")
    likelihood: Literal["bernoulli", "gaussian"] = setting(
        "gaussian", "the distribution of a pixel given the latent"
    )
    binarise: Literal["none", "static", "epoch"] = setting(
        "none",
        "bernoulli: pixels are drawn black or white, once for all epochs or again in each; none"
        " leaves them grey",
    )
    variance: Literal["fixed", "learned"] = setting(
        "learned", "gaussian: whether `sigma` is learned, one for all pixels"
    )
    sigma: float = setting(
        0.5, "gaussian: std of a pixel in [-1, 1], or where a learned one starts", above=0
    )
    beta: float = setting(1.0, "weight of the KL (Higgins et al. 2017)", low=0)
    warmup_images: int = setting(
        0, "images over which the weight of the KL grows from 0 to beta", low=0
    )
    conditional: bool = setting(
        False, "images are made for a class: the decoder gets an embedding beside the latent"
    )
    free_bits: float = setting(
        0.0, "nats of KL of each latent dimension of an image that cost nothing", low=0
    )


class VariationalAutoencoder(Method):
    """Minimises -E log p(x|z) + weight · KL(q(z|x) ‖ N(0, 1)), with one draw of z for each image.

    Bernoulli: a pixel in [-1, 1] stands for a probability (x + 1) / 2. Binarised, `negative_elbo`
    bounds -log p of the drawn image; with `binarise = "none"` it is a cross-entropy, since on grey
    values the Bernoulli lacks its normalising constant (Loaiza-Ganem & Cunningham 2019). Gaussian:
    a density of pixels in [-1, 1]; of pixels in [0, 1] it is C·H·W·log 2 nats less. A learned σ is
    one number for all pixels, as in σ-VAE (Rybkin et al. 2021), where it beats one for each pixel.
    """

    Settings = VAESettings
    defaults: ClassVar = {"train.batch_size": 32, "train.schedule": "cosine"}
    best = "negative_elbo"
    # A density, a probability of black and white, and a cross-entropy of greys cannot be compared.
    incomparable: ClassVar = {
        **dict.fromkeys(("negative_elbo", "reconstruction"), ("likelihood", "binarise")),
        **dict.fromkeys(("kl", "active_units", "latent_scale"), ()),
    }
    about_samples = (
        "Samples here are drawn from the prior N(0, 1); udl sample RUN draws from a mixture over"
        " the codes of training images where that is nearer to held-out ones"
    )
    settings: VAESettings

    def __init__(self, settings: VAESettings, shape: Shape, classes: tuple[str, ...] = ()) -> None:
        super().__init__(settings, shape, classes)
        _refuse_contradictions(settings)
        self.latent_shape = (settings.latent_dim,)
        # The mean and the log-variance of each number.
        self.encoder = encoder(settings.network, shape, (2 * settings.latent_dim,))
        self.conditional, inputs = settings.conditional, settings.latent_dim
        if self.conditional:
            self.embedding = ClassEmbedding(classes)
            inputs += self.embedding.size
        self.decoder = decoder(settings.network, (inputs,), shape)
        self._learns_sigma = (settings.likelihood, settings.variance) == ("gaussian", "learned")
        if self._learns_sigma:
            self.sigma = likelihoods.Deviation(settings.sigma)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(tuple(self.networks), self.loss),)

    def loss(self, batch: Batch) -> Loss:
        """The weighted bound; the plots are its terms without weight, warm-up or free bits."""
        reconstruction, kls = self._terms(batch)
        kl = kls.sum(1).mean()
        paid = kl
        if self.settings.free_bits:
            # max(λ, KLⱼ) for each image, so that the loss is a mean over images at any batch size;
            # Kingma et al. 2016, eq. 15, take the mean over the batch inside the maximum.
            paid = kls.clamp(min=self.settings.free_bits).sum(1).mean()
        error = reconstruction.mean()
        plots = {"reconstruction": error, "kl": kl, "negative_elbo": error + kl}
        if self._learns_sigma:
            plots["sigma"] = self._logsigma(batch.images).exp().mean()
        return Loss(error + self.kl_weight(batch.seen) * paid, plots)

    def kl_weight(self, seen: int) -> float:
        """The weight of the KL after `seen` images."""
        # Grows over the first images: against an untrained decoder the KL would win, and collapse.
        if seen >= self.settings.warmup_images:
            return self.settings.beta
        return self.settings.beta * (seen / self.settings.warmup_images)

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:  # [B, C, H, W] -> [B, Z], [B, Z]
        """The mean and log-variance of q(z|x)."""
        mean, logvar = self.encoder(images).to(images.dtype).chunk(2, 1)
        # A smooth bound: exp(logvar) cannot overflow early in training, and unlike a clamp it never
        # makes a gradient zero.
        return mean, LOGVAR_BOUND * (logvar / LOGVAR_BOUND).tanh()

    def encode(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, Z]
        return self.posterior(images)[0]

    # [B, Z], [B] int64 -> [B, C, H, W]
    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        output = self._output(latents, labels)
        # 2 sigmoid(a) - 1 = tanh(a / 2)
        return (output / 2).tanh() if self.settings.likelihood == "bernoulli" else output.tanh()

    def prior(self, keys: Tensor) -> Tensor:  # [N] int64 -> [N, Z]
        return rng.normal(keys, "latent", (self.settings.latent_dim,))

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """The bound and its terms with full weight; the mean squared error of `reconstruct`."""
        reconstruction, kls = self._terms(batch)
        latents = self.encode(batch.images)
        squares = (self.decode(latents, batch.labels) - batch.images).div(2).square().flatten(1)
        values = {"reconstruction": reconstruction, "kl": kls.sum(1), "mse": squares.mean(1)}
        values["negative_elbo"] = reconstruction + values["kl"]
        # In double: a variance is the small difference of two means.
        latents = latents.double()
        return values | {"latent": latents, "latent_square": latents.square()}

    def metrics(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """The bound, the number of latents in use, and the root mean square of their means."""
        variance = means["latent_square"] - means["latent"].square()
        return super().metrics(means) | {
            "active_units": float((variance > ACTIVE).sum()),
            "latent_scale": float(means["latent_square"].mean().sqrt()),
        }

    def log_weights(self, batch: Batch, keys: Tensor) -> Tensor:  # [K, B] int64 -> [K, B]
        images = self.targets(batch)
        mean, logvar = self.posterior(images)
        noise = rng.normal(keys.flatten(), "latent", (self.settings.latent_dim,)).to(mean.dtype)
        noise = noise.view(*keys.shape, -1)
        latents = mean + (logvar / 2).exp() * noise  # [K, B, Z]
        labels = None if batch.labels is None else batch.labels.repeat(len(keys))
        output = self._output(latents.flatten(0, 1), labels).to(images.dtype)
        repeated = images.expand(len(keys), *images.shape).flatten(0, 1)  # [K * B, C, H, W]
        surprise = self._surprise(repeated, output).view(keys.shape)
        # log N(z; 0, 1) - log q(z|x): their constants cancel.
        return (noise.square() + logvar - latents.square()).sum(2) / 2 - surprise

    def pixel_levels(self) -> int:
        if self.settings.likelihood == "gaussian":
            return 256
        return 0 if self.settings.binarise == "none" else 2

    def alarms(self, metrics: Mapping[str, float], seen: int) -> dict[str, str]:
        """Posterior collapse: latents without information. Exploding scale: far from N(0, 1)."""
        exploded = exploding("latents", metrics.get("val/latent_scale", 0.0))
        kl = metrics.get("val/kl", metrics.get("train/kl", math.inf))
        active = metrics.get("val/active_units")
        # During the warm-up a low KL is no alarm: its weight may still be too small to judge.
        if self.kl_weight(seen) < self.settings.beta or (kl >= COLLAPSED and active != 0):
            return exploded
        used = ""
        if active is not None:  # unknown where no images are held out
            used = f"{active:.0f} of {self.settings.latent_dim} latents in use, "
        return exploded | {
            "posterior collapse": (
                f"{used}KL {kl:.2g} nats: lower method.beta, or set "
                "method.warmup_images or method.free_bits"
            )
        }

    def targets(self, batch: Batch) -> Tensor:  # -> [B, C, H, W]
        """The images whose likelihood is taken: as they are, or each pixel drawn as -1 or 1."""
        if self.settings.binarise == "none":
            return batch.images
        keys = batch.record_keys if self.settings.binarise == "static" else batch.keys
        draw = rng.uniform(keys, "binarise", tuple(batch.images.shape[1:]))
        return (draw < (batch.images + 1) / 2).to(batch.images.dtype) * 2 - 1

    def _terms(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """-log p(x|z) of each image, [B], and the KL of each image and dimension, [B, Z]."""
        images = self.targets(batch)
        mean, logvar = self.posterior(images)
        noise = rng.normal(batch.keys, "latent", (self.settings.latent_dim,)).to(mean.dtype)
        # z = μ + σ ε, so that gradients reach μ and σ (Kingma & Welling 2014, section 2.4).
        latents = mean + (logvar / 2).exp() * noise
        output = self._output(latents, batch.labels).to(images.dtype)
        # Both Gaussians are diagonal, so the KL has a closed form (Kingma & Welling 2014, eq. 10).
        return self._surprise(images, output), (mean.square() + logvar.exp() - 1 - logvar) / 2

    def _output(self, latents: Tensor, labels: Tensor | None) -> Tensor:  # -> [B, C, H, W]
        if self.conditional:
            assert labels is not None, "a conditional method gets labels"
            latents = self.embedding(latents, labels)
        output: Tensor = self.decoder(latents)
        return output

    def _surprise(self, images: Tensor, output: Tensor) -> Tensor:  # -> [B]
        """-log p(x|z), summed over pixels, with all constants."""
        if self.settings.likelihood == "bernoulli":
            return likelihoods.bernoulli(images, output)
        return likelihoods.gaussian(images, output.tanh(), self._logsigma(images))

    def _logsigma(self, images: Tensor) -> Tensor:
        if self._learns_sigma:
            logsigma: Tensor = self.sigma()
            return logsigma
        return images.new_tensor(math.log(self.settings.sigma))


def _refuse_contradictions(settings: VAESettings) -> None:
    # The defaults, and those of former releases, which their run folders spell out.
    usual = (("learned", 0.5), ("fixed", 1.0))
    if settings.likelihood == "bernoulli" and (settings.variance, settings.sigma) not in usual:
        raise UsageError(
            "method.variance and method.sigma have no meaning when method.likelihood is bernoulli"
        )
    if settings.likelihood == "gaussian" and settings.binarise != "none":
        raise UsageError("method.binarise has no meaning when method.likelihood is gaussian")
    if settings.warmup_images and not settings.beta:
        raise UsageError("method.warmup_images has no meaning when method.beta is 0")
