"""The contract of every method: what a method is given, what it says and what it can do.

A method knows its networks and its losses; it knows no optimiser, rank, file or Ray.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from udl_dist.errors import UsageError
from udl_dist.methods.networks.hub import HubLayout

Shape = tuple[int, int, int]  # C, H, W of an image


@dataclass(frozen=True)
class Batch:
    """Images and the keys of all random draws, which depend on no rank, reader or restart.

    `keys` differ by (seed, epoch, record), `record_keys` by (seed, record) alone: a draw from the
    latter stays the same in every epoch (static binarisation). `seen` counts the images of all
    ranks before this step. `labels` are indices of the method's `classes`.
    """

    images: Tensor  # [B, C, H, W] float in [-1, 1]
    keys: Tensor  # [B] int64
    record_keys: Tensor  # [B] int64
    seen: int
    labels: Tensor | None = None  # [B] int64; None: the data have no classes


@dataclass(frozen=True)
class Loss:
    """What a phase minimises and plots, both means over its rows, and sums for `after_step`.

    `sums` are sums over the rows of the batch. The loop adds them over the parts of the step and
    over all ranks in one message, so that `after_step` gets those of the global batch.
    """

    value: Tensor  # []
    plots: Mapping[str, Tensor] = field(default_factory=dict)  # each []
    sums: Mapping[str, Tensor] = field(default_factory=dict)  # of any shape, without gradient


@dataclass(frozen=True)
class PhaseOptimizer:
    """What a phase's optimiser does otherwise than the settings of `train`; None: the same."""

    rate: float = 1.0  # factor on train.learning_rate
    beta1: float | None = None
    beta2: float | None = None
    weight_decay: float | None = None


@dataclass(frozen=True)
class Phase:
    """One optimiser step of a method: which networks learn, by which loss, in every n-th step.

    The loss must reach every parameter of these networks: DDP waits for all of them.
    """

    trains: tuple[str, ...]
    loss: Callable[[Batch], Loss]
    every: int = 1
    start_images: int = 0  # images after which the phase begins
    optimizer: PhaseOptimizer = PhaseOptimizer()


