"""python -m tests.bench.data_wait: what part of a run waits for its data: conv VAE at 64 px on JPEG
shards, one rank.

Photos of 500 x 375 from scikit-image (extra `bench`), read and decoded by `data.readers` threads
beside the training. The first interval, in which reading has no head start, is left out. Goal:
under 2 %.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.bench.photos import jpeg_shards
from tests.training.learn import Run
from udl_dist import experiment

STEPS, INTERVALS, BATCH = 10, 4, 64
FLAGS = {
    "method.name": "vae",
    "method.network.kind": "conv",
    "method.latent_dim": "32",
    "method.likelihood": "gaussian",
    "data.size": "64",
    "data.channels": "3",
    "data.held_out_fraction": "0",
    "train.batch_size": str(BATCH),
    "train.total_images": str(STEPS * INTERVALS * BATCH),
}


def shares(source: Path, readers: int) -> list[float]:
    """The part of the time that was waited, of each interval but the first."""
    run = Run(
        experiment.load(None, FLAGS | {"data.source": str(source), "data.readers": str(readers)})
    )
    reports = run.reports(every=STEPS * BATCH, validate=10**9)
    return [report.metrics["perf/data_wait_share"] for report in reports][1:]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "photos"
        jpeg_shards(source, 4, 250)
        print(f"{'readers':>8}{'waited':>10}   goal < 2 % with readers")
        for readers in (0, 1):
            parts = shares(source, readers)
            print(f"{readers:8}{sum(parts) / len(parts):10.2%}")


if __name__ == "__main__":
    main()
