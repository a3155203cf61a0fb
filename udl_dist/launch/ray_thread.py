"""Ray in a thread, while the main one shows progress and handles signals.

SIGINT, SIGTERM, SIGHUP: the first asks for a checkpoint and the end, the second ends at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from udl_dist.launch import ray_runtime
from udl_dist.launch.ray_runtime import POLL_SECONDS, START_SECONDS


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
                # The handler from before the first call is put back at the end, not Ray's.
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
            # There is no checkpoint to write, and a Ray that is half up ends with this process.
            self._say("stopped before anything was trained")
            os._exit(128 + number)
        # Not ray.shutdown(): from a signal handler it would end this process with exit code 1.
        if len(self.received) > 1:
            os._exit(128 + number)
        self._stop()
        self._say("stopping: a checkpoint is written first (again: end at once)")


class RayThread:
    """Runs `work` under Ray, from its start to its end; `error` is the one it ended with.

    `meanwhile` runs while Ray starts.
    """

    # In a thread, because on the main one Ray would install its own signal handlers.
    def __init__(
        self,
        address: str,
        verbose: bool,
        work: Callable[[], None],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        self.ray_is_up = False
        self.error: Exception | None = None
        self._address, self._verbose, self._work = address, verbose, work
        self._meanwhile = meanwhile
        self._owns_ray = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def watch(self, poll: Callable[[], None], signals: Signals | None = None) -> None:
        """Run to the end and call `poll` meanwhile; if it raises, Ray is ended."""
        self._thread.start()
        installed = False
        try:
            while self._runs_on(POLL_SECONDS):
                if signals and self.ray_is_up and not installed:
                    signals.install()  # again: Ray has replaced the handler of SIGTERM
                    installed = True
                poll()
        finally:
            self._end()

    # A join with a time limit, as Python handles signals between two of its calls.
    def _runs_on(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return self._thread.is_alive()

    def _end(self) -> None:
        # A Ray that is starting is waited for, so that none is left behind.
        deadline = time.monotonic() + START_SECONDS
        while self._thread.is_alive() and not self.ray_is_up and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if self._thread.is_alive():
            # `poll` has raised: without Ray the work fails, and the thread ends.
            self._shut_down()
            self._thread.join(START_SECONDS)

    def _run(self) -> None:
        try:
            self._owns_ray = ray_runtime.start(self._address, self._verbose, self._meanwhile)
            self.ray_is_up = True
            self._work()
        except Exception as error:  # for the main thread
            self.error = error
        finally:
            # Not left to the main thread: Ray's processes are killed, not ended, with the thread
            # that started them.
            self._shut_down()

    def _shut_down(self) -> None:
        # Not a Ray that was there before: it belongs to the program around us.
        if self._owns_ray:
            ray_runtime.end()
