"""python -m tests.bench.memory: the memory that a rank has of its own, over data sets of different
sizes.

One rank each, a process of its own, the same small VAE and number of steps; only the records
differ. What is printed is the most that any report saw; the pages of mapped shards are the kernel's
and do not count.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from tests.bench.step import FLAGS
from tests.training import gloo
from tests.training.learn import Run
from udl_dist import experiment
from udl_dist.data.packing.pack import pack
from udl_dist.data.settings import PackSettings
from udl_dist.training.distributed import Ranks

STEPS, BATCH = 600, 128


def most_bytes(flags: dict[str, str]) -> float:
    run = Run(experiment.load(None, flags), Ranks())
    return max(
        report.metrics["perf/memory_bytes"]
        for report in run.reports(every=50 * BATCH, validate=10**9)
    )


def main() -> None:
    for records in (10_000, 100_000, 400_000):
        with tempfile.TemporaryDirectory() as folder:
            images = np.random.default_rng(0).integers(0, 256, (records, 28, 28), dtype=np.uint8)
            np.save(Path(folder) / "images.npy", images)
            pack(f"{folder}/images.npy", f"{folder}/packed", PackSettings(format="raw"))
            del images
            length = {"train.total_images": str(STEPS * BATCH), "data.held_out_fraction": "0"}
            (peak,) = gloo.run(
                1, most_bytes, FLAGS | length | {"data.source": f"{folder}/packed"}, seconds=300
            )
            print(f"{records:9,} records: {peak / 2**20:6.0f} MiB")


if __name__ == "__main__":
    main()
