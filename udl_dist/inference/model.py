"""A trained model in use: images in; latents, images and scores out, in batches of any size."""

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
from udl_dist.evaluation.fitted import Mixture
from udl_dist.inference.inputs import Labels, as_device, as_images, as_labels, as_latents
from udl_dist.inference.loading import LoadedModel, latent_dim, open_folder
from udl_dist.methods.method import Batch
from udl_dist.methods.pixels import levels

if TYPE_CHECKING:
    from PIL import Image

BATCH_IMAGES = 256  # that go through the networks at once, so that memory is bounded
ABILITIES = ("encode", "decode", "reconstruct", "sample", "score")
IN_WORDS = {"indices": "give codes"}  # an ability that is no verb
# Also the word of --by, and part of the name of an AUROC (evaluation/anomaly.py).
OUTLIER_FACTOR = "code_outlier_factor"
Prior = Literal["auto", "own", "mixture"]


class Model:
    """A method with its weights. It gives tensors on the CPU; images are floats in [-1, 1].

    It takes images [N, C, H, W] as NumPy arrays, tensors or PIL images (see `inference/inputs.py`).
    What the method cannot do raises UsageError that names what it can.
    """

    def __init__(self, loaded: LoadedModel, device: str = "cpu") -> None:
        self.method, self.origin = loaded.method, loaded.origin
        self.mixture, self.reference_codes = loaded.mixture, loaded.reference_codes
        self.shape, self.latent_dim = self.method.shape, latent_dim(self.method)
        self.device = as_device(device)
        # Opened on the CPU, moved once; inputs follow in batches.
        self.method.to(self.device)
        self.latent_shape = self.method.latent_shape

    def can(self, ability: str) -> bool:
        """Whether the model can `encode`, `decode`, `reconstruct`, `sample` or `score`."""
        if ability == "score":
            return bool(self.scores)
        # A fitted mixture gives an autoencoder what it lacks.
        return self.method.can(ability) or (ability == "sample" and self.mixture is not None)

    @cached_property
    def scores(self) -> tuple[str, ...]:
        """Its anomaly scores: squared error of the reconstruction, a bound on the likelihood, and
        the outlier factor of the code where reference codes are stored."""
        found = ["reconstruction"] if self.method.can("reconstruct") else []
        # "mse" is the reconstruction error under another name.
        if self.method.can("measure") and self.method.best not in ("", "mse"):
            # One black image shows whether the method measures each image by itself.
            key = torch.zeros(1, dtype=torch.int64, device=self.device)
            with torch.no_grad():
                image = torch.zeros(1, *self.shape, device=self.device)
                labels = key if self.method.conditional else None
                batch = Batch(image, key, key, 0, labels)
                measured = self.method.measure(batch).get(self.method.best)
            if measured is not None and measured.dim() == 1:  # else of many images together
                found.append(self.method.best)
        return (*found, OUTLIER_FACTOR) if self.reference_codes else tuple(found)

    def encode(self, images: Any) -> Tensor:  # -> [N, *latent_shape]
        """The latents of images, without chance."""
        self.require("encode")
        return self._each(self.method.encode, self.images(images))

    def codes(self, images: Any) -> Tensor:  # -> [N, Z]
        """The latents of images as rows."""
        self.require("encode")
        return self._each(self.method.codes, self.images(images))

    def indices(self, images: Any) -> Tensor:  # -> [N, h, w] int64
        """Which codes the latents of images are."""
        self.require("indices")
        return self._each(self.method.indices, self.images(images))

    def decode_indices(self, indices: Any) -> Tensor:  # [N, h, w] -> [N, C, H, W]
        """The images of codes."""
        self.require("indices")
        return self._each(self.method.decode_indices, torch.as_tensor(indices))

    # [N, *latent_shape] or [N, Z] -> [N, C, H, W]
    def decode(self, latents: Any, labels: Labels = None) -> Tensor:
        """The images of latents or of rows, given as an array or a tensor."""
        self.require("decode")
        ready = as_latents(latents, self.latent_shape)
        return self._each(self.method.decode, ready, *self.labels(labels, len(ready)))

    def reconstruct(self, images: Any, labels: Labels = None) -> Tensor:  # -> [N, C, H, W]
        """Images through the model and back; a conditional model needs their classes."""
        self.require("reconstruct")
        ready = self.images(images)
        return self._each(self.method.reconstruct, ready, *self.labels(labels, len(ready)))

    def labels(self, given: Labels, count: int) -> tuple[Tensor, ...]:
        """Classes, by name or number, as one tensor [count]; none for a model without classes."""
        classes = self.method.classes
        if not self.method.conditional:
            if given is not None:
                raise UsageError(f"{self.origin.folder} makes images of no class: give no label")
            return ()
        if given is None:
            raise UsageError(
                f"{self.origin.folder} makes images of a class: name one of {', '.join(classes)}"
            )
        return (as_labels(given, count, classes),)

    def sample(  # -> [N, C, H, W]
        self,
        count: int,
        seed: int = 0,
        prior: Prior = "auto",
        start: int = 0,
        labels: Labels = None,
    ) -> Tensor:
        """New images number `start` to `start + count` of a seed, whatever the count.

        `prior`: `own` draws latents from the method's prior, `mixture` from what `udl fit-prior`
        fitted; `auto` is the one whose images were nearer to held-out ones. A conditional model
        without `labels` makes its classes in turn.
        """
        if count < 0:
            raise UsageError(f"{count} images cannot be drawn: ask for 0 or more")
        if self.method.conditional and labels is None:
            labels = [number % len(self.method.classes) for number in range(start, start + count)]
        # A key for each number of an image: what is drawn depends on nothing else.
        keys = rng.keys(seed, count, start)
        # "own" of a method that cannot sample comes to `require` below, which says what it can do.
        if mixture := self.mixture_for(prior):
            return self.decode(mixture.draw(keys), labels)
        advice = "run udl fit-prior first, and it can be sampled" if self.can("encode") else ""
        self.require("sample", advice)
        return self._each(self.method.sample, keys, *self.labels(labels, count))

    def mixture_for(self, prior: Prior) -> Mixture | None:
        """The mixture if latents come from it; raise UsageError if it is asked for and absent."""
        if prior == "mixture" and not self.mixture:
            raise UsageError(
                f"{self.origin.folder} has no mixture to draw from: run udl fit-prior first"
            )
        mine = self.method.can("sample") and not (self.mixture and self.mixture.preferred)
        own = prior == "own" or (prior == "auto" and mine)
        return None if own else self.mixture

    def score(  # -> [N] float64
        self, images: Any, by: str = "auto", seed: int = 0, labels: Labels = None
    ) -> Tensor:
        """How anomalous each image is, of a conditional model among its class; more is more.

        `by` is one of `scores`, `auto` the last of them: `reconstruction`, the mean squared error
        per pixel in [0, 1]; a bound in nats, with noise from `seed`; `code_outlier_factor`, the
        local outlier factor of the code among those of `udl fit-outliers`.
        """
        ready = self.images(images)
        keys = rng.keys(seed, len(ready))
        # The outlier factor of a code needs no class: what does refuses images without one.
        given = () if labels is None else self.labels(labels, len(ready))
        return self.score_batch(Batch(ready, keys, keys, 0, *given), by)

    def score_batch(self, batch: Batch, by: str = "auto") -> Tensor:  # -> [N] float64
        """The scores of a batch with its own random keys."""
        name = self.scored_by(by)
        if name == OUTLIER_FACTOR and self.reference_codes:
            codes = self._each(self.method.codes, batch.images)
            return self.reference_codes.outlier_factors(codes)

        def scored(images: Tensor, keys: Tensor, record_keys: Tensor, *labels: Tensor) -> Tensor:
            if name == "reconstruction":
                return similarity.mse(self.method.reconstruct(images, *labels), images)
            return self.method.measure(Batch(images, keys, record_keys, 0, *labels))[name].double()

        if self.method.conditional and batch.labels is None:
            self.labels(None, 0)  # refused
        labels = () if batch.labels is None else (batch.labels,)
        return self._each(scored, batch.images, batch.keys, batch.record_keys, *labels)

    def scored_by(self, by: str = "auto") -> str:
        """The name of the score that is asked for; raise UsageError if the model lacks it."""
        self.require("score")
        if by != "auto" and by not in self.scores:
            has = ", ".join(self.scores)
            raise UsageError(f"{self.origin.folder} has no score {by!r}: it has {has}")
        # The later, the better: of the three the outlier factor does best on MNIST.
        return self.scores[-1] if by == "auto" else by

    def images(self, given: Any) -> Tensor:  # -> [N, C, H, W]
        """Images as the method takes them; raise UsageError for another shape or kind."""
        return as_images(given, self.shape, self.origin.fit)

    def pictures(self, images: Tensor) -> list[Image.Image]:
        """Images of the model as PIL images."""
        from PIL import Image

        pixels = levels(images).numpy().transpose(0, 2, 3, 1)
        # Pillow knows gray images only without a channel dimension.
        return [Image.fromarray(one.squeeze(2) if one.shape[2] == 1 else one) for one in pixels]

    def require(self, ability: str, advice: str = "") -> None:
        """Raise UsageError if the model lacks an ability; say which it has."""
        if not self.can(ability):
            has = ", ".join(name for name in ABILITIES if self.can(name)) or "none of its abilities"
            advised = f"; {advice}" if advice else ""
            raise UsageError(
                f"{self.origin.folder}: a model of method {self.origin.method} cannot "
                f"{IN_WORDS.get(ability, ability)}, it can {has}{advised}"
            )

    def _each(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """`function` over parts of the inputs, on the model's device; refuses NaN and infinity."""
        parts = []
        with torch.no_grad():
            for part in zip(*(torch.split(given, BATCH_IMAGES) for given in inputs), strict=True):
                # Back to the CPU at once, so that the device holds one batch.
                parts.append(function(*(tensor.to(self.device) for tensor in part)).cpu())
        whole = torch.cat(parts)
        # A diverged checkpoint would otherwise draw black images and scores of NaN.
        if not bool(whole.isfinite().all()):
            raise TrainingError(
                f"{self.origin.line()} gives numbers that are not finite: use another checkpoint"
            )
        return whole


def load(folder: Path | str, device: str = "cpu", checkpoint: str | int = "best") -> Model:
    """Open a run folder or an exported model.

    Of a run, `checkpoint` is `best` (the best held-out metric among those in the folder; the last
    one if the method has no such metric, or nothing is held out), `last`, or a number of images;
    averaged weights where the run keeps an average. No pickle is read. Raises UsageError,
    DataError or TrainingError, one line each.
    """
    return Model(open_folder(folder, checkpoint), device)
