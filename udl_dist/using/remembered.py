"""What an extractor said of real images, kept in the cache for the next evaluation on the same images.

A file for each part of the images, named after all that its numbers depend on; no model is among it. One that is
damaged, or of anything else, is as good as none.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from udl_dist.shards.index import written

KIND = "udl-dist features 1"
MOST_BYTES = 2**30  # the files that were not used for longest make place


@dataclass(frozen=True)
class Remembered:
    """The features of parts of images; `about` is what all of them have in common."""

    folder: Path
    about: Mapping[str, Any]
    streams: Mapping[str, Any]  # what is said of each stream beside

    def read(self, which: str, number: int, images: int) -> Tensor | None:  # [images, F] float32
        """Those of a part, to the bit as they were written; None if they are not there, or not whole."""
        path, name = self._place(which, number)
        try:
            with safe_open(path, "pt") as file:
                facts: dict[str, str] = file.metadata() or {}
                rows: Tensor = file.get_tensor("features")
        except (OSError, SafetensorError):
            return None
        if facts != _facts(name, rows) or rows.dtype != torch.float32 or rows.ndim != 2 or len(rows) != images:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return rows

    def write(self, which: str, number: int, rows: Tensor) -> None:
        """Keep those of a part; a cache that cannot be written to costs time and no figure."""
        path, name = self._place(which, number)
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with written(path) as file:
                file.write(save({"features": rows.contiguous()}, _facts(name, rows)))
            self._make_place()

    def _place(self, which: str, number: int) -> tuple[Path, str]:
        name = json.dumps({**self.about, "images": self.streams[which], "part": number}, sort_keys=True)
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


def _facts(name: str, rows: Tensor) -> dict[str, str]:
    return {"kind": KIND, "of": name, "xxh3": xxhash.xxh3_128_hexdigest(rows.numpy().tobytes())}
