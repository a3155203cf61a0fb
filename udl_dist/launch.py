"""The only room that knows Ray Train: it takes workers from Ray, lets each do its `work`, and watches the run folder.

The main thread owns signals and the terminal, another one waits for Ray. Workers and driver speak through the run
folder: a stop is asked by a file, progress is read from the curves, a refusal from `failure.json`.
"""

from __future__ import annotations

import shutil
import threading
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from udl_dist import clusters, disk, nodes, pulse
from udl_dist.clusters import PLACEMENTS, POLL_SECONDS, START_SECONDS, Size
from udl_dist.errors import ClusterError, UdlError
from udl_dist.experiment import Experiment
from udl_dist.growing import Growing
from udl_dist.recovery import as_error, judge, one_line
from udl_dist.runs import RunFolder
from udl_dist.signals import Signals
from udl_dist.stream.opening import Prepared
from udl_dist.terminal import Terminal
from udl_dist.watchdog import GRACE_SECONDS, put_down

Gate = Any  # what `work` asks whether to go on; its type would bring in torch


def run(
    experiment: Experiment, prepared: Prepared, terminal: Terminal, verbose: bool = False, faults: str = ""
) -> dict[str, Any]:
    """Train under Ray until the end or a signal; return what `work` returned, with `signal` (0 if there was none).

    `faults` happen on purpose (see faults.py). The run folder must be held.
    Raise the UdlError of the first worker that refused, or ClusterError, TrainingError.
    """
    folder = RunFolder(experiment.run.folder)
    pulse.clear(folder)
    outcome: dict[str, Any] = {}
    with Signals(folder.ask_stop, terminal.say, lambda: "ours" in outcome) as signals:
        # All of Ray lives in a thread: on the main one it would take our signals from us.
        thread = threading.Thread(target=_train, args=(experiment, prepared, verbose, faults, outcome), daemon=True)
        thread.start()
        try:
            _watch(thread, folder, terminal, outcome, signals, experiment)
        finally:
            _end_ray(thread, outcome)
            pulse.clear(folder)
            shutil.rmtree(_ray_storage(folder), ignore_errors=True)
        terminal.refresh(last=True)
    if error := outcome.get("error"):
        raise error if isinstance(error, UdlError) else _explained(error, folder, outcome, experiment)
    return {**outcome["result"], "signal": signals.received[0] if signals.received else 0}


def train_within(
    experiment: Experiment, prepared: Prepared, faults: str, gate: Gate
) -> dict[str, Any]:  # fmt: skip
    """The same in a process that has joined a Ray, such as a trial of a search: no signals and no terminal."""
    folder = RunFolder(experiment.run.folder)
    pulse.clear(folder)
    outcome: dict[str, Any] = {}
    thread = threading.Thread(target=_train, args=(experiment, prepared, False, faults, outcome, gate), daemon=True)
    thread.start()
    ranks, patience = pulse.Others(folder), experiment.run.hang_seconds + GRACE_SECONDS
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        for life in ranks.silent(patience) if experiment.run.hang_seconds else ():
            put_down(folder, life)
    pulse.clear(folder)
    shutil.rmtree(_ray_storage(folder), ignore_errors=True)
    if error := outcome.get("error"):
        raise error if isinstance(error, UdlError) else _explained(error, folder, outcome, experiment)
    return dict(outcome["result"])


def _watch(
    thread: threading.Thread, folder: RunFolder, terminal: Terminal, outcome: dict[str, Any], signals: Signals,
    experiment: Experiment,
) -> None:  # fmt: skip
    """Show the run until its thread ends; raise the first refusal of a worker as soon as it is there."""
    settled, ranks, hang_seconds = False, pulse.Others(folder), experiment.run.hang_seconds
    growing = Growing(experiment, folder)
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        terminal.refresh()
        if "ours" in outcome and not settled:
            signals.install()
            settled = True
        for life in ranks.silent(hang_seconds + GRACE_SECONDS) if hang_seconds else ():
            put_down(folder, life)
        if failure := folder.failure():
            raise as_error(*failure)
        growing.look(outcome.get("workers", 0))


def _train(
    experiment: Experiment, prepared: Prepared, verbose: bool, faults: str, outcome: dict[str, Any],
    gate: Gate | None = None,
) -> None:  # fmt: skip
    """Run in a thread: Ray from start to end; leaves `result` or `error` in `outcome`, `ours` if Ray is to be ended.

    `workers` is how many are at work, so that somebody can look whether more can be had.
    """
    folder = RunFolder(experiment.run.folder)
    try:
        outcome["ours"] = clusters.start(experiment.run.address, verbose)
        nodes.refuse_unshared(experiment, prepared)
        outcome["result"] = _groups(experiment, prepared, faults, folder, outcome, gate)
    except Exception as error:  # carried to the main thread, which explains it
        outcome["free"] = clusters.in_words()
        outcome["error"] = error
    finally:
        # Not left to the main thread: Ray's processes are killed, not ended, with the thread that started them.
        _shut_down(outcome)


