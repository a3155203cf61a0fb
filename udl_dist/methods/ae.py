"""The autoencoder: the squared error between an image and its reconstruction from a latent.

Plain, denoising (Vincent et al. 2010: the input is corrupted, the target is not), masked (He et al.
2022: the target is what the input lacks) or with tied weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from udl_dist.core import rng
from udl_dist.core.config_schema import setting
from udl_dist.errors import UsageError
from udl_dist.methods.method import Batch, Loss, Method, Phase, Shape
from udl_dist.methods.metrics.alarms import exploding
from udl_dist.methods.networks import NetworkSettings, decoder, encoder
from udl_dist.methods.networks.layers import GAINS, Bias, activation, linear

PATCH = 4  # pixels, where the settings name none


@dataclass(frozen=True)
class AESettings:
    """Settings of the autoencoder's networks and of its noise."""

    latent_dim: int = setting(32, "numbers in the latent of an image", low=1)
    network: NetworkSettings = setting(NetworkSettings, "the encoder; the decoder mirrors it")
    tied: bool = setting(
        False, "one dense layer, read out by its own transpose: image = Wᵀf(Wx + b) + c"
    )
    noise: Literal["none", "gaussian", "mask", "salt_and_pepper", "patches"] = setting(
        "none",
        "corruption of the input: added normal numbers, pixels set to -1, or pixels set to -1 or 1;"
        " patches: squares set to 0, and the error is theirs alone (He et al. 2022)",
    )
    noise_level: float = setting(
        0.0,
        "std of the gaussian, in units of pixels in [-1, 1]; else the share of pixels or of patches"
        " hit",
        low=0,
    )
    patch: int = setting(PATCH, "patches: pixels of a side", low=1)


