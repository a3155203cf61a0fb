"""Runs jobs in threads with one progress and one way to stop them all, for packing and checking."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from typing import TypeVar

from udl_dist.data.shards.indexing import Progress

J = TypeVar("J")
R = TypeVar("R")
Report = Callable[[int], None]  # takes units of work, such as images or bytes


def run_threads(
    jobs: Sequence[J],
    work: Callable[[J, Report], R],
    threads: int,
    progress: Progress | None,
    total: int,
) -> list[R]:
    """What `work(job, report)` returns for each job, in their order; 0 threads: one per CPU.

    `work` calls `report(units)` for each piece it has done; `progress(done, total)` gets the sum.
    The first exception or Ctrl-C ends all threads, at their next report, and is raised.
    """
    # Threads, not processes: decoders and encoders release Python's lock, and nothing is pickled.
    stop, lock, done = threading.Event(), threading.Lock(), 0

    def report(units: int) -> None:
        nonlocal done
        # The only place where a thread can be stopped: Python cannot interrupt one from outside.
        if stop.is_set():
            raise CancelledError
        with lock:
            before, done = done, done + units
            if progress and before < total:  # a second call at the total would print a second line
                progress(min(done, total), total)

    with ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="shards") as pool:
        futures = [pool.submit(work, job, report) for job in jobs]
        try:
            # As they end, so that a failure is seen while others still work.
            for future in as_completed(futures):
                future.result()
        except BaseException:  # Ctrl-C too: it must stop the threads, and is raised again
            stop.set()
            # Waits for running jobs: when this returns, no thread writes any more.
            pool.shutdown(cancel_futures=True)
            raise
    # In the order of jobs: what is written must not depend on which thread was faster.
    return [future.result() for future in futures]