class Method(nn.Module):
    """A method: its child modules are its networks; it has phases, and says what it can do.

    A subclass sets `Settings` (a frozen dataclass of `setting(...)`), makes its networks, lists its
    phases, and defines those of encode, decode, reconstruct, prior, sample, measure that make sense
    for it. State that no gradient changes is a buffer, and only `after_step` changes it.
    """

    Settings: ClassVar[type]
    # Settings of training that suit the method, by dotted name: a job file and flags win.
    defaults: ClassVar[Mapping[str, Any]] = {}
    # Settings that name files for the loss alone: empty in a loaded model, which needs none.
    loss_files: ClassVar[tuple[str, ...]] = ()
    best: ClassVar[str] = ""  # the metric that marks the best checkpoint, if there is one
    # The metrics of which more is better; of all others less is.
    higher_is_better: ClassVar[tuple[str, ...]] = ()
    # Metric -> the settings that change its scale; (): the metric does not rank runs at all.
    incomparable: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    cannot_see: ClassVar[Mapping[str, str]] = {}  # metric -> what it is blind to, in words
    about_samples: ClassVar[str] = ""  # for people, with commands for the run folder RUN
    frozen: tuple[str, ...] = ()  # children that are not trained, averaged or saved
    latent_shape: tuple[int, ...] = ()  # of one image: (Z,) or (C, h, w); (): no latents
    code_count: int = 0  # of a method with a finite set of codes: how many
    conditional: bool = False  # whether decode, reconstruct and sample need labels
    density: bool = True  # of 256 levels of a pixel: the likelihood is a density, not a probability

    def __init__(self, settings: Any, shape: Shape, classes: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.settings = settings
        self.shape = shape
        self.classes = classes  # names of labels

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that are trained, by name."""
        return {name: child for name, child in self.named_children() if name not in self.frozen}

    def phases(self) -> tuple[Phase, ...]:
        """The phases in the order in which a step runs them."""
        raise NotImplementedError

    def check_images(self, images: int, total: int) -> tuple[str, ...]:
        """Raise UsageError, or return warnings, about a run of `total` over so many images."""
        return ()

    def after_step(self, sums: Mapping[str, Tensor]) -> None:
        """Change buffers, in place, by the sums of the global batch of the phases of this step."""

    def averaged(self) -> tuple[str, ...]:
        """The networks whose weights are averaged; by default all."""
        return tuple(self.networks)

    def differentiated_twice(self) -> tuple[str, ...]:
        """The networks whose input gradient is part of a loss (a gradient penalty)."""
        return ()  # never compiled: compiled code has no double backward (torch 2.13)

    @classmethod
    def sign(cls, metric: str) -> int:
        """1, or -1 where more is better: the signed value of a metric is least at its best."""
        return -1 if metric.removeprefix("val/") in cls.higher_is_better else 1

    def own_buffers(self) -> list[Tensor]:
        """The buffers of the method and of its networks, without those of `frozen` children."""
        below = itertools.chain(*(network.buffers() for network in self.networks.values()))
        return [*self.buffers(recurse=False), *below]

    def saved_tensors(self) -> dict[str, Tensor]:
        """Weights and buffers by name, as in a checkpoint: without those of `frozen` children."""
        return {
            name: value
            for name, value in self.state_dict().items()
            if name.partition(".")[0] not in self.frozen
        }

    def load_saved(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `saved_tensors` gave; raise KeyError or RuntimeError for other networks."""
        if other := self.saved_tensors().keys() ^ tensors.keys():
            raise KeyError(f"{min(other)} is in one of both only")
        self.load_state_dict(self.state_dict() | dict(tensors))

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all networks but the frozen ones, which stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    @classmethod
    def can(cls, ability: str) -> bool:
        """Whether this method defines an ability, such as `encode`, or has all that it needs."""
        if getattr(cls, ability) is not getattr(Method, ability):
            return True
        follows = {"reconstruct": ("encode", "decode"), "sample": ("prior", "decode")}
        return ability in follows and all(cls.can(part) for part in follows[ability])

    def encode(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, *latent_shape]
        """The latents of images, without randomness (a VAE gives the mean)."""
        raise NotImplementedError

    # [B, *latent_shape], [B] int64 -> [B, C, H, W] in [-1, 1]
    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """The images of latents; `labels` are given to a conditional method only."""
        raise NotImplementedError

    def codes(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, Z]
        """The latents of images as rows, for whatever compares, fits or stores them."""
        return self.encode(images).flatten(1)

    # [B, Z], [B] int64 -> [B, C, H, W] in [-1, 1]
    def decode_codes(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """The images of latents that are given as rows."""
        return self._decode(codes.view(-1, *self.latent_shape), labels)

    # [B, C, H, W], [B] int64 -> [B, C, H, W]
    def reconstruct(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images encoded and decoded, without randomness."""
        return self._decode(self.encode(images), labels)

    def indices(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, h, w] int64
        """Which codes the latents of images are, of a method with a finite set of them."""
        raise NotImplementedError

    def decode_indices(self, indices: Tensor) -> Tensor:  # [B, h, w] int64 -> [B, C, H, W]
        """The images of codes."""
        raise NotImplementedError

    def damage(self, batch: Batch) -> Tensor:  # -> [B, C, H, W]
        """The input of the method: the images, or corrupted ones for a denoising method."""
        return batch.images

    def prior(self, keys: Tensor) -> Tensor:  # [N] int64 -> [N, *latent_shape]
        """Latents drawn from the prior, one for each random key."""
        raise NotImplementedError

    # [N] int64, [N] int64 -> [N, C, H, W] in [-1, 1]
    def sample(self, keys: Tensor, labels: Tensor | None = None) -> Tensor:
        """New images, one for each random key: the same key gives the same image."""
        return self._decode(self.prior(keys), labels)

    def alarms(self, metrics: Mapping[str, float], seen: int) -> dict[str, str]:
        """The failures that the metrics of a validation show: name -> values and advice."""
        return {}

    def hub(self) -> HubLayout:
        """The class of diffusers that computes the same; raise UsageError if settings fit none."""
        raise NotImplementedError

    def measure(self, batch: Batch) -> dict[str, Tensor]:  # each [B] or [B, D]
        """Held-out values of each image alone, so that sums over any shares of the data are exact.

        Each column is averaged: from x and x², `metrics` has variances over the data.
        """
        raise NotImplementedError

    def log_weights(self, batch: Batch, keys: Tensor) -> Tensor:  # [K, B] int64 -> [K, B]
        """log p(x, z) - log q(z|x) of one latent for each key and image.

        The mean of their exp over K estimates p(x) (Burda et al. 2016, eq. 8).
        """
        raise NotImplementedError

    def pixel_levels(self) -> int:
        """Values of a pixel under the likelihood: 2, 256 for a density, 0 without a likelihood."""
        return 0

    def metrics(self, means: Mapping[str, Tensor]) -> dict[str, float]:  # each [] or [D], float64
        """The metrics, from the means of `measure` over all held-out images: by default scalars."""
        return {name: float(mean) for name, mean in means.items() if not mean.dim()}

    def _decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        if not self.conditional:
            return self.decode(latents)
        if labels is None:
            raise UsageError(
                f"this model makes images of a class: name one of {', '.join(self.classes)}"
            )
        return self.decode(latents, labels)
