"""Checkpoints of a run in object storage: one is there when its manifest is, which comes last and
goes first.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from udl_dist.errors import DataError
from udl_dist.runs.remote import Mirror
from udl_dist.storage import objects

MANIFEST = "manifest.json"
TEMPORARY = ".writing-"  # swept with what a writing leaves


def push(mirror: Mirror, checkpoint: Path, kept: Iterable[Path]) -> None:
    """Carry a checkpoint, then delete older ones that are not `kept`; raise OSError if storage
    refuses.

    The curves go before it: a run that goes on from it elsewhere must not lack a point.
    """
    try:
        mirror.push(mirror.folder.curves)
        for path in sorted(
            checkpoint.iterdir(), key=lambda path: (path.name == MANIFEST, path.name)
        ):
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
        if (
            path.name not in complete
        ):  # of an earlier life of the run, or one that was not carried to its end
            shutil.rmtree(path)
    for images in sorted(complete):
        _fetch(mirror, images, there)


def manifests_first(names: Iterable[str]) -> list[str]:
    """In an order in which a deletion that is cut short leaves no checkpoint that looks whole."""
    return sorted(names, key=lambda name: (not name.endswith(f"/{MANIFEST}"), name))


def _fetch(mirror: Mirror, images: str, names: Iterable[str]) -> None:
    target = mirror.folder.checkpoints / images
    mirror.folder.checkpoints.mkdir(parents=True, exist_ok=True)
    manifest = target / MANIFEST
    if manifest.exists() and manifest.read_bytes() == objects.read(
        mirror.at(f"checkpoints/{images}/{MANIFEST}")
    ):
        return
    coming = mirror.folder.checkpoints / f"{TEMPORARY}{images}"
    for path in (coming, target):
        shutil.rmtree(path, ignore_errors=True)
    coming.mkdir()
    for name in names:
        if _images(name) == images:
            objects.download(mirror.at(name), coming / name.rpartition("/")[2])
    coming.rename(target)


def _images(name: str) -> str:
    return name.split("/")[1]
