"""What a run reads, as settings. Knows no image and no tar."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from udl_dist.settings import setting

Shape = tuple[int, int, int]  # C, H, W
Fit = Literal["crop", "pad"]
Format = Literal["png", "jpeg", "webp", "npy", "raw"]


@dataclass(frozen=True)
class DataSettings:
    """What a run sees: where its images are, how they are brought to one shape, what is held out."""

    source: str = setting(
        "digits",
        "'digits' (5,000 embedded ones), an image folder, IDX files, .npy/.npz, a packed folder, "
        "or tar shards: a folder, a brace pattern or a list file",
    )
    held_out: str = setting(
        "", "source of the held-out images; empty: `val`, else `test` of the source, else a hashed fraction"
    )
    held_out_fraction: float = setting(
        0.1, "part of the images held out by a hash of their keys, where the source has no such part", low=0.0, high=0.9
    )
    size: int = setting(28, "height and width in pixels that training sees", low=1, high=4096)
    channels: Literal[1, 3] = setting(1, "1 for gray, 3 for colour")
    fit: Literal["crop", "pad"] = setting("crop", "how other shapes become square: crop the middle, or pad with black")
    flip: bool = setting(False, "mirror half of the training images, drawn anew each epoch")
    cache: str = setting("", "folder for what is packed at first use; empty: ~/.cache/udl-dist (XDG_CACHE_HOME)")
    readers: int = setting(1, "threads that read and decode ahead; 0: in the training loop itself", low=0, high=256)

    @property
    def shape(self) -> Shape:
        """C, H, W of an image as training sees it."""
        return self.channels, self.size, self.size


def cache_folder(cache: str) -> Path:
    """The folder for what is packed or indexed at first use, absolute; it may not exist yet."""
    if cache:
        return Path(cache).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser().absolute() / "udl-dist"
