"""From a prepared source to its streams, in whichever process: what travels is `Prepared`, plain text and numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from udl_dist.stream import order
from udl_dist.stream.index import Index
from udl_dist.stream.reader import Stream
from udl_dist.stream.settings import DataSettings


@dataclass(frozen=True)
class Prepared:
    """Indexes that are on disk: plain text and numbers, so that it travels to other processes of this machine."""

    settings: DataSettings
    train: str  # absolute path of an index
    held_out: str  # likewise; empty if it is a fraction of `train`, or if there is none
    fraction: float  # part of `train` held out by hash; 0: none


def open_streams(prepared: Prepared, seed: int) -> tuple[Stream, Stream | None]:
    """The training stream and the held-out one of a prepared source; None if nothing is held out."""
    train, settings = Index.open(prepared.train), prepared.settings
    if prepared.held_out:
        return Stream(train, settings, seed), Stream(Index.open(prepared.held_out), settings, seed)
    if not prepared.fraction:
        return Stream(train, settings, seed), None
    held = order.held_out(train.rows["key_hash"], prepared.fraction)
    return Stream(train, settings, seed, np.flatnonzero(~held)), Stream(train, settings, seed, np.flatnonzero(held))
