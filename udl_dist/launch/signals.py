"""SIGINT, SIGTERM, SIGHUP: the first asks for a checkpoint and the end, the second ends at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any


class Signals:
    """A context in which the first signal calls `stop` and the second exits with 128 + its number.

    Until `started()` the first signal exits too. Off the main thread it does nothing.
    """

    def __init__(
        self, stop: Callable[[], None], say: Callable[[str], None], started: Callable[[], bool]
    ) -> None:
        self.received: list[int] = []
        self._stop, self._say, self._started = stop, say, started
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Install the handlers; again after Ray has started, which replaces that of SIGTERM."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                    continue  # nohup: the run continues when its terminal closes
                self._before.setdefault(number, signal.signal(number, self._handle))

    def __enter__(self) -> Signals:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        self.received.append(number)
        if not self._started():
            self._say("stopped before anything was trained")
            os._exit(128 + number)
        # Not ray.shutdown(): from a signal handler it would end this process with exit code 1.
        if len(self.received) > 1:
            os._exit(128 + number)
        self._stop()
        self._say("stopping: a checkpoint is written first (again: end at once)")
