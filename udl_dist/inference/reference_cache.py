"""References of metric groups in the cache, for the next evaluation on the same images.

The name of a file is a hash of everything that its numbers depend on: images, extractor, settings,
libraries and this program; no model is among it. Damaged or mismatched entries are ignored.
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
from safetensors.torch import save
from torch import Tensor

import udl_dist
from udl_dist.core.files import whole_file
from udl_dist.errors import DataError
from udl_dist.evaluation.io import read_tensors
from udl_dist.evaluation.metric_group import MetricGroup

KIND = "udl-dist reference 1"
# Those that decode images or compute with them.
LIBRARIES = ("numpy", "torch", "pillow", "opencv-python-headless", "simplejpeg", "scikit-learn")
MOST_BYTES = 2**30  # beyond it the files that were not used for longest are deleted
Reference = dict[str, Tensor]


@dataclass(frozen=True)
class ReferenceCache:
    """References of metric groups in a folder; `about` is what all of them depend on."""

    folder: Path
    about: Mapping[str, Any]

    def read(self, group: MetricGroup) -> Reference | None:
        """The reference of a group, to the bit as it was written; None without a valid one."""
        path, about = self._entry(group)
        try:
            found, facts = read_tensors(path, "reference", "")
        except DataError:
            return None
        # The hash of the content: a damaged file is computed again, not believed.
        if facts != _facts(about, found):
            return None
        with contextlib.suppress(OSError):
            # The time of the last use, by which _evict chooses.
            os.utime(path)
        # safetensors gives names in an order of its own.
        return dict(sorted(found.items()))

    def write(self, group: MetricGroup, reference: Reference) -> None:
        """Write the reference of a group; a cache that cannot be written costs time alone."""
        path, about = self._entry(group)
        tensors = {key: value.contiguous() for key, value in reference.items()}
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            # Whole or absent: other evaluations read the cache at the same time.
            with whole_file(path) as file:
                file.write(save(tensors, _facts(about, reference)))
            self._evict()

    def _entry(self, group: MetricGroup) -> tuple[Path, str]:
        about = {**self.about, "group": group.name, **group.refers_to(), "program": _program()}
        # Also written into the file and compared: the hash alone only names it.
        name = json.dumps(about, sort_keys=True)
        return self.folder / f"{xxhash.xxh3_128_hexdigest(name.encode())}.safetensors", name

    def _evict(self) -> None:
        found = []
        for path in self.folder.glob("*.safetensors"):
            with contextlib.suppress(OSError):  # another process deleted it
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        total = 0
        # The newest first; those past the limit go.
        for _, size, path in sorted(found, reverse=True):
            total += size
            if total > MOST_BYTES:
                path.unlink(missing_ok=True)


@cache
def _program() -> str:
    """A hash of all our code and the libraries that decode and compute: others' numbers differ."""
    own = Path(udl_dist.__file__).parent
    content = xxhash.xxh3_128()
    # Coarse on purpose: a list of the files that matter would be wrong one day.
    for path in sorted(own.rglob("*.py")):
        # Separated by a zero byte: code that moves between files changes the hash.
        content.update(path.read_bytes() + b"\0")
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            content.update(f"{name} {metadata.version(name)}\0".encode())
    return content.hexdigest()


def _facts(about: str, reference: Reference) -> dict[str, str]:
    content = xxhash.xxh3_128()
    for key, value in sorted(reference.items()):
        # Equal bytes of another type or shape are other numbers.
        content.update(f"{key} {value.dtype} {list(value.shape)}".encode())
        content.update(value.contiguous().numpy().tobytes())
    return {"kind": KIND, "of": about, "xxh3": content.hexdigest()}
