"""What a run reads, as settings. Knows no image and no tar."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from udl_dist.core.config_schema import as_path, setting
from udl_dist.data.images.headers import HIGHEST_LIMIT, LIMIT_IN_WORDS, MOST_PIXELS
from udl_dist.data.images.kinds import Shape
from udl_dist.data.shards.naming import IMAGE_IN_WORDS, KEY_DOT_IN_WORDS, KeyDot, Naming
from udl_dist.storage.transfers import Limits
from udl_dist.storage.uris import scheme_of


@dataclass(frozen=True)
class DataSettings:
    """What a run sees: where its images are, how they are brought to one shape, what is held
    out.
    """

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
        "source of the held-out images; empty: `val`, else `test` of the source, else a hashed"
        " fraction",
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
        "classes that are left out, held-out images too: udl evaluate then scores how unusual the"
        " held-out ones of them look",
        low=0,
    )
    limit: int = setting(
        0, "train on this number of records of each source, drawn at random; 0: all", low=0
    )
    size: int = setting(
        0,
        "height and width in pixels that training sees; 0: as packed, else as the images are, 128"
        " at most",
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
    flip: bool = setting(False, "mirror half of the training images, others in each epoch")
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
    readers: int = setting(
        1, "threads that read and decode ahead; 0: in the training loop itself", low=0, high=256
    )
    read_ahead_bytes: int = setting(2**28, "memory for what is read and decoded ahead", low=1)

    def absolute(self) -> DataSettings:
        """The same for a process in another folder."""
        return replace(
            self,
            source=_absolute(self.source),
            more_sources=tuple(map(_absolute, self.more_sources)),
            held_out=_absolute(self.held_out),
            keys=_absolute(self.keys),
            cache=_absolute(self.cache),
        )

    @property
    def naming(self) -> Naming:
        """How members of a tar become records."""
        return Naming(self.image, self.key_dot)

    @property
    def shape(self) -> Shape:
        """C, H, W of an image as training sees it."""
        assert self.size and self.channels, (
            "packing.prepare.settled sets them first, from the images"
        )
        return self.channels, self.size, self.size


def _absolute(source: str) -> str:
    """A path as a whole one, each of several that `::` joins; what is no path stays."""
    if source in ("", "digits"):
        return source
    parts = source.split("::") if "::" in source and not as_path(source).exists() else [source]
    return "::".join(part if scheme_of(part) else str(as_path(part)) for part in parts)


def cache_folder(cache: str) -> Path:
    """The folder for what is packed or indexed at first use, absolute; it may not exist yet."""
    if cache:
        return as_path(cache)
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return as_path(home) / "udl-dist"
