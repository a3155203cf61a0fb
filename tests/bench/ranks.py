"""python -m tests.bench.ranks: two ranks on two cores against twice one rank on one core. Goal:
0.9.

Each rank has one thread. VAE 784-512-256-32, 128 images a rank and step; the two set-ups take
turns.
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

STEPS, TURNS, BATCH = 150, 5, 128


def speed(flags: dict[str, str]) -> float:
    """Images a second over all ranks, after a warm-up."""
    run = Run(experiment.load(None, flags), Ranks())
    batch = run.experiment.train.batch_size
    reports = run.reports(every=STEPS * batch, validate=10**9)
    next(reports)
    started = time.perf_counter()
    next(reports)
    return STEPS * batch / (time.perf_counter() - started)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "digits"
        pack("digits", str(source), PackSettings(format="raw"), lambda *_: None)
        shared = FLAGS | {"data.source": str(source), "data.readers": "0"}
        rows = []
        for _ in range(TURNS):
            one = gloo.run(1, speed, shared | {"train.batch_size": str(BATCH)})[0]
            two = min(gloo.run(2, speed, shared | {"train.batch_size": str(2 * BATCH)}))
            rows.append((one, two, two / (2 * one)))
    print(f"{'one rank':>10}{'two ranks':>11}{'two / (2 x one)':>17}")
    for one, two, ratio in rows:
        print(f"{one:10,.0f}{two:11,.0f}{ratio:17.2f}")
    print(f"median ratio {statistics.median(row[2] for row in rows):.2f}")


if __name__ == "__main__":
    main()
