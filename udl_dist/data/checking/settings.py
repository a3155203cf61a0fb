"""How shards are checked, as settings."""

from __future__ import annotations

from dataclasses import dataclass

from udl_dist.core.config_schema import setting
from udl_dist.data.images.headers import HIGHEST_LIMIT, LIMIT_IN_WORDS, MOST_PIXELS


@dataclass(frozen=True)
class CheckSettings:
    """What is looked at beyond headers and checksums, and what is made of it."""

    decode: bool = setting(
        False, "decode every image too: sizes, channels, constant and near-duplicate images"
    )
    near_bits: int = setting(
        3,
        "most bits of 64 in which the perceptual hashes of near duplicates differ; -1: not"
        " looked for",
        low=-1,
        high=7,
    )
    most_pixels: int = setting(MOST_PIXELS, LIMIT_IN_WORDS, low=1, high=HIGHEST_LIMIT)
    fix: str = setting(
        "", "folder for a clean copy, with left_out.txt naming what could not be kept"
    )
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
