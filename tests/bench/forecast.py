"""python -m tests.bench.forecast: what `udl plan` says of this machine against what training here then does.

Two jobs, one worker and two. The parts of a forecast and then the real loop are measured in the same processes, each in
many short turns of which the quickest tenth counts: moments without other work. Judged is the median of the ratios.
`--commands` runs `udl plan` and then `udl train` instead, with Ray and all: of a run count all images of its curve but
the first quarter, by the seconds they took. With other work on the machine that tells more of it. Goal: ± 25 %.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

from tests import gloo
from udl_dist import experiment as experiments
from udl_dist.experiment import Experiment
from udl_dist.forecast.forecast import forecast
from udl_dist.forecast.measure import Task, Turns, asked, saves, steps, storage
from udl_dist.forecast.measuring import cores_here
from udl_dist.forecast.parts import Parts, fingerprint
from udl_dist.forecast.settings import ForecastSettings
from udl_dist.packing.prepare import prepare
from udl_dist.stream.opening import open_streams
from udl_dist.training.ranks import Ranks
from udl_dist.worker import new_learning

JOBS, WORKERS, ALLOWED = ("ae_digits", "vae_digits"), (1, 2), 0.25
SECONDS, TURN_SECONDS = 8.0, 0.02
FOLDER = Path(__file__).parent.parent.parent / "jobs"


def loaded(job: str) -> Experiment:
    return experiments.load(FOLDER / f"{job}.toml", {})


def share(experiment: Experiment) -> int:
    return ceil(experiment.train.batch_size / experiment.run.most_workers)


def quickest(times: Sequence[float]) -> float:
    """The time that a tenth of the turns stays below."""
    return sorted(times)[len(times) // 10]


def worker(job: str, workers: int, turns: int) -> list[tuple[dict[str, Any], float]]:
    """In one of the workers, for each turn: measured parts, and the seconds of a real step, its waits included."""
    experiment = loaded(job)
    prepared, images = prepare(experiment.data), share(experiment)
    together, alone = Ranks(), Ranks()
    alone.rank, alone.world, alone._words = 0, 1, None
    found = []
    with tempfile.TemporaryDirectory() as folder:
        task = Task(experiment, prepared, together.rank, workers, False, images, SECONDS, Path(folder), Path(folder),
                    TURN_SECONDS)  # fmt: skip
        stream, _ = open_streams(prepared, 0)
        real = Turns(task, stream, new_learning(asked(task, workers), stream, together), together)
        learning = new_learning(asked(task, 1), stream, alone)
        kept = storage(stream) | saves(learning, Path(folder))
        real.take()  # what was read ahead before it began is used up
        for _ in range(turns):
            parts = kept | steps(task, stream, learning, alone, together, quickest)
            taken, ends = list[float](), time.perf_counter() + SECONDS / 2
            while together.from_leader(time.perf_counter() < ends):
                taken.append(sum(real.take()[:2]))
            found.append((parts, quickest(taken)))
    together.await_announced()
    return found


def in_turns(job: str, workers: int, turns: int) -> Iterator[tuple[float, float]]:
    """Images a second, as forecast and as trained, of each turn."""
    experiment, ranks = loaded(job), gloo.run(workers, worker, job, workers, turns, seconds=600)
    here = ForecastSettings(workers_per_node=workers, cpus_per_node=max(workers, cores_here()))
    for of_all in zip(*ranks, strict=True):
        known = dict(of_all[0][0])
        for name in ("compute_seconds", "host_seconds", "decode_seconds"):
            known[name] = statistics.mean(parts[name] for parts, _ in of_all)
        parts = Parts(fingerprint(experiment), share(experiment), "cpu", workers, **known)
        with tempfile.TemporaryDirectory() as folder:
            parts.save(path := Path(folder) / "parts.toml")
            said = forecast(experiment, here, path)
        yield said.images_per_second, said.inputs.batch_images / max(seconds for _, seconds in of_all)


def by_commands(job: str, workers: int, turns: int) -> Iterator[tuple[float, float]]:
    """The same of the two commands, one after the other."""
    path, cores = str(FOLDER / f"{job}.toml"), str(max(workers, cores_here()))
    for _ in range(turns):
        said = udl("plan", path, "--workers-per-node", str(workers), "--cpus-per-node", cores)
        yield said["images_per_second"], trained(path, workers, said["batch_size"], int(10 * said["images_per_second"]))


def udl(*arguments: str) -> dict[str, Any]:
    """What a command says to machines."""
    command = [sys.executable, "-m", "udl_dist", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return dict(json.loads(done.stdout))


def trained(job: str, workers: int, batch_size: int, images: int) -> float:
    """Images a second of a run of so many."""
    with tempfile.TemporaryDirectory() as folder:
        udl("train", job, "--run.workers", str(workers), "--run.folder", f"{folder}/run", "--train.batch-size",
            str(batch_size), "--train.epochs", "0", "--train.total-images", str(images), "--evaluate.every-images",
            str(images), "--track.mode", "off")  # fmt: skip
        points = [json.loads(line) for line in Path(folder, "run", "curves.jsonl").read_text().splitlines()]
    late = list(pairwise(point for point in points if "perf/images_per_second" in point))[len(points) // 4 :]
    counts = [int(after["images"] - before["images"]) for before, after in late]
    seconds = [count / float(after["perf/images_per_second"]) for count, (_, after) in zip(counts, late, strict=True)]
    return sum(counts) / sum(seconds)


def main() -> None:
    told = argparse.ArgumentParser()
    told.add_argument("--turns", type=int, default=3)
    told.add_argument("--commands", action="store_true", help="udl plan against udl train")
    given, missed = told.parse_args(), 0
    print(f"{'job':12}{'workers':>8}{'forecast':>10}{'trained':>10}   images/s, medians; ratios; load")
    for job in JOBS:
        for workers in WORKERS:
            pairs = list((by_commands if given.commands else in_turns)(job, workers, given.turns))
            ratios = [said / done for said, done in pairs]
            middle = statistics.median(ratios)
            fine = 1 - ALLOWED <= middle <= 1 + ALLOWED
            missed += not fine
            said, done = (statistics.median(column) for column in zip(*pairs, strict=True))
            every = " ".join(f"{ratio:.2f}" for ratio in sorted(ratios))
            print(f"{job:12}{workers:8}{said:10,.0f}{done:10,.0f}   {middle:.2f} of {every}, load "
                  f"{os.getloadavg()[0]:.0f}: {'reached' if fine else 'MISSED'}", flush=True)  # fmt: skip
    print(f"missed: {missed}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
