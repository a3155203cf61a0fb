"""Requests for a stop or a checkpoint, which every rank hears after the same step."""

from __future__ import annotations

import time
from collections.abc import Callable

from udl_dist.training.distributed import Ranks

SECONDS = 0.5  # between two messages, if that is at most this many steps:
STEPS = 8  # were steps to become slow, a request would wait for so many of them, twice


class Requests:
    """Rank 0's answers to `ask`, on all ranks.

    With several ranks an answer takes a message, sent while they train on. Each message says after
    how many steps the next one is due, so that quick steps need few.
    """

    def __init__(self, ask: Callable[[], tuple[bool, bool]], ranks: Ranks) -> None:
        self._ask, self._ranks = ask, ranks
        self._between, self._left, self._last = 1, 1, time.perf_counter()

    def heard(self) -> tuple[bool, bool]:
        """Whether to stop and whether to save, after one more step; the same on every rank."""
        self._left -= 1
        if self._left:
            return False, False
        now = time.perf_counter()
        step_seconds = (now - self._last) / self._between
        alone = self._ranks.world == 1  # nothing is sent
        following = 1 if alone else max(1, min(STEPS, int(SECONDS / step_seconds)))
        stop, save, following = self._ranks.announce(*self._ask(), following)
        self._between = self._left = max(1, following)
        self._last = now
        return bool(stop), bool(save)
