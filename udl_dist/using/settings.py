"""The settings of what is made with a model; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from udl_dist.settings import setting

Kind = Literal["parquet", "npy"]


@dataclass(frozen=True)
class EmbedSettings:
    """How the latents of a source are kept."""

    format: Kind = setting("parquet", "columns key, label, latent; npy: arrays, and a text file of keys")
    part_images: int = setting(65_536, "images in a part, which is written whole or not at all", low=1)
    workers: int = setting(0, "Ray workers that share the parts; 0: this process alone", low=0)
    readers: int = setting(1, "threads of each that read and decode ahead", low=0, high=256)
    address: str = setting("", "a Ray cluster to join; empty: a private Ray on this machine")
