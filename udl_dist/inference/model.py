"""A trained model in use: images in, latents, images and scores out, in batches of any size. Knows
no file.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from udl_dist.core import rng
from udl_dist.errors import TrainingError, UsageError
from udl_dist.evaluation import similarity
from udl_dist.inference.inputs import as_images, as_latents
from udl_dist.inference.loading import Opened, latent_dim, open_folder
from udl_dist.methods import Batch
from udl_dist.methods.pixels import levels

if TYPE_CHECKING:
    from PIL import Image

# that go through the networks at once, so that memory is bounded however many are given
BATCH_IMAGES = 256
ABILITIES = ("encode", "decode", "reconstruct", "sample", "score")
OUTLIER_FACTOR = "code_outlier_factor"
Prior = Literal["auto", "own", "mixture"]


class Model:
    """A method with its weights. All it gives are tensors on the CPU; images are [N, C, H, W]
    floats in [-1, 1].

    Images are taken as NumPy arrays, tensors or PIL images (see `models/inputs.py`). What the
    method cannot do raises UsageError that names what it can.
    """

    def __init__(self, opened: Opened, device: str = "cpu") -> None:
        self.method, self.shape, self.origin = opened.method, opened.shape, opened.origin
        self.mixture, self.crowd = opened.mixture, opened.crowd
        self.device = _device(device)
        self.method.networks.to(self.device)
        self.latent_dim = latent_dim(self.method, self.shape)

    def can(self, ability: str) -> bool:
        """Whether the model can `encode`, `decode`, `reconstruct`, `sample` or `score`."""
        if ability == "score":
            return bool(self.scores)
        return self.method.can(ability) or (ability == "sample" and self.mixture is not None)

    @cached_property
    def scores(self) -> tuple[str, ...]:
        """The anomaly scores it has: squared error of the reconstruction, a bound on the
        likelihood, and the outlier factor of the code where codes were kept.
        """
        crowd = (OUTLIER_FACTOR,) if self.crowd else ()
        return (
            *(("reconstruction",) if self.method.can("reconstruct") else ()),
            *self._bound(),
            *crowd,
        )

    def _bound(self) -> tuple[str, ...]:
        if not self.method.can("measure") or self.method.best in ("", "mse"):
            return ()
        key = torch.zeros(1, dtype=torch.int64, device=self.device)
        with torch.no_grad():
            measured = self.method.measure(
                Batch(torch.zeros(1, *self.shape, device=self.device), key, key, 0)
            )
        # else of many together
        of_one = self.method.best in measured and measured[self.method.best].dim() == 1
        return (self.method.best,) if of_one else ()

    def encode(self, images: Any) -> Tensor:  # -> [N, Z]
        """The latents of images, without chance."""
        self.require("encode")
        return self._each(self.method.encode, self.images(images))

    def decode(self, latents: Any) -> Tensor:  # [N, Z] -> [N, C, H, W]
        """The images of latents, given as an array or a tensor."""
        self.require("decode")
        return self._each(self.method.decode, as_latents(latents, self.latent_dim))

    def reconstruct(self, images: Any) -> Tensor:  # -> [N, C, H, W]
        """Images through the model and back, without chance."""
        self.require("reconstruct")
        return self._each(self.method.reconstruct, self.images(images))

    # -> [N, C, H, W]
    def sample(self, count: int, seed: int = 0, prior: Prior = "auto", start: int = 0) -> Tensor:
        """New images number `start` to `start + count` of a seed, each the same however many are
        asked for.

        `prior`: `own` draws latents as the method says, `mixture` from what `udl fit-prior` fitted;
        `auto` takes the method's own where it has one.
        """
        if count < 0:
            raise UsageError(f"{count} images cannot be drawn: ask for 0 or more")
        keys = rng.keys(seed, count, start)
        if prior == "mixture" or (
            prior == "auto" and not self.method.can("sample") and self.mixture
        ):
            return self.decode(self._mixture().draw(keys))
        self.require(
            "sample", "run udl fit-prior first, and it can be sampled" if self.can("encode") else ""
        )
        return self._each(self.method.sample, keys)

    def score(self, images: Any, by: str = "auto", seed: int = 0) -> Tensor:  # -> [N] float64
        """How unlike the training images each is; more is odder. `by` is one of `scores`, `auto`
        the last of them.

        `reconstruction` is the mean squared error per pixel in [0, 1]; a bound is in nats, with
        noise from `seed`; `code_outlier_factor` is the local outlier factor of the code among those
        that `udl fit-outliers` kept.
        """
        ready = self.images(images)
        keys = rng.keys(seed, len(ready))
        return self.score_batch(Batch(ready, keys, keys, 0), by)

    def score_batch(self, batch: Batch, by: str = "auto") -> Tensor:  # -> [N] float64
        """The same of a batch that brings its own random keys."""
        which = self.scored_by(by)

        if which == OUTLIER_FACTOR and self.crowd:
            return self.crowd.outlier_factors(self._each(self.method.encode, batch.images))

        def scored(images: Tensor, keys: Tensor, record_keys: Tensor) -> Tensor:
            if which == "reconstruction":
                return similarity.mse(self.method.reconstruct(images), images)
            return self.method.measure(Batch(images, keys, record_keys, 0))[which].double()

        return self._each(scored, batch.images, batch.keys, batch.record_keys)

    def scored_by(self, by: str = "auto") -> str:
        """The name of the score that is asked for; raise UsageError if the model does not have
        it.
        """
        self.require("score")
        if by == "auto":
            return self.scores[-1]
        if by not in self.scores:
            raise UsageError(
                f"{self.origin.folder} has no score {by!r}: it has {', '.join(self.scores)}"
            )
        return by

    def images(self, given: Any) -> Tensor:  # -> [N, C, H, W]
        """Images as the method takes them; raise UsageError for those of another shape or kind."""
        return as_images(given, self.shape, self.origin.fit)

    def pictures(self, images: Tensor) -> list[Image.Image]:
        """Images the model gave, as PIL images."""
        from PIL import Image

        rasters = levels(images).numpy()
        return [
            Image.fromarray(one[0] if len(one) == 1 else one.transpose(1, 2, 0).copy())
            for one in rasters
        ]

    def require(self, ability: str, advice: str = "") -> None:
        """Raise UsageError if the model lacks an ability; say which it has."""
        if not self.can(ability):
            has = (
                ", ".join(name for name in ABILITIES if self.can(name))
                or "none of what can be asked for"
            )
            advised = f"; {advice}" if advice else ""
            raise UsageError(
                f"{self.origin.folder}: a model of method {self.origin.method} cannot {ability}, "
                f"it can {has}{advised}"
            )

    def _mixture(self) -> Any:
        if self.mixture is None:
            raise UsageError(
                f"{self.origin.folder} has no mixture to draw from: run udl fit-prior first"
            )
        return self.mixture

    def _each(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """`function` over parts of the inputs, on the model's device; raise TrainingError for what
        is not finite.
        """
        parts = []
        with torch.no_grad():
            for part in zip(*(torch.split(given, BATCH_IMAGES) for given in inputs), strict=True):
                parts.append(function(*(tensor.to(self.device) for tensor in part)).cpu())
        whole = torch.cat(parts)
        if not bool(whole.isfinite().all()):
            raise TrainingError(
                f"{self.origin.line()} gives numbers that are not finite: use another checkpoint"
            )
        return whole


def load(folder: Path | str, device: str = "cpu", checkpoint: str | int = "best") -> Model:
    """Open a run folder or an exported model.

    Of a run, `checkpoint` is `best` (least held-out figure among those kept; the last one where the
    method has no such figure, or nothing is held out), `last`, or a number of images; averaged
    weights where the run keeps an average. No pickle is read. Raises UsageError, DataError or
    TrainingError, one line each.
    """
    return Model(open_folder(folder, checkpoint), device)


def _device(name: str) -> torch.device:
    try:
        if name == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise UsageError(
            f"there is no device {name!r} here ({why}): give cpu, cuda or auto"
        ) from None
    return device
