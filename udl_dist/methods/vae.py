"""The variational autoencoder (Kingma & Welling 2014), with a bound on the likelihood of an image.

Metrics are in nats per image with all constants: `negative_elbo` compares with published values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from udl_dist.core import rng
from udl_dist.errors import UsageError
from udl_dist.methods.losses import likelihoods, priors
from udl_dist.methods.method import Batch, Loss, Method, Phase, Shape
from udl_dist.methods.metrics import vae_metrics
from udl_dist.methods.metrics.alarms import exploding
from udl_dist.methods.networks import decoder, encoder
from udl_dist.methods.networks.layers import SMALL, ClassEmbedding
from udl_dist.methods.vae_settings import VAESettings, refuse_contradictions


class VariationalAutoencoder(Method):
    """Minimises -E log p(x|z) + weight · KL(q(z|x) ‖ p(z)), with one draw of z for each image.

    Or, with the objective `iwae`, -log 1/k Σ p(x, z) / q(z|x) over k draws (Burda et al. 2016).

    Bernoulli: a pixel in [-1, 1] stands for a probability (x + 1) / 2. Binarised, `negative_elbo`
    bounds -log p of the drawn image; with `binarise = "none"` it is a cross-entropy, since on grey
    values the Bernoulli lacks its normalising constant (Loaiza-Ganem & Cunningham 2019). Gaussian:
    a density of pixels in [-1, 1]; of pixels in [0, 1] it is C·H·W·log 2 nats less. A learned σ is
    one number for all pixels, as in σ-VAE (Rybkin et al. 2021), where it beats one for each pixel.
    Logistic: a probability of each of 256 levels; `decode` gives the mean of the mixture.
    """

    Settings = VAESettings
    defaults: ClassVar = {"train.batch_size": 32, "train.schedule": "cosine"}
    best = "negative_elbo"
    # A density, a probability of black and white, and a cross-entropy of greys cannot be compared.
    incomparable: ClassVar = {
        **dict.fromkeys(("negative_elbo", "reconstruction"), ("likelihood", "binarise")),
        "iwae_bound": ("likelihood", "binarise", "samples"),
        **dict.fromkeys(("kl", "active_units", "latent_scale"), ()),
    }
    about_samples = (
        "Samples here are drawn from the model's own prior; udl sample RUN draws from a mixture"
        " over the codes of training images where that is nearer to held-out ones"
    )
    settings: VAESettings

    def __init__(self, settings: VAESettings, shape: Shape, classes: tuple[str, ...] = ()) -> None:
        super().__init__(settings, shape, classes)
        refuse_contradictions(settings)
        self.latent_shape = (settings.latent_dim,)
        # The mean and the log-variance of each number.
        self.encoder = encoder(settings.network, shape, (2 * settings.latent_dim,))
        self.conditional, inputs = settings.conditional, settings.latent_dim
        if self.conditional:
            self.embedding = ClassEmbedding(classes)
            inputs += self.embedding.size
        # Ten components that begin alike would stay alike for long.
        gain = 1.0 if settings.likelihood == "logistic" else SMALL
        outputs = likelihoods.outputs(settings.likelihood, shape)
        self.decoder = decoder(settings.network, (inputs,), outputs, gain)
        self.density = settings.likelihood == "gaussian"
        self._learns_sigma = (settings.likelihood, settings.variance) == ("gaussian", "learned")
        if self._learns_sigma:
            self.sigma = likelihoods.Deviation(settings.sigma)
        if settings.prior == "vamp":
            self.pseudo_inputs = priors.PseudoInputs(settings.pseudo_inputs, shape)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(tuple(self.networks), self.loss),)

    def check_images(self, images: int, total: int) -> tuple[str, ...]:
        count = self.settings.pseudo_inputs
        if self.settings.prior == "vamp" and count > images:
            raise UsageError(
                f"method.pseudo_inputs is {count:,}, more than the {images:,} training images: ask"
                " for fewer"
            )
        return ()

    def loss(self, batch: Batch) -> Loss:
        """The weighted bound; the plots are its terms without weight, warm-up or free bits."""
        if self.settings.objective == "iwae":
            return self._loss_of_many(batch)
        reconstruction, kls = self._terms(batch)
        kl = kls.sum(1).mean()
        paid = kl
        if self.settings.free_bits:
            # max(λ, KLⱼ) for each image, so that the loss is a mean over images at any batch size;
            # Kingma et al. 2016, eq. 15, take the mean over the batch inside the maximum.
            paid = kls.clamp(min=self.settings.free_bits).sum(1).mean()
        error = reconstruction.mean()
        plots = {"reconstruction": error, "kl": kl, "negative_elbo": error + kl}
        return Loss(
            error + self.kl_weight(batch.seen) * paid, plots | self._sigma_plot(batch.images)
        )

    def kl_weight(self, seen: int) -> float:
        """The weight of the KL after `seen` images."""
        # Grows over the first images: against an untrained decoder the KL would win, and collapse.
        if seen >= self.settings.warmup_images:
            return self.settings.beta
        return self.settings.beta * (seen / self.settings.warmup_images)

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:  # [B, C, H, W] -> [B, Z], [B, Z]
        """The mean and log-variance of q(z|x)."""
        mean, logvar = self.encoder(images).to(images.dtype).chunk(2, 1)
        return mean, priors.bounded(logvar)

    def encode(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, Z]
        return self.posterior(images)[0]

    # [B, Z], [B] int64 -> [B, C, H, W]
    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        output = self._output(latents, labels)
        return likelihoods.mean_image(self.settings.likelihood, output, self.shape[0])

    def prior(self, keys: Tensor) -> Tensor:  # [N] int64 -> [N, Z]
        noise = rng.normal(keys, "latent", (self.settings.latent_dim,))
        if self.settings.prior == "normal":
            return noise
        mean, logvar = self.posterior(self.pseudo_inputs.chosen(keys))
        return mean + (logvar / 2).exp() * noise

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """The bound and its terms with full weight; the mean squared error of `reconstruct`.

        With the objective `iwae` also its bound. All bounds are negative, of one image.
        """
        reconstruction, kls = self._terms(batch)
        latents = self.encode(batch.images)
        squares = (self.decode(latents, batch.labels) - batch.images).div(2).square().flatten(1)
        values = {"reconstruction": reconstruction, "kl": kls.sum(1), "mse": squares.mean(1)}
        values["negative_elbo"] = reconstruction + values["kl"]
        if self.settings.objective == "iwae":
            drawn = self._drawn(batch, self._noise(batch.keys, self.settings.samples))
            values["iwae_bound"] = priors.bound(drawn.log_weights(self._mixture()))
        return values | vae_metrics.moments(latents)

    def metrics(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """The bound, the number of latents in use, and the root mean square of their means."""
        return super().metrics(means) | vae_metrics.metrics(means)

    def log_weights(self, batch: Batch, keys: Tensor) -> Tensor:  # [K, B] int64 -> [K, B]
        noise = rng.normal(keys.flatten(), "latent", (self.settings.latent_dim,))
        drawn = self._drawn(batch, noise.view(*keys.shape, -1))
        return drawn.log_weights(self._mixture())

    def pixel_levels(self) -> int:
        if self.settings.likelihood != "bernoulli":
            return 256
        return 0 if self.settings.binarise == "none" else 2

    def alarms(self, metrics: Mapping[str, float], seen: int) -> dict[str, str]:
        """Posterior collapse: latents without information. Exploding scale: far from N(0, 1)."""
        exploded = exploding("latents", metrics.get("val/latent_scale", 0.0))
        kl = metrics.get("val/kl", metrics.get("train/kl", math.inf))
        active = metrics.get("val/active_units")
        # During the warm-up a low KL is no alarm: its weight may still be too small to judge.
        if self.kl_weight(seen) < self.settings.beta:
            return exploded
        return exploded | vae_metrics.collapse(kl, active, self.settings.latent_dim)

    def targets(self, batch: Batch) -> Tensor:  # -> [B, C, H, W]
        """The images whose likelihood is taken: as they are, or each pixel drawn as -1 or 1."""
        if self.settings.binarise == "none":
            return batch.images
        keys = batch.record_keys if self.settings.binarise == "static" else batch.keys
        return likelihoods.binarised(batch.images, keys)

    def _terms(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """-log p(x|z) of each image, [B], and its KL, [B, Z], or from a mixture [B, 1]."""
        drawn = self._drawn(batch, self._noise(batch.keys, 1))
        return drawn.surprise[0], drawn.kls(self._mixture())

    def _loss_of_many(self, batch: Batch) -> Loss:
        drawn = self._drawn(batch, self._noise(batch.keys, self.settings.samples))
        weights = drawn.log_weights(self._mixture())
        bound, error = priors.bound(weights).mean(), drawn.surprise.mean()
        # Of the ELBO an estimate by k latents, not the bound that is minimised.
        negative_elbo = -weights.mean()
        plots = {"reconstruction": error, "kl": negative_elbo - error, "iwae_bound": bound}
        plots |= {"negative_elbo": negative_elbo, **self._sigma_plot(batch.images)}
        return Loss(bound, plots)

    def _noise(self, keys: Tensor, count: int) -> Tensor:  # [B] int64 -> [K, B, Z]
        return rng.normal(keys, "latent", (count, self.settings.latent_dim)).transpose(0, 1)

    def _drawn(self, batch: Batch, noise: Tensor) -> priors.Drawn:
        """Latents of each image by `noise`, [K, B, Z], and what the decoder makes of them."""
        images = self.targets(batch)
        mean, logvar = self.posterior(images)
        noise = noise.to(mean.dtype)
        # z = μ + σ ε, so that gradients reach μ and σ (Kingma & Welling 2014, section 2.4).
        latents = mean + (logvar / 2).exp() * noise
        labels = None if batch.labels is None else batch.labels.repeat(len(noise))
        output = self._output(latents.flatten(0, 1), labels).to(images.dtype)
        repeated = images.expand(len(noise), *images.shape).flatten(0, 1)  # [K * B, C, H, W]
        surprise = self._surprise(repeated, output).view(noise.shape[:2])
        return priors.Drawn(mean, logvar, noise, latents, surprise)

    def _mixture(self) -> priors.Components | None:
        vamp = self.settings.prior == "vamp"
        return self.posterior(self.pseudo_inputs()) if vamp else None

    def _output(self, latents: Tensor, labels: Tensor | None) -> Tensor:  # -> [B, C, H, W]
        if self.conditional:
            assert labels is not None, "a conditional method gets labels"
            latents = self.embedding(latents, labels)
        output: Tensor = self.decoder(latents)
        return output

    def _surprise(self, images: Tensor, output: Tensor) -> Tensor:  # -> [B]
        """-log p(x|z), summed over pixels, with all constants."""
        logsigma = self._logsigma(images) if self.density else None
        return likelihoods.surprise(self.settings.likelihood, images, output, logsigma)

    def _sigma_plot(self, images: Tensor) -> dict[str, Tensor]:
        return {"sigma": self._logsigma(images).exp().mean()} if self._learns_sigma else {}

    def _logsigma(self, images: Tensor) -> Tensor:
        if self._learns_sigma:
            logsigma: Tensor = self.sigma()
            return logsigma
        return images.new_tensor(math.log(self.settings.sigma))
