"""Work on every shard of a set, in threads; decoders, encoders and checksums release Python's
lock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from udl_dist.data.shards.indexing import Progress

J = TypeVar("J")
R = TypeVar("R")
Done = Callable[[int], None]
PROGRESS_SECONDS = 0.2


class Halted(Exception):
    """Raised in the threads that are to end because another one failed, or somebody pressed
    Ctrl-C.
    """


def on_each(
    jobs: Sequence[J],
    work: Callable[[J, Done], R],
    threads: int,
    progress: Progress | None,
    total: int,
) -> list[R]:
    """What `work(job, done)` returns for each job, in their order; 0 threads: one a core.

    `work` calls `done(units)` with what it has done of its job so far, which raises Halted when all
    is to stop. `progress(done, total)` hears of the sum. The first exception, a Ctrl-C too, ends
    every thread and is raised.
    """
    stop, counts = threading.Event(), [0] * len(jobs)

    def one(place: int) -> R:
        def done(units: int) -> None:
            counts[place] = units
            if stop.is_set():
                raise Halted

        return work(jobs[place], done)

    with ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="shards") as pool:
        futures = [pool.submit(one, place) for place in range(len(jobs))]
        try:
            pending = set(futures)
            while pending:
                finished, pending = wait(pending, PROGRESS_SECONDS, "FIRST_COMPLETED")
                for future in finished:
                    future.result()
                if progress:
                    progress(sum(counts), total)
        except BaseException:  # a Ctrl-C too: told to the threads, then raised as it is
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in futures]
