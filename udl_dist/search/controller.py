"""Decides what a search does next, without Ray, threads or a clock.

The tuner asks for the next task and reports validations, ends and deaths in any order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from udl_dist.runs.run_folder import RunFolder
from udl_dist.search.config import Search
from udl_dist.search.trial import (
    TrialOutcome,
    TrialTask,
)

DIED = "its process died without an error (killed, or out of memory?)"


# Trials and the winner's final runs share this queue, so deaths and stops mean the same in both.
# All methods run in the one thread of Tune's searcher; only `stop` comes from the driver's main
# thread, which is why it does no more than set a flag and touch files.
class Controller:
    """Tasks by number, which wait, run, and resume in another process if theirs died."""

    def __init__(self, search: Search, waiting: Iterable[int]) -> None:
        self.search = search
        self.stopping = False
        # By number; what a value is belongs to the subclass.
        self.running: dict[int, Any] = {}
        self._waiting = list(waiting)
        # Of this start only: a resumed search gives a trial all its restarts again.
        self._deaths: Counter[int] = Counter()

    @property
    def over(self) -> bool:
        """Whether nothing more will be started."""
        return not self._waiting or self.stopping

    def folder(self, number: int) -> Path:
        """The run folder of a task."""
        raise NotImplementedError

    def next(self) -> TrialTask | None:
        """The task to start now; None if there is none yet, or none at all (`over`)."""
        raise NotImplementedError

    def arrived(self, number: int, images: int, metrics: Mapping[str, float]) -> None:
        """A task was validated after `images`."""
        raise NotImplementedError

    def ended(self, number: int, outcome: TrialOutcome) -> None:
        """A task ended."""
        raise NotImplementedError

    def died(self, number: int) -> None:
        """The process of a task is gone: the task waits again, or fails after too many deaths."""
        self._deaths[number] += 1
        # A death is no result, since the machine may have failed: the trial resumes from its
        # checkpoint. Only one that dies again and again (out of memory, for instance) is logged.
        if self._deaths[number] > self.search.base.run.max_failures:
            self.ended(number, TrialOutcome("failed", why=DIED))
        else:
            self._wait_again(number)

    def stop(self) -> None:
        """Start nothing more; running tasks write a checkpoint and end.

        To be called until they have: a task that is only starting misses the first call.
        """
        self.stopping = True
        # A copy: the searcher's thread may end a trial meanwhile.
        for number in list(self.running):
            RunFolder(self.folder(number)).ask_stop()

    def _wait_again(self, number: int) -> None:
        self.running.pop(number, None)
        # Smallest number first: trials with greater numbers may wait at a rung for this one.
        self._waiting = sorted([*self._waiting, number])
