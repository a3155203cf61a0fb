"""References of families, what real images alone say, kept in the cache for the next evaluation on
the same images.

A file for each, named after all that its numbers depend on: images, extractor and settings,
libraries and this program; no model is among it. One that is damaged, or of anything else, is as
good as none.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import udl_dist
from udl_dist.data.shards.writing import written
from udl_dist.evaluation.metric_group import Family

KIND = "udl-dist reference 1"
LIBRARIES = ("numpy", "torch", "pillow", "opencv-python-headless", "simplejpeg", "scikit-learn")
MOST_BYTES = 2**30  # the files that were not used for longest make place
Reference = dict[str, Tensor]


@dataclass(frozen=True)
class Remembered:
    """References of families in a folder; `about` is what all of them depend on."""

    folder: Path
    about: Mapping[str, Any]

    def read(self, family: Family) -> Reference | None:
        """That of a family, to the bit as it was written; None if it is not there, or not whole."""
        path, name = self._place(family)
        try:
            with safe_open(path, "pt") as file:
                facts: dict[str, str] = file.metadata() or {}
                found = {key: file.get_tensor(key) for key in sorted(file.keys())}
        except (OSError, SafetensorError):
            return None
        if facts != _facts(name, found):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return found

    def write(self, family: Family, reference: Reference) -> None:
        """Keep that of a family; a cache that cannot be written to costs time and no figure."""
        path, name = self._place(family)
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with written(path) as file:
                file.write(
                    save(
                        {key: value.contiguous() for key, value in reference.items()},
                        _facts(name, reference),
                    )
                )
            self._make_place()

    def _place(self, family: Family) -> tuple[Path, str]:
        about = {**self.about, "family": family.name, **family.refers_to(), "program": _program()}
        name = json.dumps(about, sort_keys=True)
        return self.folder / f"{xxhash.xxh3_128_hexdigest(name.encode())}.safetensors", name

    def _make_place(self) -> None:
        found = []
        for path in self.folder.glob("*.safetensors"):
            with contextlib.suppress(OSError):  # another process was quicker
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        total = 0
        for _, size, path in sorted(found, reverse=True):
            total += size
            if total > MOST_BYTES:
                path.unlink(missing_ok=True)


@cache
def _program() -> str:
    """All of our code by its bytes, and who decodes and reckons: what others worked out is not
    taken for our own.
    """
    own = Path(udl_dist.__file__).parent
    texts = [path.read_bytes() for path in sorted(own.rglob("*.py"))]
    versions = [f"{name} {_version(name)}".encode() for name in LIBRARIES]
    return xxhash.xxh3_128_hexdigest(b"\0".join([*texts, *versions]))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def _facts(name: str, reference: Reference) -> dict[str, str]:
    mark = xxhash.xxh3_128()
    for key, value in sorted(reference.items()):
        mark.update(f"{key} {value.dtype} {list(value.shape)}".encode())
        mark.update(value.contiguous().numpy().tobytes())
    return {"kind": KIND, "of": name, "xxh3": mark.hexdigest()}
