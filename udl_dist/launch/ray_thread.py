"""Ray in a thread, while the main one shows progress and handles signals."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from udl_dist.launch import ray_runtime
from udl_dist.launch.ray_runtime import POLL_SECONDS, START_SECONDS
from udl_dist.launch.signals import Signals


class RayThread:
    """Runs `work` under Ray, from its start to its end; `error` is the one it ended with.

    In a thread, because on the main one Ray would install its own signal handlers.
    """

    def __init__(self, address: str, verbose: bool, work: Callable[[], None]) -> None:
        self.ray_is_up = False
        self.error: Exception | None = None
        self._address, self._verbose, self._work = address, verbose, work
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

    def _runs_on(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return self._thread.is_alive()

    def _end(self) -> None:
        # A Ray that is starting is waited for, so that none is left behind.
        deadline = time.monotonic() + START_SECONDS
        while self._thread.is_alive() and not self.ray_is_up and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if self._thread.is_alive():
            self._shut_down()
            self._thread.join(START_SECONDS)

    def _run(self) -> None:
        try:
            self._owns_ray = ray_runtime.start(self._address, self._verbose)
            self.ray_is_up = True
            self._work()
        except Exception as error:  # for the main thread
            self.error = error
        finally:
            # Not left to the main thread: Ray's processes are killed, not ended, with the thread
            # that started them.
            self._shut_down()

    def _shut_down(self) -> None:
        if self._owns_ray:
            ray_runtime.end()
