"""python -m tests.bench.search_replay CACHE [--work vae ae gan] [--record]: schedulers on the same
trials.

`--record` trains every trial of a space to its end, once, and keeps its metric at 33 places in
CACHE/WORK/TRIAL.json (those that are there are left alone).
"""

import argparse
import json
import os
import time
import warnings
from pathlib import Path

import torch

from tests.training.learn import Run
from udl_dist.search import config
from udl_dist.search.config import Search
from udl_dist.search.planning import plan
from udl_dist.search.samplers import make_sampler
from udl_dist.search.trial import experiment_of
from udl_dist.training.loop import Intervals, TrainingLoop

JOBS = Path(__file__).parents[2] / "jobs"
PARTS = 32  # a trial is validated after each such part of its budget, and after half of the first
# A job of the repository, and what differs: smaller networks, a grid.
WORKS = {
    "vae": (
        "search_vae_digits",
        {
            "search.sampler": "grid",
            "search.trials": "0",
            "search.train.learning_rate": "{log = [1e-4, 1e-2], points = 12}",
            "method.network.kind": "dense",
            "method.network.widths": "256,64",
        },
    ),
    "ae": (
        "search_ae_mnist",
        {
            "search.train.learning_rate": "{log = [3e-4, 1e-2], points = 8}",
            "search.budget_images": "30000",
            "data.limit": "6000",
        },
    ),
    "gan": (
        "search_gan_digits",
        {
            "search.trials": "32",
            "search.budget_images": "9600",
            "train.epochs": "0",
            "train.total_images": "9600",
            "method.network.widths": "16,32",
        },
    ),
}


def wanted(work: str, source: str) -> Search:
    job, flags = WORKS[work]
    flags = flags | {"track.mode": "off", "search.scheduler": "none", "run.folder": "runs/replay"}
    return config.load(JOBS / f"{job}.toml", flags | ({"data.source": source} if source else {}))


def record(search: Search, folder: Path) -> None:
    """Train the trials that are not in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    planned, sampler = plan(search), make_sampler(search)
    budget, name = planned.budget, search.settings.metric[0]
    marks = tuple(sorted({budget // 64, *(budget * part // PARTS for part in range(1, PARTS))}))
    for number in range(planned.trials):
        path = folder / f"{number:04d}.json"
        if path.exists():
            continue
        values, began = sampler.values(number, {}), time.process_time()
        run = Run(experiment_of(search, number, values, budget, marks))
        every, train = Intervals(budget, budget, budget, marks), run.experiment.train
        loop = TrainingLoop(run.learning, run.stream, run.held_out, train, every, run.ranks)
        points = [[each.images, each.metrics[name]] for each in loop.reports() if each.validated]
        seconds = time.process_time() - began
        path.write_text(json.dumps({"settings": values, "points": points, "seconds": seconds}))
        print(f"{path.parent.name} {number}: {points[-1][1]:.5g}, {seconds:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--work", nargs="*", choices=WORKS, default=[*WORKS])
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--source", default="", help="a folder of MNIST, for ae")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    for work in asked.work:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if asked.record:
                record(wanted(work, asked.source if work == "ae" else ""), asked.cache / work)


if __name__ == "__main__":
    main()
