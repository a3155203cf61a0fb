"""Lines that a run prints once: speed, advice about data, a slow rank, costly validations."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import timedelta

from udl_dist.data.loader.reader import Stream

# By then kernels are chosen, networks compiled, and the batches read ahead at the start used up.
STEADY_STEPS = 200
SHARE_AFTER_SECONDS = 60.0  # of a run, before validations are said to take too much of its time


class Pace:
    """Speed, time to go and peak memory, reported once a start: the next may use other machines."""

    def __init__(self, start: int, batch_size: int, total: int) -> None:
        self._steady, self._total = start + STEADY_STEPS * batch_size, total
        self._peak, self._reported = 0.0, False

    def add(self, images: int, metrics: Mapping[str, float]) -> str:
        """The line to print after a point of the curves; "" for none."""
        self._peak = max(self._peak, metrics["perf/memory_bytes"])
        if self._reported or not self._steady <= images < self._total:
            return ""
        self._reported = True
        speed = metrics["perf/images_per_second"]
        left = timedelta(seconds=round((self._total - images) / speed))
        return (
            f"after {images:,} images: {speed:,.0f} images/s, {left} to go, "
            f"peak memory of a worker {self._peak / 2**20:,.0f} MiB"
        )


class DataWaitAdvice:
    """What to do about waiting for data, reported once after two reports in a row that waited."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._waits, self._reported = stream, 0, False

    def add(self, wait_share: float) -> str:
        """Add the share of one report; returns the line to print, or ""."""
        # The first report alone is no sign: reading had no head start there.
        line = self._stream.advice(wait_share)
        self._waits = self._waits + 1 if line else 0
        if self._waits < 2 or self._reported:
            return ""
        self._reported = True
        return line


class Straggler:
    """The rank that holds up all others, reported once, after three reports in a row."""

    REPORTS, SHARE = 3, 1.5  # reports in a row; its forward pass ÷ that of the rank in the middle

    def __init__(self) -> None:
        self._rank, self._reports, self._reported = -1, 0, set[int]()

    def add(self, metrics: Mapping[str, float]) -> str:
        """Add one report; returns the line to print, or ""."""
        rank = int(metrics.get("perf/slowest_rank", -1))
        share = metrics.get("perf/slowest_rank_share", 1.0)
        self._reports = self._reports + 1 if rank == self._rank and share > self.SHARE else 1
        self._rank = rank
        if share <= self.SHARE or self._reports < self.REPORTS or rank in self._reported:
            return ""
        self._reported.add(rank)
        return (
            f"rank {rank} holds up the others: it computes {share:.1f} times as long as the rank in"
            " the middle; look for other work, heat or a slower processor on its machine"
        )


class ValidationTime:
    """The share of the time that validations and pictures take; reported once if it is too much."""

    def __init__(self, share: float) -> None:
        self._share, self._seconds, self._began = share, 0.0, time.monotonic()

    def add(self, seconds: float) -> str:
        """Add one validation; returns the line to print, or ""."""
        self._seconds += seconds
        # At least of a minute: in a short run any validation would be a large share.
        share = self._seconds / max(time.monotonic() - self._began, SHARE_AFTER_SECONDS)
        if share <= self._share:
            return ""
        allowed, self._share = self._share, math.inf  # once
        return (
            f"validations take {100 * share:.0f} % of the time (evaluate.share = {allowed:g}):"
            " raise evaluate.every_images, lower evaluate.images, or set evaluate.pictures = false"
        )