def _groups(
    experiment: Experiment, prepared: Prepared, faults: str, folder: RunFolder, outcome: dict[str, Any],
    gate: Gate | None,
) -> dict[str, Any]:  # fmt: skip
    """One group of workers after the other, each as large as there is place for, until one ends the run.

    A group ends early when a worker fails, which `judge` may take for the end of the run, or for a larger one.
    """
    size, placements = clusters.size(experiment), 0
    while True:
        outcome["workers"] = size.workers
        if experiment.run.least_workers < experiment.run.most_workers:
            folder.say(f"{size.workers} workers")
        wait = 0.0
        try:
            result = dict(_trainer(experiment, prepared, size, faults, gate).fit().return_value)
            if not result["stopped"] or folder.stop_asked() or not folder.resize_asked():
                return result
        except Exception as error:
            if clusters.is_misplaced(error):
                placements += 1
                if placements == PLACEMENTS:
                    raise
                folder.say(f"{size.workers} workers found no place in {START_SECONDS:g} s, free now: "
                           f"{clusters.in_words()}: again ({placements} of {PLACEMENTS} tries)")  # fmt: skip
            elif clusters.is_loss(error):
                placements = 0
                with disk.errors_named(folder.path):
                    judge(folder, getattr(error, "worker_failures", {}), experiment.run.max_failures)
            else:
                raise
            if failure := folder.failure():
                raise as_error(*failure) from None
            wait = PLACEMENTS * START_SECONDS
        outcome["workers"] = 0
        folder.resize_done()
        pulse.clear(folder)  # those of a larger group must not be taken for dead ranks of the next
        size = clusters.size(experiment, size.workers, wait)


def _trainer(experiment: Experiment, prepared: Prepared, size: Size, faults: str, gate: Gate | None) -> Any:
    """Ray's trainer for one group of workers."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    return TorchTrainer(
        _rank,
        train_loop_config={
            "experiment": experiment.to_dict(),
            "prepared": asdict(prepared),
            "faults": faults,
            "gate": gate or _open,
        },
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if size.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=size.workers,
            use_gpu=size.gpu,
            resources_per_worker={"CPU": experiment.run.cpus_per_worker, "GPU": int(size.gpu)},
        ),
        # Our checkpoints are the truth: Ray gets a name of its own each time, so that its snapshot is never taken up.
        # It starts nothing again by itself either: the next group may be another size.
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            storage_path=str(_ray_storage(RunFolder(experiment.run.folder))),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )


def _rank(config: dict[str, Any]) -> dict[str, Any]:
    """The body of one Ray worker."""
    import ray.train
    import ray.train.torch

    from udl_dist import experiment as experiments
    from udl_dist import faults
    from udl_dist.training.ranks import Ranks
    from udl_dist.worker import work

    experiment = experiments.from_dict(config["experiment"])
    try:
        faults.arm(config["faults"], RunFolder(experiment.run.folder), ray.train.get_context().get_world_rank())
        ranks = Ranks(ray.train.torch.get_device())
        prepared = Prepared(**config["prepared"] | {"settings": experiment.data})
        return work(
            experiment,
            prepared,
            ranks,
            lambda report: ray.train.report({"images": report.images, **report.figures}),
            config["gate"],
        )
    except UdlError as error:
        RunFolder(experiment.run.folder).fail(error)
        raise


def _open(images: int) -> bool:
    """The gate of a run that nobody stops at a validation."""
    return True


def _end_ray(thread: threading.Thread, outcome: dict[str, Any]) -> None:
    """End a Ray that is still at work; a start under way is waited for, so that nothing of it is left behind."""
    deadline = time.monotonic() + START_SECONDS
    while thread.is_alive() and not outcome and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    if thread.is_alive():
        _shut_down(outcome)
        thread.join(START_SECONDS)


def _shut_down(outcome: dict[str, Any]) -> None:
    if outcome.get("ours"):
        clusters.end()


def _ray_storage(folder: RunFolder) -> Path:
    return folder.path / ".ray"


def _explained(error: Exception, folder: RunFolder, outcome: dict[str, Any], experiment: Experiment) -> UdlError:
    """What Ray raised, as one line; the whole story goes to the messages of the run."""
    if clusters.is_misplaced(error):
        return ClusterError(f"run.workers = {experiment.run.workers} could not be placed in {PLACEMENTS} tries; free "
                            f"now: {outcome['free']}: lower run.workers, or wait for the others")  # fmt: skip
    return ClusterError(f"Ray failed: {one_line(error)}; all of it is in {folder.messages}")
