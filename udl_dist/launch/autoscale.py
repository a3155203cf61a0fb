"""Whether a group of workers could be larger by now: asked while a run with a range of workers is
at work.
"""

from __future__ import annotations

import time

from udl_dist.experiment import Experiment
from udl_dist.launch import ray_runtime
from udl_dist.runs import heartbeat
from udl_dist.runs.run_folder import RunFolder

GROW_SECONDS = 20.0  # between two looks for more workers


class Growing:
    """Looks for places that have become free, and has the workers make a checkpoint and end for a
    larger group.

    Only while all of them are at work: before, the places they are about to take seem to be free.
    """

    def __init__(self, experiment: Experiment, folder: RunFolder) -> None:
        self._experiment, self._folder = experiment, folder
        self._next = time.monotonic() + GROW_SECONDS
        self._in_vain = 0  # so many were tried for and not had

    def look(self, workers: int) -> None:
        """To be called often, with the workers at work; 0: none, so that nothing is to be asked."""
        if workers in (0, self._experiment.run.most_workers) or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + GROW_SECONDS
        if len(heartbeat.lives(self._folder)) < workers:
            return
        try:
            more = ray_runtime.growth(self._experiment, workers)
        except Exception:  # Ray ends in the other thread just now
            return
        if more > max(workers, self._in_vain) and not self._folder.resize_asked():
            self._folder.say(
                f"{more} workers can be had now, not {workers}: a checkpoint, then they all start"
                " again"
            )
            self._folder.ask_resize()
            self._in_vain = more
        elif more == workers:
            self._in_vain = 0
