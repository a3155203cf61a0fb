"""How a setting changes over a run, as a function of the images seen alone: resuming is exact."""

from __future__ import annotations

import math


def cosine(start: float, end: float, done: float) -> float:
    """From `start` to `end` along half a cosine; `done`, the share of the way, counts up to 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
