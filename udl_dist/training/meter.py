"""Means of what phases plot, speed and memory: summed on the device, reduced at a report."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from udl_dist.training.distributed import Ranks

Sums = dict[str, list[list[float]]]
DAMAGED = "damaged records"  # cannot be the name of a metric, which has no blank


class ForwardTime:
    """Seconds of a rank's forward passes since the last look, where it waits for no other rank.

    On a GPU those of the last pass alone, between two events that cost the host no wait.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda, self._seconds = device.type == "cuda", 0.0
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around each forward pass."""
        if self._cuda:
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            began.record()
            yield
            ended.record()
            self._events = began, ended
            return
        began_at = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - began_at

    def read(self) -> float:
        """The seconds; the next look counts from here."""
        if self._events:
            began, ended = self._events
            ended.synchronize()
            self._seconds = began.elapsed_time(ended) / 1000
        seconds, self._seconds, self._events = self._seconds, 0.0, None
        return seconds


class Meter:
    """Sums of what phases plot, on the device until a report: reading them waits for a GPU."""

    def __init__(self, ranks: Ranks, images: int, resumed: Sums | None = None) -> None:
        self._ranks = ranks
        self.forward = ForwardTime(ranks.device)
        self._damaged = 0
        self.restart(images)
        if resumed:
            self._restore(resumed)

    def add_wait(self, seconds: float, damaged: int) -> None:
        """Count the wait for a batch, and its records that replace damaged ones."""
        self._wait_seconds += seconds
        self._damaged += damaged

    def add_all(self, plots: list[tuple[dict[str, Tensor], int]]) -> None:
        """Add the plots of one step: means over rows, each with its number of rows."""
        for values, rows in plots:
            if not values:
                continue
            # Parts of a batch may differ in rows. One call for all names is one launch on a GPU.
            weighted = torch._foreach_mul([value.detach() for value in values.values()], rows)
            new = dict(zip(values, weighted, strict=True))
            if known := [name for name in new if name in self._sums]:
                torch._foreach_add_(
                    [self._sums[name] for name in known], [new[name] for name in known]
                )
            for name, value in new.items():
                self._sums.setdefault(name, value)
                self._rows[name] = self._rows.get(name, 0) + rows

    def metrics(self, images: int, learning_rate: float) -> dict[str, float]:
        """Means since the last report over all ranks, speed and memory of the slowest rank."""
        rows = {f"rows {name}": float(count) for name, count in self._rows.items()}
        # Each rank fills in its own seconds: the sum over ranks is a list of all.
        forward = {f"forward {rank}": 0.0 for rank in range(self._ranks.world)}
        forward[f"forward {self._ranks.rank}"] = self.forward.read()
        damaged = {"damaged": float(self._damaged)}
        sums = self._ranks.total({**self._sums, **rows, **damaged, **forward})
        seconds = time.perf_counter() - self._started
        local = {
            "wait": self._wait_seconds,
            "seconds": seconds,
            "memory": _memory_bytes(self._ranks.device),
        }
        slowest = self._ranks.total(local, maximum=True)  # all ranks wait for it
        metrics = {f"train/{name}": sums[name] / sums[f"rows {name}"] for name in self._sums}
        if sums["damaged"]:  # absent from the curves of a run without damage
            metrics["data/damaged"] = sums["damaged"]
        if self._ranks.world > 1:
            metrics |= _spread([sums[name] for name in forward])
        return metrics | {
            "train/learning_rate": learning_rate,
            "perf/images_per_second": (images - self._images) / slowest["seconds"],
            "perf/data_wait_seconds": slowest["wait"],
            "perf/data_wait_share": slowest["wait"] / slowest["seconds"],
            "perf/memory_bytes": slowest["memory"],
        }

    def sums(self) -> Sums:
        """The sums since the last point, by name: [sum, rows] of each rank."""
        mine = [
            number
            for name in self._sums
            for number in (float(self._sums[name]), float(self._rows[name]))
        ]
        # Damaged records as a pair like the others; 0.0 stands for its rows.
        ranks = self._ranks.gather([*mine, float(self._damaged), 0.0])
        return {
            name: [numbers[2 * place : 2 * place + 2] for numbers in ranks]
            for place, name in enumerate([*self._sums, DAMAGED])
        }

    def _restore(self, sums: Sums) -> None:
        """Continue from `sums`: each rank from its own; at another world size, rank 0 from all."""
        for name, by_rank in sums.items():
            if len(by_rank) == self._ranks.world:
                total, rows = by_rank[self._ranks.rank]
            elif self._ranks.rank == 0:
                total, rows = map(sum, zip(*by_rank, strict=True))
            else:
                total, rows = 0.0, 0.0
            if name == DAMAGED:
                self._damaged = int(total)
                continue
            # float32, as the loss that was summed: any other type would change the next bits.
            self._sums[name] = torch.tensor(total, dtype=torch.float32, device=self._ranks.device)
            self._rows[name] = int(rows)

    def restart(self, images: int) -> None:
        """Begin the next interval; the time of the report is not counted."""
        self._images = images
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}
        self._wait_seconds = 0.0
        self.forward.read()
        self._started = time.perf_counter()


def _spread(seconds: list[float]) -> dict[str, float]:
    """By how much the slowest rank is behind the one in the middle, and which rank it is."""
    slowest = max(range(len(seconds)), key=seconds.__getitem__)
    # The lower of two in the middle, or of two ranks none would be behind the other.
    middle = statistics.median_low(seconds)
    return {
        "perf/slowest_rank": float(slowest),
        "perf/slowest_rank_share": seconds[slowest] / middle if middle else 1.0,
    }


def _memory_bytes(device: torch.device) -> int:
    """The peak on a GPU; on a CPU the present memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:
        # Not Linux: the peak of all resident pages, those of mapped shards included.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # Pages of mapped shards are the kernel's cache, which it can reclaim: they are not counted.
    own = [line for line in lines if line.startswith(("RssAnon", "RssShmem"))]
    return sum(int(line.split()[1]) * 1024 for line in own)
