"""python -m tests.bench.search [--trials 32] [--nested 6] [--turns 1] [--tiny 1000]
[--only WHAT]: what a small search costs.

    rates    trials per hour, ours next to plain Tune and Ray's nested template
    asha     ASHA against the same trials without stopping, on the embedded digits: best figure and
    images
    reports  what a rung costs a trial: from its result to the decision, with one trial at a time
    tiny     --tiny 1000 trials of eight steps by halving, then by ASHA: memory, descriptors and
             threads of the head

The same VAE, the same steps and a hundred reports a trial, on a Ray that is there already. Ours:
`udl search` with run folders, checkpoints, validations and the journal. Plain Tune: a function, an
actor a trial, every report to Tune. Nested: Ray's template, a trainer of one worker in each trial,
every report through Ray Train to Tune.
"""

import argparse
import io
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.training.learn import asked, packed
from udl_dist import experiment as experiments
from udl_dist.launch import ray_runtime
from udl_dist.search import config, session

STEPS, BATCH = 100, 32
AXES = {
    "method.latent_dim": {"choice": [2, 4, 8, 16]},
    "train.learning_rate": {"log": [1e-4, 1e-2]},
}
FLAGS = {
    "train__batch_size": str(BATCH),
    "train__total_images": str(STEPS * BATCH),
    "track__mode": "off",
    "train__report_images": str(BATCH),
    "data__size": "28",
    "method__network__widths": "256",
}


def search(source: Path, folder: Path, trials: int, **plain: Any) -> config.Search:
    base = asked("vae", source, run__folder=str(folder), **FLAGS)
    more = {
        "scheduler": "none",
        "trials": trials,
        "final_seeds": 0,
        "plots": False,
        "keep": 0,
    } | plain
    return config.build(base, more, AXES)


def ours(source: Path, folder: Path, trials: int) -> None:
    ended = session.search(search(source, folder, trials), io.StringIO())
    assert ended.complete
    assert not [line for line in ended.results if line.state != "complete"]


def learned(config: dict[str, Any], report: Callable[[dict[str, float]], None]) -> None:
    """The same training without anything that is stored."""
    from tests.training.learn import Run
    from udl_dist.training.loop import Intervals, TrainingLoop

    run = Run(experiments.from_dict(config["experiment"]))
    intervals = Intervals(BATCH, STEPS * BATCH, STEPS * BATCH)
    settings = run.experiment.train
    loop = TrainingLoop(run.learning, run.stream, run.held_out, settings, intervals, run.ranks)
    for each in loop.reports():
        report({"images": each.images, **each.metrics})


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
        run_config = ray.train.RunConfig(
            storage_path=str(folder / "train"),
            name=tune.get_context().get_trial_id(),
            callbacks=[TuneReportCallback()],
        )
        TorchTrainer(
            worker,
            train_loop_config=config,
            run_config=run_config,
            scaling_config=ray.train.ScalingConfig(num_workers=1),
        ).fit()

    _tuned(
        tune.with_resources(trial, {"cpu": 0, "memory": 2**20}),
        source,
        folder,
        trials,
        most=os.cpu_count() or 1,
    )


def _tuned(
    trainable: Any, source: Path, folder: Path, trials: int, most: int | None = None
) -> None:
    from ray import tune

    base = search(source, folder, trials).base.to_dict()
    ended = tune.Tuner(
        trainable,
        param_space={"experiment": base, "number": tune.grid_search(list(range(trials)))},
        tune_config=tune.TuneConfig(max_concurrent_trials=most),
        run_config=tune.RunConfig(storage_path=str(folder / "tune"), verbose=0),
    ).fit()
    assert not ended.errors
    assert len(ended) == trials


def rates(folder: Path, asked_for: argparse.Namespace) -> None:
    contenders = {
        "ours": (ours, asked_for.trials),
        "plain Tune": (plain, asked_for.trials),
        "nested": (nested, asked_for.nested),
    }
    found: dict[str, list[float]] = {name: [] for name in contenders}
    source = packed(folder / "data", records=1000, size=28)
    for turn in range(asked_for.turns):
        for name, (run, trials) in contenders.items():
            if trials:
                began = time.perf_counter()
                run(source, folder / f"{name.replace(' ', '-')}-{turn}", trials)
                found[name].append(3600 * trials / (time.perf_counter() - began))
                print(f"turn {turn}, {name}: {found[name][-1]:,.0f} trials an hour", flush=True)
    best = {name: max(each) for name, each in found.items() if each}
    for name in [name for name in best if name != "ours"]:
        print(f"ours against {name}: {best['ours'] / best[name]:.1f} times as many trials an hour")


