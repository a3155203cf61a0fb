"""Checkpoints of a run in object storage: one is there when its manifest is, which comes last and goes first."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path

from udl_dist.errors import DataError
from udl_dist.mirror import Mirror
from udl_dist.storage import objects

MANIFEST = "manifest.json"


def push(mirror: Mirror, checkpoint: Path, kept: Iterable[Path]) -> None:
    """Carry a checkpoint, then delete older ones that are not `kept`; raise OSError if storage refuses.

    The curves go before it: a run that goes on from it elsewhere must not lack a point.
    """
    try:
        mirror.push(mirror.folder.curves)
        for path in sorted(checkpoint.iterdir(), key=lambda path: (path.name == MANIFEST, path.name)):
            objects.upload(path, mirror.at(f"checkpoints/{checkpoint.name}/{path.name}"))
        names = {path.name for path in kept}
        for name in manifests_first(mirror.listing("checkpoints")):
            if _images(name) not in names and _images(name) < checkpoint.name:
                objects.remove(mirror.at(name))
    except DataError as error:
        raise OSError(str(error)) from None


def fetch_all(mirror: Mirror) -> None:
    """Make the checkpoints of the working folder those of the storage."""
    there = mirror.listing("checkpoints")
    complete = {_images(name) for name in there if name.endswith(f"/{MANIFEST}")}
    for path in mirror.folder.checkpoints.glob("[0-9]*"):
        if path.name not in complete:  # of an earlier life of the run, or one that was not carried to its end
            shutil.rmtree(path)
    for images in sorted(complete):
        _fetch(mirror, images, there)


def fetch(mirror: Mirror, images: int) -> None:
    """Have one checkpoint in the working folder; other ranks of this node may do the same."""
    _fetch(mirror, f"{images:012d}", mirror.listing(f"checkpoints/{images:012d}"))


def manifests_first(names: Iterable[str]) -> list[str]:
    """In an order in which a deletion that is cut short leaves no checkpoint that looks whole."""
    return sorted(names, key=lambda name: (not name.endswith(f"/{MANIFEST}"), name))


def _fetch(mirror: Mirror, images: str, names: Iterable[str]) -> None:
    target = mirror.folder.checkpoints / images
    manifest = target / MANIFEST
    if manifest.exists() and manifest.read_bytes() == objects.read(mirror.at(f"checkpoints/{images}/{MANIFEST}")):
        return
    coming = mirror.folder.checkpoints / f".writing-{images}-{os.getpid()}-{threading.get_ident()}"
    coming.mkdir(parents=True)
    for name in names:
        if _images(name) == images:
            objects.download(mirror.at(name), coming / name.rpartition("/")[2])
    shutil.rmtree(target, ignore_errors=True)
    try:
        coming.rename(target)
    except OSError:  # another rank of this node was quicker
        shutil.rmtree(coming)


def _images(name: str) -> str:
    return name.split("/")[1]
