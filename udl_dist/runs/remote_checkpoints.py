"""Checkpoints of a run in object storage: one is there when its manifest is, which is written last,
deleted first.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from udl_dist.errors import DataError
from udl_dist.runs.remote import Mirror
from udl_dist.storage import objects

MANIFEST = "manifest.json"
TEMPORARY = ".writing-"  # swept with what an interrupted save leaves


def push(mirror: Mirror, checkpoint: Path, stay: Iterable[Path]) -> None:
    """Copy a checkpoint, then delete older ones that are not to `stay`; raise OSError if storage
    refuses.

    The curves go before it: a run that resumes from it elsewhere must not lack a point.
    """
    try:
        mirror.push(mirror.folder.curves)
        files = sorted(checkpoint.iterdir(), key=lambda path: (path.name == MANIFEST, path.name))
        for path in files:
            objects.upload(path, mirror.at(f"checkpoints/{checkpoint.name}/{path.name}"))
        names = {path.name for path in stay}
        for name in manifests_first(mirror.listing("checkpoints")):
            if _images(name) not in names and _images(name) < checkpoint.name:
                objects.remove(mirror.at(name))
    except DataError as error:
        raise OSError(str(error)) from None


def fetch_all(mirror: Mirror) -> None:
    """Make the checkpoints of the working folder those of the storage."""
    remote = mirror.listing("checkpoints")
    complete = {_images(name) for name in remote if name.endswith(f"/{MANIFEST}")}
    for path in mirror.folder.checkpoints.glob("[0-9]*"):
        if path.name not in complete:  # of an earlier run, or never copied to its end
            shutil.rmtree(path)
    for images in sorted(complete):
        _fetch(mirror, images, [name for name in remote if _images(name) == images])


def manifests_first(names: Iterable[str]) -> list[str]:
    """In an order in which an interrupted deletion leaves no checkpoint that looks complete."""
    return sorted(names, key=lambda name: (not name.endswith(f"/{MANIFEST}"), name))


def _fetch(mirror: Mirror, images: str, names: Iterable[str]) -> None:
    target = mirror.folder.checkpoints / images
    local, remote = target / MANIFEST, mirror.at(f"checkpoints/{images}/{MANIFEST}")
    if local.exists() and local.read_bytes() == objects.read(remote):
        return
    part = mirror.folder.checkpoints / f"{TEMPORARY}{images}"
    for path in (part, target):
        shutil.rmtree(path, ignore_errors=True)
    part.mkdir(parents=True)
    for name in names:
        objects.download(mirror.at(name), part / name.rpartition("/")[2])
    part.rename(target)


def _images(name: str) -> str:
    return name.split("/")[1]
