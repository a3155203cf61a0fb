"""The settings of training; needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from udl_dist.core.config_schema import as_path, setting
from udl_dist.core.schedules import cosine
from udl_dist.errors import UsageError


@dataclass(frozen=True)
class Rates:
    """What the optimisers of one step take from the settings."""

    learning_rate: float
    beta2: float


@dataclass(frozen=True)
class TrainSettings:
    # Parts of a global batch in an elastic run, each with a backward of its own. 12 is divisible by
    # 1, 2, 3, 4, 6 and 12 ranks.
    VIRTUAL_RANKS: ClassVar[int] = 12
    DEFAULT_IMAGES: ClassVar[int] = 500_000  # of a run without a length in its settings

    batch_size: int = setting(128, "images of one step, over all ranks together", low=1)
    total_images: int = setting(
        0,
        "images of the run (whole steps); this or train.epochs; 0 and no epochs: 500,000",
        low=0,
    )
    epochs: float = setting(0.0, "passes over the data; this or train.total_images", low=0)
    seed: int = setting(
        0, "seed of all random numbers: weights, order, flips, noise", low=0, high=2**63 - 1
    )
    optimizer: Literal["adam", "adamw", "sgd"] = setting("adam", "the optimiser of every phase")
    learning_rate: float = setting(1e-3, "its peak", above=0)
    beta1: float = setting(0.9, "Adam's first decay; the momentum of sgd", low=0, below=1)
    beta2: float = setting(0.999, "Adam's second decay", low=0, below=1)
    beta2_end: float = setting(
        0.0, "what beta2 comes to, along a cosine; 0: it stays", low=0, below=1
    )
    weight_decay: float = setting(
        0.0, "decay of weights per step, in units of the learning rate for adamw", low=0
    )
    warmup_images: int = setting(
        0, "images over which the learning rate rises linearly to its peak", low=0
    )
    schedule: Literal["constant", "cosine", "stages"] = setting(
        "constant",
        "after the warm-up: stay, fall to learning_rate_end, or fall to a tenth in eight stages,"
        " each three times as long as the one before (Burda et al. 2016)",
    )
    learning_rate_end: float = setting(0.0, "where the cosine of schedule ends", low=0)
    decay_images: int = setting(
        0,
        "images after which cosines of learning rate, beta2 and half-life are at their ends; 0: the"
        " whole run",
        low=0,
    )
    accumulate: int = setting(
        1, "parts in which a rank computes its share of a batch, to save memory", low=1
    )
    clip_norm: float = setting(0.0, "greatest gradient norm of a phase; 0: no clipping", low=0)
    skip_norm: float = setting(
        0.0,
        "a phase whose gradient norm is above it leaves its weights as they are in that step (Child"
        " 2021); train/skipped_steps is their share; 0: none",
        low=0,
    )
    non_finite: Literal["stop", "skip"] = setting(
        "stop",
        "a loss or gradient that is not finite; skip: the step is left out, after 3 in a row the"
        " run goes back to its last checkpoint with another order, at most twice",
    )
    on_collapse: Literal["warn", "stop"] = setting(
        "warn", "what an alarm does, such as posterior collapse"
    )
    precision: Literal["float32", "tf32", "bfloat16"] = setting(
        "tf32",
        "of all layers alike; tf32: 10-bit mantissas in a GPU's matrix products (a CPU computes"
        " float32); bfloat16: autocast of networks and losses",
    )
    compile: bool = setting(
        False, "torch.compile the networks, but for one that a penalty differentiates twice"
    )
    channels_last: bool = setting(
        True, "keep convolutions and their images in channels-last memory format"
    )
    sync_batch_norm: bool = setting(
        False, "batch normalisation over the images of all ranks; needs GPUs"
    )
    average_half_life: int = setting(
        0, "half-life, in images, of the moving average of the weights; 0: none", low=0
    )
    average_share: float = setting(
        0.0,
        "the half-life is at most this part of the images seen, so that the average soon forgets"
        " the first weights (Karras et al. 2020); 0: no such bound",
        low=0,
    )
    average_ramp: bool = setting(
        False,
        "the half-life rises from 0 along a cosine over train.decay_images (Huang et al. 2024)",
    )
    init_from: str = setting(
        "",
        "a run folder, an exported model or a diffusers folder to start from: its weights alone",
    )
    report_images: int = setting(
        0, "images between points of the curves; 0: a hundred a run", low=0
    )

    def __post_init__(self) -> None:
        if "://" in self.init_from:
            raise UsageError(
                f"train.init_from {self.init_from!r} must be a folder on a disk: copy the model"
                " there"
            )
        if self.init_from:  # absolute: Ray gives each worker another working directory
            object.__setattr__(self, "init_from", str(as_path(self.init_from)))
        self._refuse_contradictions()

    def length(self, records: int) -> int:
        """The images of the whole run: the least number of whole steps that reaches its length."""
        if self.total_images and self.epochs:
            raise UsageError("set one of train.total_images and train.epochs, not both")
        asked = self.total_images or math.ceil(self.epochs * records) or self.DEFAULT_IMAGES
        return math.ceil(asked / self.batch_size) * self.batch_size

    def average_weight(self, images: int) -> float:
        """The weight of the present weights in the moving average after `images`; 0: no average."""
        half_life = float(self.average_half_life)
        if self.average_ramp:  # never 0, which would be no average
            half_life = max(1e-8, cosine(0.0, half_life, images / self.decay_images))
        if self.average_share:
            half_life = min(half_life, self.average_share * images)
        # Half of the average is of the images of the last half-life.
        return 1 - 0.5 ** (self.batch_size / half_life) if half_life else 0.0

    def rates_at(self, images: int, total: int) -> Rates:
        """The rates of the step after `images` of `total`: pure, so resuming is exact."""
        beta2 = self.beta2
        if self.beta2_end:
            beta2 = cosine(beta2, self.beta2_end, images / (self.decay_images or total))
        return Rates(self.learning_rate_at(images, total), beta2)

    def learning_rate_at(self, images: int, total: int) -> float:
        """The learning rate of the step after `images` of `total`."""
        if images < self.warmup_images:
            # The step's own images count, so that the first step is not at 0.
            reached = images + self.batch_size
            return self.learning_rate * reached / (self.warmup_images + self.batch_size)
        if self.schedule == "constant":
            return self.learning_rate
        end = self.decay_images if self.schedule == "cosine" and self.decay_images else total
        done = (images - self.warmup_images) / max(1, end - self.warmup_images)
        if self.schedule == "stages":
            # Stage i lasts 3^i of 3,280 parts, so it begins after (3^i - 1) / 2 of them.
            stage = sum(done * (3**8 - 1) >= 3**i - 1 for i in range(1, 8))
            return float(self.learning_rate * 10 ** (-stage / 7))
        return cosine(self.learning_rate, self.learning_rate_end, done)

    def _refuse_contradictions(self) -> None:
        falls = self.schedule == "cosine"
        if self.learning_rate_end and not falls:
            raise UsageError(
                "train.learning_rate_end has no meaning when train.schedule is"
                f" {self.schedule}: set train.schedule to cosine"
            )
        if self.beta2_end and self.optimizer == "sgd":
            raise UsageError("train.beta2_end has no meaning when train.optimizer is sgd")
        if self.average_ramp and not (self.average_half_life and self.decay_images):
            raise UsageError(
                "train.average_ramp needs train.average_half_life, where it ends, and"
                " train.decay_images, when it ends: set both"
            )
        if self.decay_images and not (falls or self.beta2_end or self.average_ramp):
            raise UsageError(
                "train.decay_images has no meaning when nothing follows a cosine: set"
                " train.schedule to cosine, train.beta2_end or train.average_ramp"
            )
