"""python -m tests.bench.search [--trials 32] [--nested 6] [--turns 1]: trials per hour of a small search, side by side.

The same VAE, the same steps and a hundred reports a trial, on a Ray that is there already. Ours: `udl search` with
run folders, checkpoints, validations and the journal. Plain Tune: a function, an actor a trial, every report to Tune.
Nested: Ray's template, a trainer of one worker in each trial, every report through Ray Train to Tune.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.training.learn import asked, packed
from udl_dist import clusters
from udl_dist import experiment as experiments
from udl_dist.search import session, settings

STEPS, BATCH = 100, 32
AXES = {"method.latent_dim": {"choice": [2, 4, 8, 16]}, "train.learning_rate": {"log": [1e-4, 1e-2]}}
FLAGS = {"train__batch_size": str(BATCH), "train__total_images": str(STEPS * BATCH), "track__mode": "off",
         "train__report_images": str(BATCH), "data__size": "28", "method__network__widths": "256"}  # fmt: skip


def search(source: Path, folder: Path, trials: int, **plain: Any) -> settings.Search:
    base = asked("vae", source, run__folder=str(folder), **FLAGS)
    more = {"scheduler": "none", "trials": trials, "final_seeds": 0, "plots": False, "keep": 0} | plain
    return settings.build(base, more, AXES)


def ours(source: Path, folder: Path, trials: int) -> None:
    ended = session.search(search(source, folder, trials), io.StringIO())
    assert ended.complete
    assert not [line for line in ended.lines if line.state != "complete"]


def learned(config: dict[str, Any], report: Callable[[dict[str, float]], None]) -> None:
    """The same training without anything that is kept."""
    from tests.training.learn import Run
    from udl_dist.training.loop import Intervals, train

    run = Run(experiments.from_dict(config["experiment"]))
    intervals = Intervals(BATCH, STEPS * BATCH, STEPS * BATCH)
    for each in train(run.learning, run.stream, run.held_out, run.experiment.train, intervals, run.ranks):
        report({"images": each.images, **each.figures})


def plain(source: Path, folder: Path, trials: int) -> None:
    from ray import tune

    def trial(config: dict[str, Any]) -> None:
        learned(config, tune.report)

    _tuned(tune.with_resources(trial, {"cpu": 1}), source, folder, trials)


def nested(source: Path, folder: Path, trials: int) -> None:
    import ray.train
    from ray import tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    def worker(config: dict[str, Any]) -> None:
        learned(config, ray.train.report)

    def trial(config: dict[str, Any]) -> None:
        run_config = ray.train.RunConfig(storage_path=str(folder / "train"), name=tune.get_context().get_trial_id(),
                                         callbacks=[TuneReportCallback()])  # fmt: skip
        TorchTrainer(worker, train_loop_config=config, run_config=run_config,
                     scaling_config=ray.train.ScalingConfig(num_workers=1)).fit()  # fmt: skip

    _tuned(tune.with_resources(trial, {"cpu": 0, "memory": 2**20}), source, folder, trials, most=os.cpu_count() or 1)


def _tuned(trainable: Any, source: Path, folder: Path, trials: int, most: int | None = None) -> None:
    from ray import tune

    base = search(source, folder, trials).base.to_dict()
    ended = tune.Tuner(
        trainable, param_space={"experiment": base, "number": tune.grid_search(list(range(trials)))},
        tune_config=tune.TuneConfig(max_concurrent_trials=most),
        run_config=tune.RunConfig(storage_path=str(folder / "tune"), verbose=0),
    ).fit()  # fmt: skip
    assert not ended.errors
    assert len(ended) == trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--nested", type=int, default=6)
    parser.add_argument("--turns", type=int, default=1)
    wanted = parser.parse_args()
    contenders = {
        "ours": (ours, wanted.trials),
        "plain Tune": (plain, wanted.trials),
        "nested": (nested, wanted.nested),
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = packed(Path(folder) / "data", records=1000, size=28)
        os.environ["OMP_NUM_THREADS"] = "1"
        clusters.start("", False)
        for turn in range(wanted.turns):
            for name, (run, trials) in contenders.items():
                if trials:
                    began = time.perf_counter()
                    run(source, Path(folder) / f"{name.replace(' ', '-')}-{turn}", trials)
                    rates[name].append(3600 * trials / (time.perf_counter() - began))
                    print(f"turn {turn}, {name}: {rates[name][-1]:,.0f} trials an hour", flush=True)
        clusters.end()
    best = {name: max(found) for name, found in rates.items() if found}
    for name in [name for name in best if name != "ours"]:
        print(f"ours against {name}: {best['ours'] / best[name]:.1f} times as many trials an hour")


if __name__ == "__main__":
    main()
