"""What a phase plots, how fast it goes and what it takes: gathered without waiting on the device,
summed over ranks.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor

from udl_dist.training.distributed import Ranks

Sums = dict[str, list[list[float]]]
DAMAGED = "damaged records"  # no figure has a blank in its name
# by then kernels are chosen, networks compiled, and what was read ahead at the start is used up
STEADY_STEPS = 200


class Meter:
    """Sums of what a phase plots, kept on the device until a report turns them into numbers."""

    def __init__(self, ranks: Ranks, images: int, kept: Sums | None = None) -> None:
        self._ranks = ranks
        self._damaged = 0
        self.resume(images)
        if kept:
            self._take_up(kept)

    def waited(self, seconds: float, damaged: int) -> None:
        """Count the wait for a batch, and the records in it that stand in for damaged ones."""
        self._wait_seconds += seconds
        self._damaged += damaged

    def add(self, figures: dict[str, Tensor], rows: int) -> None:
        for name, value in figures.items():
            weighted = value.detach() * rows
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted
            self._rows[name] = self._rows.get(name, 0) + rows

    def add_all(self, plots: list[tuple[dict[str, Tensor], int]]) -> None:
        """Add what the phases of one step plotted."""
        for figures, rows in plots:
            self.add(figures, rows)

    def figures(self, images: int, rate: float) -> dict[str, float]:
        """Means since the last report over all ranks, and how fast it went."""
        rows = {f"rows {name}": float(count) for name, count in self._rows.items()}
        sums = self._ranks.total({**self._sums, **rows, "damaged": float(self._damaged)})
        seconds = time.perf_counter() - self._started
        local = {
            "wait": self._wait_seconds,
            "seconds": seconds,
            "memory": _memory_bytes(self._ranks.device),
        }
        slowest = self._ranks.total(local, maximum=True)
        figures = {f"train/{name}": sums[name] / sums[f"rows {name}"] for name in self._sums}
        if sums["damaged"]:
            figures["data/damaged"] = sums["damaged"]
        return figures | {
            "train/learning_rate": rate,
            "perf/images_per_second": (images - self._images) / slowest["seconds"],
            "perf/data_wait_seconds": slowest["wait"],
            "perf/data_wait_share": slowest["wait"] / slowest["seconds"],
            "perf/memory_bytes": slowest["memory"],
        }

    def sums(self) -> Sums:
        """All that is summed up for the next point, by name: [sum, rows] of each rank."""
        mine = [
            number
            for name in self._sums
            for number in (float(self._sums[name]), float(self._rows[name]))
        ]
        ranks = self._ranks.gather([*mine, float(self._damaged), 0.0])
        return {
            name: [numbers[2 * place : 2 * place + 2] for numbers in ranks]
            for place, name in enumerate([*self._sums, DAMAGED])
        }

    def _take_up(self, kept: Sums) -> None:
        """Go on from `sums`: each rank from its own; in another world, the first rank from all of
        them.
        """
        for name, ranks in kept.items():
            rank, world = self._ranks.rank, self._ranks.world
            alike = len(ranks) == world
            total, rows = (
                ranks[rank]
                if alike
                else map(sum, zip(*ranks, strict=True))
                if rank == 0
                else (0.0, 0.0)
            )
            if name == DAMAGED:
                self._damaged = int(total)
                continue
            self._sums[name] = torch.tensor(total, dtype=torch.float32, device=self._ranks.device)
            self._rows[name] = int(rows)

    def resume(self, images: int) -> None:
        """Begin the next interval; what the receiver of the report did in between does not
        count.
        """
        self._images = images
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}
        self._wait_seconds = 0.0
        self._started = time.perf_counter()


class Pace:
    """Speed, time to go and peak memory of a run, said once for each start: another one may be on
    other machines.
    """

    def __init__(self, start: int, batch_size: int, total: int) -> None:
        self._steady, self._total, self._peak, self._said = (
            start + STEADY_STEPS * batch_size,
            total,
            0.0,
            False,
        )

    def add(self, images: int, figures: Mapping[str, float]) -> str:
        """What is to be said after a point of the curves; "" for nothing."""
        self._peak = max(self._peak, figures["perf/memory_bytes"])
        if self._said or not self._steady <= images < self._total:
            return ""
        self._said = True
        speed = figures["perf/images_per_second"]
        left = timedelta(seconds=round((self._total - images) / speed))
        return (
            f"after {images:,} images: {speed:,.0f} images/s, {left} to go, "
            f"peak memory of a worker {self._peak / 2**20:,.0f} MiB"
        )


def _memory_bytes(device: torch.device) -> int:
    """The peak on a GPU; on a CPU what the process has of its own now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:
        # no Linux: the peak of all resident pages, those of mapped shards included
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # Mapped shards are the kernel's cache, which it takes back at will: they are not counted.
    own = [line for line in lines if line.startswith(("RssAnon", "RssShmem"))]
    return sum(int(line.split()[1]) * 1024 for line in own)
