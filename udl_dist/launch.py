"""The only room that knows Ray Train: it takes workers from Ray, lets each do its `work`, and watches the run folder.

The main thread owns signals and the terminal, another one waits for Ray. Workers and driver speak through the run
folder: a stop is asked by a file, progress is read from the curves, a refusal from `failure.json`.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from udl_dist.errors import ClusterError, TrainingError, UdlError
from udl_dist.experiment import Experiment
from udl_dist.runs import RunFolder
from udl_dist.stream.prepare import Prepared
from udl_dist.terminal import Terminal

POLL_SECONDS = 0.2
QUIET = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # a report waits for this poll (2 s unless told)
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}


def run(experiment: Experiment, prepared: Prepared, terminal: Terminal, verbose: bool = False) -> dict[str, Any]:
    """Train under Ray until the end or a signal; return what `work` returned, with `signal` (0 if there was none).

    The run folder must be held. Raise the UdlError of the first worker that refused, or ClusterError, TrainingError.
    """
    folder = RunFolder(experiment.run.folder)
    with _ray(experiment, verbose), _signals(folder, terminal) as received:  # in this order: Ray sets handlers too
        workers, gpu = _placeable(experiment)
        outcome: dict[str, Any] = {}
        fit = threading.Thread(target=_fit, args=(experiment, prepared, workers, gpu, outcome), daemon=True)
        fit.start()
        while fit.is_alive():
            fit.join(POLL_SECONDS)
            terminal.refresh()
            if failure := folder.failure():
                raise _as_error(*failure)
        terminal.refresh(last=True)
    shutil.rmtree(_ray_storage(folder), ignore_errors=True)
    if error := outcome.get("error"):
        raise _explained(error, folder)
    return {**outcome["result"], "signal": received[0] if received else 0}


def _fit(experiment: Experiment, prepared: Prepared, workers: int, gpu: bool, outcome: dict[str, Any]) -> None:
    """Run in a thread: Ray Train from start to end; leaves `result` or `error` in `outcome`."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        _rank,
        train_loop_config={"experiment": experiment.to_dict(), "prepared": asdict(prepared)},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": _cpus_per_worker(experiment), "GPU": int(gpu)},
        ),
        # Our checkpoints are the truth: Ray gets a name of its own each time, so that its snapshot is never taken up.
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            storage_path=str(_ray_storage(RunFolder(experiment.run.folder))),
            failure_config=FailureConfig(max_failures=experiment.run.max_failures),
        ),
    )
    try:
        outcome["result"] = trainer.fit().return_value
    except Exception as error:  # carried to the main thread, which explains it
        outcome["error"] = error


def _rank(config: dict[str, Any]) -> dict[str, Any]:
    """The body of one Ray worker."""
    import ray.train
    import ray.train.torch

    from udl_dist import experiment as experiments
    from udl_dist.training.ranks import Ranks
    from udl_dist.worker import work

    experiment = experiments.from_dict(config["experiment"])
    try:
        ranks = Ranks(ray.train.torch.get_device())
        prepared = Prepared(**config["prepared"] | {"settings": experiment.data})
        return work(
            experiment, prepared, ranks, lambda report: ray.train.report({"images": report.images, **report.figures})
        )
    except UdlError as error:
        RunFolder(experiment.run.folder).fail(error)
        raise


@contextmanager
def _signals(folder: RunFolder, terminal: Terminal) -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM asks the run to end with a checkpoint, the second ends it at once."""
    received: list[int] = []

    def handle(number: int, _: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        folder.ask_stop()
        terminal.say("stopping: a checkpoint is written first (once more: at once)")

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    except KeyboardInterrupt:
        raise SystemExit(128 + received[0]) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _ray(experiment: Experiment, verbose: bool) -> Iterator[None]:
    """Ray for the while: the cluster at `run.address`, or a private one that opens no dashboard and ends with us."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

    where: dict[str, Any] = {"address": experiment.run.address or "local"}
    if not experiment.run.address:
        where |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    if ray.is_initialized():  # somebody's own session, or a test's cluster: it is theirs to end
        yield
        return
    try:
        ray.init(**where, log_to_driver=verbose, logging_level=logging.INFO if verbose else logging.ERROR,
                 namespace="udl-dist")  # fmt: skip
    except Exception as error:  # Ray raises many kinds here
        raise ClusterError(f"no Ray at {experiment.run.address or 'this machine'}: {_one_line(error)}") from None
    if not verbose:
        logging.getLogger("ray").setLevel(logging.ERROR)
        logging.getLogger("ray.train").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _placeable(experiment: Experiment) -> tuple[int, bool]:
    """The workers asked for and whether each takes a GPU; raise ClusterError at once if they cannot be had."""
    import ray

    there = ray.cluster_resources()
    gpu = experiment.run.device == "cuda" or (experiment.run.device == "auto" and there.get("GPU", 0) > 0)
    asked, each = experiment.run.workers, 1 if gpu else _cpus_per_worker(experiment)
    available = int(there.get("GPU" if gpu else "CPU", 0))
    if asked * each > available:
        kind = "GPUs" if gpu else "CPU cores"
        raise ClusterError(f"run.workers = {asked} needs {asked * each} {kind}, the cluster has {available}: "
                           f"set run.workers to {available // each} or fewer")  # fmt: skip
    return asked, gpu


def _cpus_per_worker(experiment: Experiment) -> int:
    return experiment.run.cpus_per_worker


def _ray_storage(folder: RunFolder) -> Any:
    return folder.path / ".ray"


def _as_error(exit_code: int, message: str) -> UdlError:
    """The refusal a worker left, as the class of its exit code."""
    kinds = {kind.exit_code: kind for kind in UdlError.__subclasses__()}
    return kinds.get(exit_code, TrainingError)(message)


def _explained(error: Exception, folder: RunFolder) -> UdlError:
    """What Ray raised, as one line; the whole story goes to the messages of the run."""
    failures = getattr(error, "worker_failures", None) or {}
    folder.say(f"Ray: {error}")
    if failures:
        rank, cause = next(iter(failures.items()))
        return TrainingError(f"rank {rank} failed: {_one_line(cause)}; all of it is in {folder.messages}")
    return ClusterError(f"Ray failed: {_one_line(error)}; all of it is in {folder.messages}")


def _one_line(error: BaseException) -> str:
    """The last line of a message that may hold a whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
