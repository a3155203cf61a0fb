"""python -m tests.bench.elastic: what run.determinism = "elastic" costs, against the plain mode,
with 1, 2 and 4 ranks.

VAE 784-512-256-32, a global batch of 480 images; the two modes take turns in the same processes.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from tests.bench.step import FLAGS
from tests.training import gloo
from tests.training.learn import Run
from udl_dist import experiment
from udl_dist.data.packing.pack import pack
from udl_dist.data.settings import PackSettings
from udl_dist.training.distributed import Ranks

STEPS, TURNS, BATCH = 20, 3, 480


def seconds(flags: dict[str, str]) -> list[tuple[float, float]]:
    """Median seconds of a step of each turn: plain, elastic."""
    return [
        (step(flags | {"run.determinism": "world"}), step(flags | {"run.determinism": "elastic"}))
        for _ in range(TURNS)
    ]


def step(flags: dict[str, str]) -> float:
    run = Run(experiment.load(None, flags), Ranks())
    times, started = [], time.perf_counter()
    for report in run.reports(every=BATCH, validate=10**9):
        times.append(time.perf_counter() - started)
        if report.images >= STEPS * BATCH:
            run.ranks.await_announced()
            return statistics.median(times[2:])
        started = time.perf_counter()
    raise AssertionError("not reached")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "digits"
        pack("digits", str(source), PackSettings(format="raw"), lambda *_: None)
        flags = FLAGS | {
            "data.source": str(source),
            "data.readers": "0",
            "train.batch_size": str(BATCH),
        }
        print(f"{'ranks':>5}{'plain ms':>10}{'elastic ms':>12}{'times':>7}")
        for world in (1, 2, 4):
            turns = gloo.run(world, seconds, flags, seconds=400)[0]
            plain, elastic = (statistics.median(turn[mode] for turn in turns) for mode in (0, 1))
            print(
                f"{world:5}{1000 * plain:10.1f}{1000 * elastic:12.1f}{elastic / plain:7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
