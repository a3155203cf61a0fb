"""python -m tests.bench.search_replay CACHE [--work vae ae gan] [--record]: schedulers on the same
trials.

`--record` trains every trial of a space to its end, once, and keeps its metric at 33 places in
CACHE/WORK/TRIAL.json (those that are there are left alone). Without it the recorded curves are
given to each scheduler: ours, Ray Tune's own classes and Optuna's pruner. Printed are medians over
search seeds, each a draw of --trials recorded trials in another order: by how much the best trial
that was trained to its end is worse than the best of all (the regret), and the share of images.
"""

import argparse
import json
import math
import os
import random
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch

from tests.training.learn import Run
from udl_dist.search import config
from udl_dist.search.config import Search, SearchSettings
from udl_dist.search.planning import plan
from udl_dist.search.samplers import Sampler
from udl_dist.search.scheduler import Halving, rungs
from udl_dist.search.trial import experiment_of
from udl_dist.search.trial_log import TrialResult
from udl_dist.training.loop import Intervals, TrainingLoop

JOBS = Path(__file__).parents[2] / "jobs"
UNITS = 64
PARTS = 32  # a trial is validated after each such part of its budget, and after half of the first
# A job of the repository, and what differs: smaller networks, a grid.
WORKS = {
    "vae": (
        "search_vae_digits",
        {
            "search.sampler": "grid",
            "search.trials": "0",
            "search.train.learning_rate": "{log = [1e-4, 1e-2], points = 23}",
            "method.network.kind": "dense",
            "method.network.widths": "256,64",
        },
    ),
    "ae": (
        "search_ae_mnist",
        {
            "search.train.learning_rate": "{log = [3e-4, 1e-2], points = 22}",
            "search.budget_images": "30000",
            "data.limit": "6000",
            "data.held_out_fraction": "0.1",
        },
    ),
    "gan": (
        "search_gan_digits",
        {
            "search.sampler": "sobol",
            "search.trials": "36",
            "data.size": "16",
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
    planned, sampler = plan(search), Sampler(search)
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


Curve = list[float]  # the loss after each 64th of the budget


@dataclass(frozen=True)
class Replayed:
    """The images of each trial, in 64ths of the budget, in the order of the curves."""

    curves: list[Curve]
    units: list[int]

    @property
    def share(self) -> float:
        return sum(self.units) / UNITS / len(self.units)

    @property
    def regret(self) -> float:
        """Of the best complete trial against the best of all, as a part of it."""
        ends = [curve[-1] for curve in self.curves]
        complete = [end for end, units in zip(ends, self.units, strict=True) if units == UNITS]
        return min(complete, default=math.inf) / min(ends) - 1


def halving(curves: list[Curve], first: int, reduction: int) -> list[int]:
    """Ours, with the first rung after so many units."""
    settings = SearchSettings(least_images=first, reduction=reduction)
    at = rungs(settings, UNITS)
    made, units = Halving(len(at), [len(curves)], reduction, 1), [0] * len(curves)
    going_on = [*range(len(curves))]
    for rung, place in enumerate(at):
        found = [
            each
            for trial in going_on
            for each in made.arrive(trial, rung, curves[trial][place - 1])
        ]
        for trial in going_on:
            units[trial] = place
        going_on = [each.trial for each in found if each.goes_on]
    for trial in going_on:
        units[trial] = UNITS
    return units


def one_by_one(curves: list[Curve], stops: Callable[[int, int, float], bool]) -> list[int]:
    """Each trial to its end or until it is stopped, one after the other."""
    return [
        next((at for at in range(1, UNITS) if stops(trial, at, curve[at - 1])), UNITS)
        for trial, curve in enumerate(curves)
    ]


def tune_asha(curves: list[Curve], grace: int) -> list[int]:
    from ray.tune.schedulers import AsyncHyperBandScheduler

    theirs = AsyncHyperBandScheduler(
        "at", "loss", "min", max_t=UNITS, grace_period=grace, reduction_factor=4
    )
    trials = [TuneTrial(str(number)) for number in range(len(curves))]
    for trial in trials:
        theirs.on_trial_add(None, trial)

    def stops(number: int, at: int, loss: float) -> bool:
        said = theirs.on_trial_result(None, trials[number], {"at": at, "loss": loss})
        return bool(said == "STOP")

    return one_by_one(curves, stops)


class TuneTrial:
    """What Tune's HyperBand asks of a trial."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id, self.status, self.is_saving, self.at = trial_id, "PENDING", False, 0


def tune_hyperband(curves: list[Curve]) -> list[int]:
    from ray.tune.schedulers import HyperBandScheduler

    theirs = HyperBandScheduler("at", "loss", "min", max_t=UNITS)
    trials = [TuneTrial(str(number)) for number in range(len(curves))]

    def stop(trial: TuneTrial) -> None:
        trial.status = "TERMINATED"
        theirs.on_trial_remove(controller, trial)

    controller = SimpleNamespace(stop_trial=stop)
    for trial in trials:
        theirs.on_trial_add(controller, trial)
    while trial := theirs.choose_trial_to_run(controller):
        trial.status, said = "RUNNING", "CONTINUE"
        while said == "CONTINUE" and trial.at < UNITS:
            trial.at += 1
            loss = curves[int(trial.trial_id)][trial.at - 1]
            said = theirs.on_trial_result(controller, trial, {"at": trial.at, "loss": loss})
        trial.status = "PAUSED"
        if said == "STOP" or trial.at == UNITS:
            stop(trial)
    return [trial.at for trial in trials]


def optuna_hyperband(curves: list[Curve]) -> list[int]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.HyperbandPruner(1, UNITS, 3)
    study = optuna.create_study(pruner=pruner, study_name="replay")
    trials: dict[int, Any] = {}

    def stops(number: int, at: int, loss: float) -> bool:
        trial = trials.get(number) or trials.setdefault(number, study.ask())
        trial.report(loss, at)
        if pruned := trial.should_prune():
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        elif at == UNITS - 1:
            study.tell(trial, curves[number][-1])
        return bool(pruned)

    return one_by_one(curves, stops)


CONTENDERS: dict[str, Callable[[list[Curve]], list[int]]] = {
    "no stopping": lambda curves: [UNITS] * len(curves),
    **{
        f"halving, first rung {first}/64, 1 of {reduction}": partial(
            halving, first=first, reduction=reduction
        )
        for first in (4, 8, 11)
        for reduction in (2, 3, 4)
    },
    "Tune's ASHA (ours too), from 1/64": partial(tune_asha, grace=1),
    "Tune's ASHA, from 4/64": partial(tune_asha, grace=4),
    "Tune's HyperBand": tune_hyperband,
    "Optuna's Hyperband": optuna_hyperband,
}


def recorded(folder: Path) -> list[Curve]:
    """The curves of all trials that are recorded."""
    curves = []
    for path in sorted(folder.glob("*.json")):
        points = json.loads(path.read_text())["points"]
        end = points[-1][0]
        # The first place at or after each 64th: only the first half of the first part is finer.
        curves.append(
            [
                next(loss for images, loss in points if images >= end * unit // UNITS)
                for unit in range(1, UNITS + 1)
            ]
        )
    return curves


def replay(curves: list[Curve], trials: int, seeds: int) -> None:
    count = min(trials, len(curves))
    print(f"{len(curves)} trials are recorded, {count} are drawn for each of {seeds} searches")
    draws = [random.Random(seed).sample(curves, count) for seed in range(seeds)]
    for name, contender in CONTENDERS.items():
        found = [Replayed(drawn, contender(drawn)) for drawn in draws]
        regrets, shares = [each.regret for each in found], [each.share for each in found]
        regret = f"{statistics.median(regrets):7.2%} (mean {statistics.fmean(regrets):7.2%})"
        print(f"{name:36} regret {regret}, images {statistics.median(shares):4.0%}")


def samplers(search: Search, folder: Path, seeds: int) -> None:
    """The best of 8, 24 and 64 settings by each sampler; each is the recorded one nearest to it.

    Optuna learns from the ends of earlier trials, or from their first rung, as by halving.
    """
    trials = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    for name, rung in (("random", 1.0), ("sobol", 1.0), ("optuna", 1.0), ("optuna", 0.125)):
        found = []
        for seed in range(seeds):
            drawn = draws(search.replace(sampler=name, seed=seed), trials, rung)
            found.append([min(drawn[:count]) for count in (8, 24, 64)])
        best = ", ".join(
            f"{statistics.median(column):.5g} (mean {statistics.fmean(column):.5g})"
            for column in zip(*found, strict=True)
        )
        learns = f" that sees {rung:g} of the budget" if name == "optuna" else ""
        print(f"{name}{learns}: best after 8, 24 and 64 trials {best}", flush=True)


def draws(search: Search, trials: list[dict[str, Any]], rung: float) -> list[float]:
    """The ends of 64 settings, each drawn from what earlier ones were at a part of the budget."""
    sampler, ends, results = Sampler(search), list[float](), dict[int, list[TrialResult]]()
    for number in range(64):
        known = {each: results[each] for each in range(sampler.needed(number))}
        values = sampler.values(number, known)
        points = nearest(search, trials, values)["points"]
        budget = points[-1][0]
        images, loss = next(point for point in points if point[0] >= budget * rung)
        state: Literal["complete", "stopped"] = "complete" if images == budget else "stopped"
        results[number] = [TrialResult(number, state, images, loss, values)]
        ends.append(points[-1][1])
    return ends


def nearest(search: Search, trials: list[dict[str, Any]], values: dict[str, Any]) -> dict[str, Any]:
    """The recorded trial that has the same choices and the nearest numbers."""

    def distance(trial: dict[str, Any]) -> float:
        pairs = [(trial["settings"][axis.name], values[axis.name], axis) for axis in search.axes]
        return sum(
            99 * (one != other) if axis.values else abs(math.log(one / other))
            for one, other, axis in pairs
        )

    return min(trials, key=distance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--work", nargs="*", choices=WORKS, default=[*WORKS])
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--source", default="", help="images of MNIST, for ae")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    for work in asked.work:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if asked.record:
                record(wanted(work, asked.source if work == "ae" else ""), asked.cache / work)
            print(work)
            replay(recorded(asked.cache / work), asked.trials, asked.seeds)
            samplers(wanted(work, ""), asked.cache / work, asked.seeds)


if __name__ == "__main__":
    main()