class Autoencoder(Method):
    """Minimises Σ(x - y)² over pixels; with tied weights ½Σ(x - y)², y = Wᵀf(Wx + b) + c.

    Images are in [-1, 1]. `network.kind = "dense"`, `network.widths = [64]` and `latent_dim = 32`
    make the article's 784-64-32-32-64-784; its latent is linear. The article ends in a sigmoid,
    which cannot reach the range below zero; here the output is tanh. With tied weights y is linear,
    and pictures of it are clamped to [-1, 1].

    With masked patches the sum is over their pixels, and so are the metrics; the number of patches
    is the same for each image.
    """

    Settings = AESettings
    # Batches of 32 learn more from as many images than those of 128, and the fall to 0 at the end
    # lowers the error once more (photographs of 64 px: held-out mse 0.0022 against 0.0030).
    defaults: ClassVar = {"train.batch_size": 32, "train.schedule": "cosine"}
    best = "mse"
    # Errors of corrupted images depend on how much is corrupted; tied weights halve the error.
    incomparable: ClassVar = {
        "latent_scale": (),
        "mse": ("noise", "noise_level", "patch"),
        "reconstruction": ("tied", "noise", "noise_level", "patch"),
    }
    settings: AESettings

    def __init__(self, settings: AESettings, shape: Shape, classes: tuple[str, ...] = ()) -> None:
        super().__init__(settings, shape, classes)
        _refuse_contradictions(settings)
        self._grid = math.ceil(shape[1] / settings.patch), math.ceil(shape[2] / settings.patch)
        masked = settings.noise == "patches"
        self._hidden = round(settings.noise_level * math.prod(self._grid)) if masked else 0
        if masked and not 0 < self._hidden < math.prod(self._grid):
            raise UsageError(
                f"method.noise_level = {settings.noise_level} hides {self._hidden} of the"
                f" {math.prod(self._grid)} patches of an image: it must hide some and leave some"
            )
        self.latent_shape = (settings.latent_dim,)
        network = settings.network
        self.encoder: nn.Module
        self.decoder: nn.Module
        if settings.tied:
            pixels, kind = math.prod(shape), network.activation
            into = linear(pixels, settings.latent_dim, GAINS[kind])
            self.encoder = nn.Sequential(nn.Flatten(), into, activation(kind))
            # W belongs to the encoder (see `_output`); the decoder learns c alone.
            self.decoder = nn.Sequential(Bias(pixels), nn.Unflatten(1, shape))
        else:
            self.encoder = encoder(network, shape, self.latent_shape)
            self.decoder = decoder(network, self.latent_shape, shape)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(("encoder", "decoder"), self.loss),)

    def loss(self, batch: Batch) -> Loss:
        """The mean error between the images and the reconstructions of the corrupted ones."""
        output = self._output(self.encode(self.damage(batch)))
        reconstruction = self._error(batch, output).mean()
        return Loss(reconstruction, {"reconstruction": reconstruction})

    def damage(self, batch: Batch) -> Tensor:  # -> [B, C, H, W]
        """The images with noise that depends on `batch.keys` alone."""
        images, level = batch.images, self.settings.noise_level
        shape = tuple(images.shape[1:])
        if self.settings.noise == "none":
            return images
        if self.settings.noise == "patches":
            return images.masked_fill(self.hidden(batch.keys), 0.0)
        if self.settings.noise == "gaussian":
            return images + level * rng.normal(batch.keys, "noise", shape).to(images.dtype)
        # One draw decides whether a pixel is hit and, for salt and pepper, which end it goes to.
        draw = rng.uniform(batch.keys, "noise", shape)
        black = draw < (level if self.settings.noise == "mask" else level / 2)
        corrupted = images.masked_fill(black, -1.0)
        if self.settings.noise == "mask":
            return corrupted
        return corrupted.masked_fill((draw < level) & ~black, 1.0)

    def hidden(self, keys: Tensor) -> Tensor:  # [B] int64 -> [B, 1, H, W] bool
        """The pixels of the patches that are masked."""
        height, width = self.shape[1:]
        draws = rng.uniform(keys, "noise", (math.prod(self._grid),))
        # The patches with the least numbers: as many in each image. Stable, for equal numbers.
        order = draws.argsort(dim=1, stable=True).argsort(1)
        chosen: Tensor = (order < self._hidden).view(-1, 1, *self._grid)
        patch = self.settings.patch
        whole: Tensor = chosen.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
        return whole[..., :height, :width]

    def encode(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, Z]
        latents: Tensor = self.encoder(images)
        return latents

    # [B, Z] -> [B, C, H, W]
    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        return self._output(latents).clamp(-1, 1)

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """The error as trained, and per pixel in [0, 1]; of corrupted images if there is noise.

        Of masked patches both are of their pixels alone.
        """
        latents = self.encode(self.damage(batch))
        output = self._output(latents)
        # A difference in [-1, 1] is twice that in [0, 1], the range that papers give errors in.
        squares = (output.clamp(-1, 1) - batch.images).div(2).square()
        mse = squares.flatten(1).mean(1)
        if self.settings.noise == "patches":
            hidden = self.hidden(batch.keys).expand_as(squares).flatten(1)
            mse = (squares.flatten(1) * hidden).sum(1) / hidden.sum(1)
        # `reconstruction` is a sum over pixels, which grows with the image; `mse` a mean.
        return {
            "reconstruction": self._error(batch, output),
            "mse": mse,
            "latent_scale": latents.square().mean(1),
        }

    def metrics(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """The errors, and the root mean square of the latents."""
        return super().metrics(means) | {"latent_scale": float(means["latent_scale"].sqrt())}

    def alarms(self, metrics: Mapping[str, float], seen: int) -> dict[str, str]:
        return exploding("latents", metrics.get("val/latent_scale", 0.0))

    def _output(self, latents: Tensor) -> Tensor:  # [B, Z] -> [B, C, H, W]
        if not self.settings.tied:
            return self.decoder(latents).tanh()  # type: ignore[no-any-return]
        weights = self.encoder.get_parameter("1.weight")  # [Z, D]: after Flatten, "0"
        return self.decoder(latents @ weights)  # type: ignore[no-any-return]

    def _error(self, batch: Batch, output: Tensor) -> Tensor:  # -> [B]
        # In the type of the images: autocast returns bfloat16, too coarse to sum over all pixels.
        squares = (output.to(batch.images.dtype) - batch.images).square()
        if self.settings.noise == "patches":
            squares = squares * self.hidden(batch.keys)
        sums = squares.flatten(1).sum(1)
        return sums / 2 if self.settings.tied else sums


# A setting that would be ignored is refused.
def _refuse_contradictions(settings: AESettings) -> None:
    if settings.noise == "none" and settings.noise_level:
        raise UsageError("method.noise_level is set, but method.noise is none: choose a noise")
    if settings.noise != "none" and not settings.noise_level:
        raise UsageError(
            f"method.noise is {settings.noise}, but method.noise_level is 0: set a level, such"
            " as 0.3"
        )
    if settings.noise in ("mask", "salt_and_pepper", "patches") and settings.noise_level > 1:
        raise UsageError(
            f"method.noise_level is a share of pixels and at most 1, not {settings.noise_level}"
        )
    if settings.noise != "patches" and settings.patch != PATCH:
        raise UsageError(f"method.patch has no meaning when method.noise is {settings.noise}")
    plain = NetworkSettings(kind="dense", activation=settings.network.activation)
    if settings.tied and settings.network != plain:
        name, value = _difference(settings.network, plain)
        raise UsageError(
            f"method.tied makes one dense layer of latent_dim × pixels, so method.network.{name} "
            f"must be {value!r}"
        )


def _difference(settings: Any, plain: Any) -> tuple[str, Any]:
    """The first setting in which the two differ, and its value in the second."""
    return next(
        (name, value) for name, value in vars(plain).items() if getattr(settings, name) != value
    )
