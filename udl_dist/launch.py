"""The only room that knows Ray Train: it takes workers from Ray, lets each do its `work`, and watches the run folder.

The main thread owns signals and the terminal, another one waits for Ray. Workers and driver speak through the run
folder: a stop is asked by a file, progress is read from the curves, a refusal from `failure.json`.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
import uuid
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from udl_dist import pulse
from udl_dist.errors import ClusterError, TrainingError, UdlError
from udl_dist.experiment import Experiment
from udl_dist.recovery import as_error, judge, one_line
from udl_dist.runs import RunFolder
from udl_dist.signals import Signals
from udl_dist.stream.opening import Prepared
from udl_dist.terminal import Terminal
from udl_dist.watchdog import GRACE_SECONDS, put_down

POLL_SECONDS = 0.2
START_SECONDS = 60.0
PLACEMENTS = 3  # tries to place the workers, of START_SECONDS each
ENVIRONMENT = {
    "RAY_worker_niceness": "0",  # 15 unless told: anything else on the machine would starve the workers
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # a report waits for this poll (2 s unless told)
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": f"{START_SECONDS:g}",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": f"{START_SECONDS:g}",  # ten minutes unless told
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}


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
            _watch(thread, folder, terminal, outcome, signals, experiment.run.hang_seconds)
        finally:
            _end_ray(thread, outcome)
            pulse.clear(folder)
            shutil.rmtree(_ray_storage(folder), ignore_errors=True)
        terminal.refresh(last=True)
    if error := outcome.get("error"):
        raise error if isinstance(error, UdlError) else _explained(error, folder, outcome, experiment)
    return {**outcome["result"], "signal": signals.received[0] if signals.received else 0}


def _watch(
    thread: threading.Thread, folder: RunFolder, terminal: Terminal, outcome: dict[str, Any], signals: Signals,
    hang_seconds: float,
) -> None:  # fmt: skip
    """Show the run until its thread ends; raise the first refusal of a worker as soon as it is there."""
    settled, ranks = False, pulse.Others(folder)
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


def _train(
    experiment: Experiment, prepared: Prepared, verbose: bool, faults: str, outcome: dict[str, Any]
) -> None:  # fmt: skip
    """Run in a thread: Ray from start to end; leaves `result` or `error` in `outcome`, `ours` if Ray is to be ended."""
    try:
        outcome["ours"] = _start_ray(experiment, verbose)
        workers, gpu = _placeable(experiment)
        outcome["result"] = _trainer(experiment, prepared, workers, gpu, faults).fit().return_value
    except Exception as error:  # carried to the main thread, which explains it
        outcome["free"] = _free()
        outcome["error"] = error
    finally:
        # Not left to the main thread: Ray's processes are killed, not ended, with the thread that started them.
        _shut_down(outcome)


def _trainer(experiment: Experiment, prepared: Prepared, workers: int, gpu: bool, faults: str) -> Any:
    """Ray's trainer for the workers asked for."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    return TorchTrainer(
        _rank,
        train_loop_config={"experiment": experiment.to_dict(), "prepared": asdict(prepared), "faults": faults},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": experiment.run.cpus_per_worker, "GPU": int(gpu)},
        ),
        # Our checkpoints are the truth: Ray gets a name of its own each time, so that its snapshot is never taken up.
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            storage_path=str(_ray_storage(RunFolder(experiment.run.folder))),
            failure_config=FailureConfig(
                max_failures=experiment.run.max_failures, controller_failure_limit=PLACEMENTS - 1
            ),
            callbacks=[_judge(experiment)],
        ),
    )


def _judge(experiment: Experiment) -> Any:
    """What Ray's controller calls when workers fail: in its own process, to which this travels."""
    from ray.train import UserCallback

    folder, most = experiment.run.folder, experiment.run.max_failures

    class Judge(UserCallback):  # type: ignore[misc]  # Ray has no types
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, BaseException]) -> None:
            judge(RunFolder(folder), worker_exceptions, most)

    return Judge()


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
            experiment, prepared, ranks, lambda report: ray.train.report({"images": report.images, **report.figures})
        )
    except UdlError as error:
        RunFolder(experiment.run.folder).fail(error)
        raise


def _start_ray(experiment: Experiment, verbose: bool) -> bool:
    """Join the cluster at `run.address`, or start a private Ray that opens no dashboard; say whether to end it later.

    A Ray that is there already is somebody's own session or a test's cluster: theirs to end.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

        if ray.is_initialized():
            return False
        where: dict[str, Any] = {"address": experiment.run.address or "local"}
        if not experiment.run.address:
            where |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        level = logging.INFO if verbose else logging.ERROR
        try:
            ray.init(**where, log_to_driver=verbose, logging_level=level, namespace="udl-dist")
        except Exception as error:  # Ray raises many kinds here
            raise ClusterError(f"no Ray at {experiment.run.address or 'this machine'}: {one_line(error)}") from None
    if not verbose:
        for name in ("ray", "ray.train"):
            logging.getLogger(name).setLevel(logging.ERROR)
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
        import ray

        ray.shutdown()


def _placeable(experiment: Experiment) -> tuple[int, bool]:
    """The workers asked for and whether each takes a GPU; raise ClusterError at once if they cannot be had."""
    import ray

    there = ray.cluster_resources()
    gpu = experiment.run.device == "cuda" or (experiment.run.device == "auto" and there.get("GPU", 0) > 0)
    asked, each = experiment.run.workers, 1 if gpu else experiment.run.cpus_per_worker
    available = int(there.get("GPU" if gpu else "CPU", 0))
    if asked * each > available:
        kind = "GPUs" if gpu else "CPU cores"
        raise ClusterError(f"run.workers = {asked} needs {asked * each} {kind}, the cluster has {available}: "
                           f"set run.workers to {available // each} or fewer")  # fmt: skip
    return asked, gpu


def _free() -> str:
    """What of the cluster nobody uses at the moment, in words."""
    import ray

    free = ray.available_resources() if ray.is_initialized() else {}
    return f"{free.get('CPU', 0):g} CPU cores, {free.get('GPU', 0):g} GPUs"


def _ray_storage(folder: RunFolder) -> Path:
    return folder.path / ".ray"


def _explained(error: Exception, folder: RunFolder, outcome: dict[str, Any], experiment: Experiment) -> UdlError:
    """What Ray raised, as one line; the whole story goes to the messages of the run."""
    failures = getattr(error, "worker_failures", None) or {}
    folder.say(f"Ray: {error}")
    if failures:
        rank, cause = next(iter(failures.items()))
        return TrainingError(f"rank {rank} failed: {one_line(cause)}; all of it is in {folder.messages}")
    if "startup timed out" in str(error):
        return ClusterError(f"run.workers = {experiment.run.workers} could not be placed in {PLACEMENTS} tries; free "
                            f"now: {outcome['free']}: lower run.workers, or wait for the others")  # fmt: skip
    return ClusterError(f"Ray failed: {one_line(error)}; all of it is in {folder.messages}")