def asha(folder: Path, asked_for: argparse.Namespace) -> None:
    flags = {
        "data__size": "28",
        "train__batch_size": "64",
        "train__total_images": "27000",
        "track__mode": "off",
        "method__network__widths": "256,64",
    }
    best, images = {}, {}
    for scheduler in ("none", "asha"):
        base = asked("vae", Path("digits"), run__folder=str(folder / scheduler), **flags)
        more = {
            "scheduler": scheduler,
            "trials": asked_for.trials,
            "final_seeds": 0,
            "plots": False,
            "seed": 3,
        }
        ended = session.search(config.build(base, more, AXES), io.StringIO())
        assert ended.winner
        best[scheduler], images[scheduler] = (
            ended.winner.metric,
            sum(line.images for line in ended.results),
        )
        print(
            f"{scheduler}: best {best[scheduler]:.2f} nats (trial {ended.winner.trial}), "
            f"{images[scheduler]:,} images",
            flush=True,
        )
    print(
        f"ASHA: best figure {100 * (best['asha'] / best['none'] - 1):+.2f} %, "  # type: ignore[operator]
        f"{images['asha'] / images['none']:.3f} of the images"
    )


def reports(folder: Path, asked_for: argparse.Namespace) -> None:
    source = packed(folder / "data", records=1000, size=28)
    wanted = search(source, folder / "reports", 12, scheduler="median", parallel=1)
    ended = session.search(wanted, io.StringIO())
    reached = sum(len(line.rungs) for line in ended.results)
    waited = sum(line.waited_seconds for line in ended.results)
    print(f"{1000 * waited / reached:.2f} ms from a result to its decision ({reached} rungs)")


def tiny(folder: Path, asked_for: argparse.Namespace) -> None:
    source, flags = packed(folder / "data"), {"train__total_images": "96", "track__mode": "off"}
    for scheduler in ("halving", "asha"):
        base = asked("ae", source, run__folder=str(folder / scheduler), **flags)
        more = {"scheduler": scheduler, "trials": asked_for.tiny, "final_seeds": 0, "plots": False}
        wanted, seen = config.build(base, more, AXES), list[tuple[int, str]]()
        over = threading.Event()
        looking = threading.Thread(target=look, args=(wanted.folder, seen, over))
        looking.start()
        began = time.perf_counter()
        ended = session.search(wanted, io.StringIO())
        over.set()
        looking.join()
        rate = 3600 * asked_for.tiny / (time.perf_counter() - began)
        assert ended.complete
        print(f"{scheduler}: {asked_for.tiny} trials, {rate:,.0f} an hour")
        for part in (0.1, 0.5, 0.98):
            started, said = next(each for each in seen if each[0] >= part * asked_for.tiny)
            print(f"  with {started} trials started: {said}")


def look(folder: Path, seen: list[tuple[int, str]], over: threading.Event) -> None:
    """Keep the trials that have started and what this process holds, every half second."""
    own, ended = Path("/proc/self"), False
    while not ended:
        ended = over.wait(0.5)
        started = sum(1 for _ in folder.glob("trials/*"))
        status = (own / "status").read_text().splitlines()
        memory = next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon"))
        counts = (
            f"{len(os.listdir(own / 'fd'))} descriptors, {len(os.listdir(own / 'task'))} threads"
        )
        seen.append((started, f"head {memory:.0f} MiB, {counts}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--nested", type=int, default=6)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--tiny", type=int, default=1000)
    parser.add_argument("--only", choices=("rates", "asha", "reports", "tiny"))
    asked_for = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray_runtime.start("", False)
        for suite in (rates, asha, reports, tiny):
            if asked_for.only in (None, suite.__name__):
                suite(Path(folder) / suite.__name__, asked_for)
        ray_runtime.end()


if __name__ == "__main__":
    main()
