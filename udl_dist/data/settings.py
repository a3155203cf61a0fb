"""Settings of what is read, packed, indexed and checked."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from udl_dist.core.config_schema import as_path, setting
from udl_dist.data.images.headers import HIGHEST_LIMIT, LIMIT_IN_WORDS, MOST_PIXELS, Shape
from udl_dist.data.shards.naming import IMAGE_IN_WORDS, KEY_DOT_IN_WORDS, KeyDot, Naming
from udl_dist.errors import UsageError
from udl_dist.storage.transfers import Limits
from udl_dist.storage.uris import absolute


@dataclass(frozen=True)
# This module is imported by every `udl` command, so it imports neither NumPy nor torch.
class DataSettings:
    """What a run sees: where its images are, their training shape, what is held out."""

    source: str = setting(
        "digits",
        "'digits' (5,000 embedded ones), an image folder, IDX files, .npy/.npz, a packed folder, "
        "or tar shards: a folder, a brace pattern, a list file or s3://...",
        filled=True,
    )
    more_sources: tuple[str, ...] = setting(
        (), "further sources that are trained on together with it", filled=True
    )
    weights: tuple[float, ...] = setting(
        (),
        "part of each source in what is seen; empty: each record of all of them once an epoch",
        above=0.0,
    )
    held_out: str = setting(
        "",
        "source of held-out images; empty: the source's `val`, else `test`, else a hashed fraction",
    )
    held_out_fraction: float = setting(
        0.1,
        "part of the images held out by a hash of their keys, where the source has no such part",
        low=0.0,
        high=0.9,
    )
    keys: str = setting("", "file with one key a line: only those records are read; empty: all")
    without_labels: tuple[int, ...] = setting(
        (),
        "classes that are left out of training and validation: udl evaluate then reports how"
        " anomalous their held-out images look",
        low=0,
    )
    limit: int = setting(0, "records of each source to train on, drawn at random; 0: all", low=0)
    size: int | tuple[int, ...] = setting(
        0,
        "height and width in pixels that training sees, [H, W] or one number for both; 0: as"
        " packed, else as the images are, 128 at most",
        low=0,
        high=4096,
    )
    channels: Literal[0, 1, 3] = setting(0, "1 for gray, 3 for colour; 0: as the images are")
    fit: Literal["crop", "pad"] = setting(
        "crop", "how other shapes become square: crop the middle, or pad with black"
    )
    random_crop: float = setting(
        1.0,
        "train on random crops of at least this part of the area, resized; 1: none",
        above=0.0,
        high=1.0,
    )
    flip: bool = setting(False, "mirror half of the training images, another half each epoch")
    order: Literal["auto", "full", "blocks"] = setting(
        "auto",
        "full shuffles all records; blocks reads runs of neighbours; auto: blocks on object"
        " storage",
    )
    block_bytes: int = setting(2**19, "bytes of a run of neighbours in the order of blocks", low=1)
    most_pixels: int = setting(MOST_PIXELS, LIMIT_IN_WORDS, low=1, high=HIGHEST_LIMIT)
    image: str = setting("", IMAGE_IN_WORDS)
    key_dot: KeyDot = setting("first", KEY_DOT_IN_WORDS)
    damaged: Literal["stop", "skip"] = setting(
        "stop", "what a damaged record does; skip: another one replaces it"
    )
    damaged_limit: float = setting(
        0.01, "part of the records that may be damaged and skipped", low=0.0, high=1.0
    )
    damaged_in_a_row: int = setting(
        100, "damaged records one after the other that stop a run", low=1
    )
    cache: str = setting(
        "", "folder for what is packed at first use; empty: ~/.cache/udl-dist (XDG_CACHE_HOME)"
    )
    storage_cache_bytes: int = setting(
        0, "local copies of what object storage gave, at most; 0: none", low=0
    )
    storage: Limits = setting(Limits, "how long object storage is waited for")
    decoded_bytes: int | str = setting(
        "auto", "memory for decoded images; auto: for all, in half of the free memory", low=0
    )
    decoded_on: Literal["host", "device"] = setting(
        "host", "where decoded images stay: a machine's memory, or each GPU's own"
    )
    readers: int | str = setting(
        "auto", "decode threads of a worker; auto: cores - 1, shared, at most 4", low=0, high=256
    )
    read_ahead_bytes: int = setting(2**28, "memory for what is read and decoded ahead", low=1)

    def __post_init__(self) -> None:
        refuse_other_size("data.size", self.size)
        for name in ("decoded_bytes", "readers"):
            if isinstance(value := getattr(self, name), str) and value != "auto":
                raise UsageError(f"data.{name} = {value!r}: say a number, or auto")

    def absolute(self) -> DataSettings:
        """The same settings with absolute paths, so that they hold in another working folder."""
        return replace(
            self,
            source=absolute(self.source),
            more_sources=tuple(map(absolute, self.more_sources)),
            held_out=absolute(self.held_out),
            keys=absolute(self.keys),
            cache=absolute(self.cache),
        )

    @property
    def naming(self) -> Naming:
        """How members of a tar become records."""
        return Naming(self.image, self.key_dot)

    @property
    def shape(self) -> Shape:
        """C, H, W of an image as training sees it."""
        return shape_of(self.channels, self.size)


@dataclass(frozen=True)
class PackSettings:
    """How a source of images becomes shards."""

    size: int | tuple[int, ...] = setting(
        0,
        "height and width in pixels of the packed images, [H, W] or one number for both; 0: as"
        " they are, 128 at most",
        low=0,
        high=4096,
    )
    channels: Literal[0, 1, 3] = setting(0, "1 for gray, 3 for colour; 0: as the images are")
    stack: Literal[0, 3] = setting(0, "3: three gray images are the colours of one (StackedMNIST)")
    fit: Literal["crop", "pad"] = setting(
        "crop", "how other shapes become square: crop the middle, or pad with black"
    )
    format: Literal["png", "jpeg", "webp", "npy", "raw"] = setting(
        "png", "png, npy and raw keep every pixel; npy and raw are the fastest to read"
    )
    quality: int = setting(90, "of jpeg and webp", low=1, high=100)
    shard_records: int = setting(10_000, "most records in a shard", low=1)
    shard_bytes: int = setting(
        256 * 2**20, "most bytes in a shard, counted as uncompressed images", low=1
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
        "", "licence of the images, stored in the index; empty: the text of a LICENSE file"
    )

    def __post_init__(self) -> None:
        refuse_other_size("--size", self.size)

    @property
    def shape(self) -> Shape:
        """C, H, W of a packed image."""
        return shape_of(self.channels, self.size)


def shape_of(channels: int, size: int | tuple[int, ...]) -> Shape:
    """C, H, W of images of `size`, [H, W] or one number for both."""
    assert size and channels, "packing.prepare.settled takes them from the images first"
    height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width


def refuse_other_size(name: str, size: int | tuple[int, ...]) -> None:
    """Refuse a list that is not [height, width]."""
    if not isinstance(size, int) and (len(size) != 2 or 0 in size):
        raise UsageError(f"{name} is [height, width] or one number for both, not {list(size)}")


@dataclass(frozen=True)
class IndexSettings:
    """How shards are indexed."""

    cache: str = setting(
        "", "folder for the index of shards whose own cannot be written; empty: ~/.cache/udl-dist"
    )
    again: bool = setting(False, "index again, even if there is an index")
    image: str = setting("", IMAGE_IN_WORDS)
    key_dot: KeyDot = setting("first", KEY_DOT_IN_WORDS)
    damaged: Literal["stop", "skip"] = setting(
        "stop", "what unreadable records do: stop, or skip: they are left out"
    )


@dataclass(frozen=True)
class CheckSettings:
    """What `udl check` examines beyond headers and checksums, and the clean copy it writes."""

    decode: bool = setting(
        False, "decode every image too: sizes, channels, constant and near-duplicate images"
    )
    near_bits: int = setting(
        3,
        "most bits of 64 in which the perceptual hashes of near duplicates differ; -1: do"
        " not look for them",
        low=-1,
        high=7,
    )
    most_pixels: int = setting(MOST_PIXELS, LIMIT_IN_WORDS, low=1, high=HIGHEST_LIMIT)
    fix: str = setting("", "folder for a clean copy, with left_out.txt naming what was lost")
    drop_copies: bool = setting(
        False, "leave exact copies out of the clean copy; one stays, a training image first"
    )
    drop_leaks: bool = setting(
        False, "leave held-out images out of the clean copy that are exact copies of training ones"
    )
    cache: str = setting(
        "", "folder with the indexes of patterns and lists; empty: ~/.cache/udl-dist"
    )
    threads: int = setting(
        0, "threads that read, one shard each at a time; 0: one per CPU", low=0, high=256
    )


def cache_folder(cache: str) -> Path:
    """The folder for what is packed or indexed at first use, absolute; it may not exist yet."""
    if cache:
        return as_path(cache)
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return as_path(home) / "udl-dist"
