"""Reads the validations of a trial as they come, from the curves in its folder. Knows no Ray."""

from __future__ import annotations

import json
import os
from pathlib import Path

Point = tuple[int, dict[str, float]]


class Follower:
    """Each validation once, though a resumed trial takes points back and makes them again."""

    def __init__(self, curves: Path) -> None:
        self._curves = curves
        self._inode, self._read, self._images = 0, 0, 0

    def fresh(self) -> list[Point]:
        """The validations since the last call: images and held-out figures."""
        try:
            with self._curves.open("rb") as file:
                if (inode := os.fstat(file.fileno()).st_ino) != self._inode:  # written anew
                    self._inode, self._read = inode, 0
                file.seek(self._read)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        found: list[Point] = []
        for line in whole.splitlines():
            if b'"val/' not in line:
                continue
            point = json.loads(line)
            images = int(point["images"])
            if images > self._images:
                self._images = images
                found.append((images, {name: value for name, value in point.items() if name.startswith("val/")}))
        return found
