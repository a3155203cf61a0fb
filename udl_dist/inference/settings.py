"""The settings of `udl fit-extractor` and `udl embed`; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from udl_dist.core.config_schema import setting

Kind = Literal["parquet", "npy"]


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
