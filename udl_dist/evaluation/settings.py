"""The settings of validations, and of verbs that measure or embed; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

from udl_dist.core.config_schema import setting

DETAIL, PIXELS = "detail", "pixels"
LITE0 = "efficientnet-lite0"  # in a package
OWN = (DETAIL, PIXELS, LITE0)  # extractors that need no file
MOST = 10  # validations of a run that sets no interval
# Time of a held-out image, in training images: 0.24 to 0.88 (docs/benchmarks.md).
COST = 0.75

Kind = Literal["parquet", "npy"]


@dataclass(frozen=True)
class EvaluateSettings:
    every_images: int = setting(
        0,
        "images between validations and pictures; 0: ten times a run, or as often as "
        "evaluate.share allows",
        low=0,
    )
    images: int = setting(
        10_000, "most held-out images of a validation, the same ones each time; 0: all", low=0
    )
    share: float = setting(
        0.05,
        "share of a run's time for validations; there is always one at the end",
        above=0,
        high=1,
    )
    at_images: tuple[int, ...] = setting(
        (), "more points, in images, for a validation and a checkpoint", low=1
    )
    pictures: bool = setting(True, "write PNG grids into the run folder at each validation")
    columns: int = setting(10, "images in a row of a picture", low=1, high=100)

    prior_images: int = setting(
        20_000,
        "at the end of a run of a method with latents and a prior, a mixture is fitted to the codes"
        " of at most this many training images, for udl sample where that is better; 0: none",
        low=0,
    )

    def interval(self, total: int, held_out: int) -> int:
        """Images between validations of `held_out` images, in a run of `total`.

        Computed and never measured, so that the points of a curve depend on no clock.
        """
        allowed = self.share * total / max(1.0, held_out * COST)
        return self.every_images or ceil(total / max(1, min(MOST, int(allowed))))

    def seen(self, held_out: int) -> int:
        """The number of held-out images of a validation."""
        return min(held_out, self.images or held_out)


@dataclass(frozen=True)
class MetricSettings:
    """The metrics of `udl evaluate`, and the images they are measured on."""

    families: tuple[str, ...] = setting(
        (), "metric groups; empty: all that the method and the images allow"
    )
    images: int = setting(10_000, "held-out images at most, drawn at random; 0: all of them", low=0)
    train_images: int = setting(
        10_000, "most training images for floors, neighbours and probes; 0: all", low=0
    )
    data: str = setting("", "another source of images to measure; empty: the run's held-out images")
    seed: int = setting(0, "of noise, latents and clusters")
    seeds: int = setting(3, "sets of generated images; their metrics have a ± over these", low=1)
    prior: Literal["auto", "own", "mixture"] = setting(
        "auto",
        "where latents of generated images come from: the method's own, or the mixture of udl"
        " fit-prior",
    )
    pairs: int = setting(
        10_000,
        "most images of each set for kernel and neighbour distances, whose time grows with "
        "the square; 0: none",
        low=0,
    )
    noise: tuple[float, ...] = setting(
        (0.1, 0.25, 0.5), "std of added noise, pixels in [0, 1], whose removal is measured", above=0
    )
    bound_samples: int = setting(
        100, "latents an image in the importance-weighted bound (IWAE); 0: none", low=0
    )
    extractor: str = setting(
        DETAIL,
        "features of images: detail (a fixed multi-scale descriptor), pixels (averaged to 8×8,"
        " without detail), efficientnet-lite0 (trained on ImageNet; extra perceptual), a file of"
        " udl fit-extractor, weights of VGG-16, TorchScript, or a .pt2 of torch.export",
    )
    trust_extractor: bool = setting(
        False, "run an extractor that is code: TorchScript or .pt2 may do whatever you can"
    )
    quantile: float = setting(
        0.95, "share of normal images below the anomaly threshold", above=0, high=1
    )
    neighbours: int = setting(
        10, "neighbours for an outlier factor, among at most 30,000 training images", low=1
    )
    tsne: bool = setting(
        False, "a second map of codes, by t-SNE, after that of their two main directions"
    )
    workers: int = setting(0, "Ray workers that share the images; 0: this process alone", low=0)
    readers: int = setting(1, "threads of each that read and decode ahead", low=0, high=256)
    address: str = setting("", "a Ray cluster to join; empty: a private Ray on this machine")


@dataclass(frozen=True)
class ExtractorSettings:
    """How a classifier is trained, whose features compare sets of images."""

    size: int = setting(
        0,
        "height and width of its input in pixels, at least 8; 0: as the images are",
        low=0,
        high=4096,
    )
    channels: Literal[0, 1, 3] = setting(0, "1 for gray, 3 for colour; 0: as the images are")
    fit: Literal["crop", "pad"] = setting(
        "crop", "how other shapes become square: crop the middle, or pad with black"
    )
    epochs: int = setting(10, "passes over the images", low=1)
    batch_size: int = setting(64, "images in a step", low=1)
    learning_rate: float = setting(2e-3, "of Adam, falling to 0", above=0)
    seed: int = setting(0, "of first weights and the order")
    readers: int = setting(1, "threads that read and decode ahead", low=0, high=256)


@dataclass(frozen=True)
class EmbedSettings:
    """How the latents of a source are written."""

    format: Kind = setting(
        "parquet", "columns key, label, latent; npy: arrays, and a text file of keys"
    )
    codes: bool = setting(
        False, "of a tokenizer with codes: which codes they are, int64, instead of latents"
    )
    part_images: int = setting(65_536, "images in a part, which is complete or absent", low=1)
    workers: int = setting(0, "Ray workers that share the parts; 0: this process alone", low=0)
    readers: int = setting(1, "threads of each that read and decode ahead", low=0, high=256)
    address: str = setting("", "a Ray cluster to join; empty: a private Ray on this machine")
