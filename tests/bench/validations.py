"""python -m tests.bench.validations: what a held-out image costs beside a training image, for each
job of the README.

Both by CPU time on one thread, in turns in one process; `COST` in udl_dist/evaluation/settings.py
must not be less, for `evaluate.share` is kept by it. Jobs on MNIST are measured on the embedded
digits: their networks are the same.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch

from tests.training.learn import Run
from udl_dist import experiment
from udl_dist.evaluation.settings import COST
from udl_dist.training.validation import validate

JOBS = Path(__file__).parent.parent.parent / "jobs"
NAMES = ("ae_digits", "vae_digits", "gan_digits", "ae_mnist", "vae_mnist")
TURNS, STEPS = 5, 40
FLAGS = {
    "train.total_images": "100000000",
    "train.epochs": "0",
    "data.source": "digits",
    "data.held_out_fraction": "0.1",
    "run.workers": "1",
}


def ratios(name: str) -> list[float]:
    """CPU seconds of a held-out image over those of a training image, turn by turn."""
    run = Run(experiment.load(JOBS / f"{name}.toml", FLAGS))
    images = run.experiment.train.batch_size * STEPS
    reports, found = run.reports(every=images, validate=10**12), []
    next(reports)
    assert run.held_out
    for _ in range(TURNS):
        began = time.process_time()
        next(reports)
        trained = time.process_time()
        validate(run.learning, run.held_out, run.experiment.train.batch_size, run.ranks)
        held_out = (time.process_time() - trained) / run.held_out.records
        found.append(held_out / ((trained - began) / images))
    return found


def main() -> None:
    torch.set_num_threads(1)
    for name in NAMES:
        found = ratios(name)
        print(
            f"{name:12} a held-out image costs {statistics.median(found):.2f} of a training image "
            f"({min(found):.2f} to {max(found):.2f}; taken for {COST})"
        )


if __name__ == "__main__":
    main()
