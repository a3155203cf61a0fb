"""Requests that come back: each runs in a bounded pool, is hedged when slow and repeated when it
fails.

Who waits is the caller, and never for longer than the limits say; a request that hangs keeps its
thread until the library below gives up on it, and nothing else. Knows no library, no URI and no
object.
"""

from __future__ import annotations

import os
import random
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from udl_dist.core.config_schema import setting
from udl_dist.errors import DataError

T = TypeVar("T")

# threads a process; together below the 25 connections that pyarrow keeps a file system
REQUESTS, HEDGES = 16, 8
UNIT = 2**20  # bytes: requests above it are timed by the MiB
SLOWEST = 2**18  # bytes a second that are still waited for
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 8.0

_jitter = random.Random()  # of its own: retries must not disturb anybody's seeded numbers
_locks: dict[int, threading.Lock] = {}
_pools: dict[tuple[int, str], ThreadPoolExecutor] = {}


@dataclass(frozen=True)
class Limits:
    """How long object storage is waited for."""

    connect_seconds: float = setting(5.0, "time limit of a connection", above=0)
    stall_seconds: float = setting(
        10.0, "a transfer without a byte for so long is broken off", above=0
    )
    request_seconds: float = setting(
        30.0, "time limit of a request, plus a second for each 256 KiB", above=0
    )
    attempts: int = setting(
        6, "how often a request is made before storage counts as failed", low=1, high=100
    )
    total_seconds: float = setting(
        180.0, "time limit of all attempts at one request together", above=0
    )
    hedge_seconds: float = setting(
        1.0,
        "a request slower than this (and 4 times the median) is made a second time; 0: never",
        low=0,
    )


@dataclass
class Traffic:
    """What was asked of storage and what came; whoever shares it counts together. Safe for
    threads.
    """

    requests: int = 0
    bytes_read: int = 0  # hedges included
    bytes_wanted: int = 0  # of records, without what was read for the sake of fewer requests
    retries: int = 0
    hedges: int = 0
    seconds: float = 0.0  # of requests, added up over threads
    # seconds a unit
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=64), repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def count(self, **more: float) -> None:
        """Add to counters by name."""
        with self._lock:
            for name, value in more.items():
                setattr(self, name, getattr(self, name) + value)

    def done(self, size: int, seconds: float) -> None:
        """One request has ended well."""
        with self._lock:
            self.bytes_read += size
            self.seconds += seconds
            self.recent.append(seconds / _units(size))

    def median_seconds(self) -> float:
        """The running median of recent requests, a MiB or less each; 0 if there was none."""
        with self._lock:
            recent = list(self.recent)
        return statistics.median(recent) if recent else 0.0


class PassingError(Exception):
    """A fault that may pass: throttling, a reset, a time limit, a short body. Its text says
    which.
    """


class _Try(Generic[T]):
    """One request in a thread of a pool; knows since when it runs."""

    def __init__(self, kind: str, attempt: Callable[[], T], size: int, traffic: Traffic) -> None:
        self.submitted, self.begun = time.monotonic(), 0.0
        self._attempt, self._size, self._traffic = attempt, size, traffic
        self.future: Future[T] = _pool(kind).submit(self._run)

    def _run(self) -> T:
        self.begun = time.monotonic()
        self._traffic.count(requests=1)
        result = self._attempt()
        self._traffic.done(self._size, time.monotonic() - self.begun)
        return result

    def waited(self) -> float:
        """Seconds since it began; time spent queueing for a thread counts a quarter."""
        now = time.monotonic()
        return now - self.begun if self.begun else (now - self.submitted) / 4


class Fetch(Generic[T]):
    """A request under way: begun when made, hedged and repeated by whoever asks for its
    `result`.
    """

    def __init__(
        self,
        what: str,
        attempt: Callable[[], T],
        limits: Limits,
        traffic: Traffic,
        size: int = 0,
        hedged: bool = True,
    ) -> None:
        """`attempt` raises PassingError for what may pass; whatever else it raises is final. `size`
        in bytes.
        """
        self._what, self._attempt, self._limits, self._traffic, self._size = (
            what,
            attempt,
            limits,
            traffic,
            size,
        )
        self._hedged = hedged and limits.hedge_seconds > 0
        self._give_up = float("inf")
        self._tries = [self._start("request")]

    def result(self) -> T:
        """What the first answer says; raise DataError when attempts or time, from now on, are
        spent.
        """
        self._give_up = time.monotonic() + self._limits.total_seconds + self._size / SLOWEST
        for number in range(1, self._limits.attempts + 1):
            try:
                return self._answer()
            except PassingError as error:
                pause = min(PAUSE_SECONDS * 2 ** (number - 1), LONGEST_PAUSE_SECONDS) * (
                    0.5 + _jitter.random()
                )
                last = number == self._limits.attempts or time.monotonic() + pause > self._give_up
                if last:
                    raise self._failed(number, error) from None
            time.sleep(pause)
            self._traffic.count(retries=1)
            self._tries = [self._start("request")]
        raise AssertionError("the last attempt returns or raises")

    def cancel(self) -> None:
        """Drop what has not begun; what has begun ends by itself and is not read."""
        for attempt in self._tries:
            attempt.future.cancel()

    def _answer(self) -> T:
        """The first good answer of an attempt and its hedge; raise what failed, or PassingError at
        the time limit.
        """
        stop = min(
            time.monotonic() + self._limits.request_seconds + self._size / SLOWEST, self._give_up
        )
        while True:
            left = [each.future for each in self._tries if not each.future.done()]
            for each in self._tries:
                if each.future.done() and (
                    not left or not isinstance(each.future.exception(), PassingError)
                ):
                    return each.future.result()
            now = time.monotonic()
            if now >= stop:
                self.cancel()
                raise PassingError(f"no answer within {self._limits.request_seconds:g} s")
            slow = self._until_slow()
            if slow <= 0:
                self._traffic.count(hedges=1)
                self._tries.append(self._start("hedge"))
                continue
            wait(left, max(0.001, min(stop - now, slow)), FIRST_COMPLETED)

    def _until_slow(self) -> float:
        """Seconds until a second request is worth making; infinite if it is made or not wanted."""
        if not self._hedged or len(self._tries) > 1:
            return float("inf")
        patience = max(self._limits.hedge_seconds, 4 * self._traffic.median_seconds()) * _units(
            self._size
        )
        return patience - self._tries[0].waited()

    def _start(self, kind: str) -> _Try[T]:
        return _Try(kind, self._attempt, self._size, self._traffic)

    def _failed(self, number: int, error: PassingError) -> DataError:
        times = f"{number} attempts" if number > 1 else "1 attempt"
        return DataError(
            f"{self._what}: storage does not answer after {times} ({error}): "
            "check the network and the endpoint, or allow more attempts"
        )


def _units(size: int) -> float:
    return max(1.0, size / UNIT)


def _pool(kind: str) -> ThreadPoolExecutor:
    """The pool of this process, for requests or for their hedges; a forked child makes its own."""
    key = os.getpid(), kind
    with _locks.setdefault(key[0], threading.Lock()):
        if key not in _pools:
            _pools[key] = ThreadPoolExecutor(
                REQUESTS if kind == "request" else HEDGES, f"udl-storage-{kind}"
            )
        return _pools[key]
