"""Reads the validations of a trial as they come, from the curves in its folder. Knows no Ray."""

from __future__ import annotations

import json
from pathlib import Path

from udl_dist.core.files import Tail

Point = tuple[int, dict[str, float]]


class Follower:
    """Each validation once, though a resumed trial takes points back and makes them again."""

    def __init__(self, curves: Path) -> None:
        self._tail, self._images = Tail(curves), 0

    def fresh(self) -> list[Point]:
        """The validations since the last call: images and held-out figures."""
        found: list[Point] = []
        for line in self._tail.lines():
            if b'"val/' not in line:
                continue
            point = json.loads(line)
            images = int(point["images"])
            if images > self._images:
                self._images = images
                found.append(
                    (
                        images,
                        {name: value for name, value in point.items() if name.startswith("val/")},
                    )
                )
        return found
