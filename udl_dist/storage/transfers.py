"""Requests in threads: time limits, counters, and a second request where the first one is slow.

The client retries what fails; hedging here only shortens the wait.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from udl_dist.core.config_schema import setting

T = TypeVar("T")

# Threads of a process. Hedges have their own, as hung requests may occupy all others.
REQUESTS, HEDGES = 16, 8
UNIT = 2**20  # bytes: requests above it are timed by the MiB


@dataclass(frozen=True)
class Limits:
    """How long object storage is waited for."""

    connect_seconds: float = setting(5.0, "time limit of a connection", above=0)
    stall_seconds: float = setting(
        10.0, "a transfer without a byte for so long is broken off", above=0
    )
    request_seconds: float = setting(30.0, "time limit of one attempt at a request", above=0)
    attempts: int = setting(
        6, "how often a request is made before storage counts as failed", low=1, high=100
    )
    total_seconds: float = setting(
        180.0, "no further attempt at a request begins after this time", above=0
    )
    hedge_seconds: float = setting(
        1.0,
        "a request slower than this (and 4 times the median) is made a second time; 0: never",
        low=0,
    )


@dataclass
class Traffic:
    """Counts requests and bytes, and times the last ones; shared by threads."""

    requests: int = 0
    bytes_read: int = 0  # hedges included
    bytes_wanted: int = 0  # of records, without the gaps that were read to save requests
    hedges: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=64), repr=False)  # s per unit
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def count(self, **more: int) -> None:
        """Add to counters by name."""
        with self._lock:
            for name, value in more.items():
                setattr(self, name, getattr(self, name) + value)

    def timed(self, size: int, seconds: float) -> None:
        """Record how long a request for `size` bytes took."""
        with self._lock:
            self.bytes_read += size
            self.recent.append(seconds / max(1.0, size / UNIT))

    def slow_seconds(self, limits: Limits, size: int) -> float:
        """The time after which a request for `size` bytes counts as slow."""
        with self._lock:
            # The median, as a mean would follow the very stalls that are looked for.
            median = statistics.median(self.recent) if self.recent else 0.0
        # On a slow line every request is slow, which is no reason for a second one.
        return max(limits.hedge_seconds, 4 * median) * max(1.0, size / UNIT)


class Pending(Generic[T]):
    """A request under way, sent a second time if it is slow; the first good answer counts."""

    def __init__(
        self,
        attempt: Callable[[], T],
        limits: Limits,
        traffic: Traffic,
        size: int = 0,
        hedged: bool = True,
    ) -> None:
        """`size` is in bytes; a request that must not be sent twice is not `hedged`."""
        self._attempt, self._limits, self._traffic, self._size = attempt, limits, traffic, size
        self._hedged = hedged and limits.hedge_seconds > 0
        self._submitted, self._begun = time.monotonic(), 0.0
        self._tries = [_requests.submit(self._run)]

    def result(self) -> T:
        """The first good answer; raise what the request raised."""
        if self._hedged:
            self._make_again_if_slow()
        # If every try failed, the error of the first one counts.
        for each in as_completed(self._tries):
            if not each.exception():
                return each.result()
        return self._tries[0].result()

    def cancel(self) -> None:
        """Drop the request if it has not begun; else it ends by itself, unread."""
        # A thread in the midst of a request cannot be interrupted.
        for attempt in self._tries:
            attempt.cancel()

    def _make_again_if_slow(self) -> None:
        first, slow = self._tries[0], self._traffic.slow_seconds(self._limits, self._size)
        while len(self._tries) == 1 and not first.done():
            now = time.monotonic()
            # Time in the queue counts a quarter, so that hung threads delay others only briefly.
            waited = now - self._begun if self._begun else (now - self._submitted) / 4
            if waited < slow:
                # Not less than 10 ms, or rounding could make this a busy loop.
                wait([first], max(0.01, slow - waited))
            else:
                self._traffic.count(hedges=1)
                self._tries.append(_hedges.submit(self._run))

    def _run(self) -> T:
        self._begun = began = time.monotonic()
        self._traffic.count(requests=1)
        # A failed attempt is not timed: errors are quick, and would make good requests look slow.
        result = self._attempt()
        self._traffic.timed(self._size, time.monotonic() - began)
        return result


_requests = ThreadPoolExecutor(REQUESTS, "udl-storage")
_hedges = ThreadPoolExecutor(HEDGES, "udl-storage-hedge")
