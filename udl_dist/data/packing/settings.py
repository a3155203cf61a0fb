"""How a source of images becomes shards, as settings. Knows no image and no tar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from udl_dist.core.config_schema import setting
from udl_dist.data.images.headers import HIGHEST_LIMIT, LIMIT_IN_WORDS, MOST_PIXELS
from udl_dist.data.images.kinds import Shape
from udl_dist.data.shards.naming import IMAGE_IN_WORDS, KEY_DOT_IN_WORDS, KeyDot, Naming


@dataclass(frozen=True)
class PackSettings:
    """How a source of images becomes shards."""

    size: int = setting(
        0,
        "height and width in pixels of the packed images; 0: as they are, 128 at most",
        low=0,
        high=4096,
    )
    channels: Literal[0, 1, 3] = setting(0, "1 for gray, 3 for colour; 0: as the images are")
    fit: Literal["crop", "pad"] = setting(
        "crop", "how other shapes become square: crop the middle, or pad with black"
    )
    format: Literal["png", "jpeg", "webp", "npy", "raw"] = setting(
        "png", "png, npy and raw keep every pixel; npy and raw are the fastest to read"
    )
    quality: int = setting(90, "of jpeg and webp", low=1, high=100)
    shard_records: int = setting(10_000, "most records in a shard", low=1)
    shard_bytes: int = setting(
        256 * 2**20, "most bytes in a shard, reckoned from uncompressed images", low=1
    )
    held_out_fraction: float = setting(
        0.0, "part of the images packed as `val`, by a seeded hash", low=0.0, high=0.9
    )
    seed: int = setting(
        0, "seed of the held-out hash and of the order in which images are packed", low=0
    )
    threads: int = setting(
        0, "threads that pack, one shard each at a time; 0: one per CPU", low=0, high=256
    )
    most_pixels: int = setting(MOST_PIXELS, LIMIT_IN_WORDS, low=1, high=HIGHEST_LIMIT)
    skip_damaged: bool = setting(
        False, "leave out images that cannot be read, and list them, instead of stopping"
    )
    license: str = setting(
        "", "licence of the images, kept in the index; empty: the text of a LICENSE file"
    )

    @property
    def shape(self) -> Shape:
        """C, H, W of a packed image."""
        assert self.size and self.channels, "they are taken from the images first"
        return self.channels, self.size, self.size


@dataclass(frozen=True)
class IndexSettings:
    """How shards are indexed."""

    cache: str = setting(
        "", "folder for the index of shards whose own cannot be written; empty: ~/.cache/udl-dist"
    )
    again: bool = setting(False, "index anew, also if there is an index")
    image: str = setting("", IMAGE_IN_WORDS)
    key_dot: KeyDot = setting("first", KEY_DOT_IN_WORDS)
    damaged: Literal["stop", "skip"] = setting(
        "stop", "what records that cannot be read do; skip: they are left out"
    )

    @property
    def naming(self) -> Naming:
        """How members of a tar become records."""
        return Naming(self.image, self.key_dot)
