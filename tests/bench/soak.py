"""python -m tests.bench.soak [--steps 20000]: a long run whose memory and descriptors must not
grow.

Two gloo ranks with two readers each, epochs of a few steps, a checkpoint each hundredth step,
validations and pictures. Every half second each rank's own memory (resident, without what is
shared) and open descriptors are read. The last tenth of the run is compared with the tenth that
begins at step 2,000; /dev/shm is compared before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.bench import relaunch
from tests.training.learn import packed
from udl_dist.runs import heartbeat
from udl_dist.runs.run_folder import RunFolder

BATCH = 12
GOAL = 0.02  # growth of memory


class Watch:
    """Started in each rank: a thread that keeps what the process takes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, rank: int, start: int) -> None:
        threading.Thread(target=self._watch, args=(rank,), daemon=True, name="soak").start()

    def _watch(self, rank: int) -> None:
        with (self._folder / f"soak-{rank}.jsonl").open("a") as file:
            while True:
                life = heartbeat.read_all(RunFolder(self._folder)).get(rank)
                memory = own_memory()
                descriptors = len(os.listdir("/proc/self/fd"))
                print(
                    json.dumps(
                        {
                            "step": life.images // BATCH if life else 0,
                            "memory": memory,
                            "descriptors": descriptors,
                        }
                    ),
                    file=file,
                    flush=True,
                )
                time.sleep(0.5)


def own_memory() -> int:
    """Bytes of this process that are in memory and not of a file."""
    fields = dict(
        line.split(":", 1)
        for line in Path("/proc/self/status").read_text().splitlines()
        if ":" in line
    )
    return int(fields["RssAnon"].split()[0]) * 1024


def grown(points: list[dict[str, Any]], steps: int) -> tuple[float, float, float]:
    """The growth of memory, and the descriptors of the earlier and of the later tenth."""
    early = [point for point in points if 2000 <= point["step"] < 2000 + steps // 10]
    late = [point for point in points if point["step"] >= steps - steps // 10]
    memory = [statistics.median(point["memory"] for point in part) for part in (early, late)]
    descriptors = [
        statistics.median(point["descriptors"] for point in part) for part in (early, late)
    ]
    return memory[1] / memory[0] - 1, *descriptors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--method", default="gan")
    asked = parser.parse_args()
    flags = {
        "run__workers": "2",
        "train__total_images": str(BATCH * asked.steps),
        "train__average_half_life": "1000",
        "train__report_images": "240",
        "evaluate__every_images": str(BATCH * 1000),
        "evaluate__pictures": "true",
        "run__checkpoint_images": str(BATCH * 100),
        "data__readers": "2",
    }
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        folder.mkdir()
        before = set(os.listdir("/dev/shm"))
        experiment = relaunch.wanted(asked.method, packed(Path(parent) / "data"), folder, **flags)
        began = time.monotonic()
        starts = relaunch.run(experiment, seconds=7200, hook=Watch(folder))
        seconds = time.monotonic() - began
        left = set(os.listdir("/dev/shm")) - before
        missed = 0
        for rank in range(2):
            points = [
                json.loads(line)
                for line in (folder / f"soak-{rank}.jsonl").read_text().splitlines()
            ]
            growth, early, late = grown(points, asked.steps)
            missed += growth > GOAL or late > early
            print(
                f"rank {rank}: memory {growth:+.2%} from step 2,000 to {asked.steps:,} (goal <"
                f" {GOAL:.0%}), descriptors {early:g} then {late:g}"
            )
        print(
            f"{asked.method}: {asked.steps:,} steps in {seconds:.0f} s, {starts} start, "
            f"{len(left)} new files in /dev/shm: {'missed' if missed or left else 'reached'}"
        )
        assert not missed and not left and starts == 1


if __name__ == "__main__":
    main()
