"""Runs trials by Ray Tune; the only module that imports ray.tune.

Tune assigns actors to trials and reports results and deaths; the controller decides. Tune never
stops a trial: it reads its decision itself, so that all its ranks end together. Tune's loggers and
snapshots are off, and actors are reused.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.search import Searcher

from udl_dist import experiment as experiments
from udl_dist.errors import ClusterError
from udl_dist.launch import capacity as cluster_capacity
from udl_dist.search import trial
from udl_dist.search.config import Search
from udl_dist.search.controller import Controller
from udl_dist.search.trial import TrainGroup, TrialOutcome, TrialTask, ValidationReader

POLL_SECONDS = 0.05  # between two looks of an actor for validations of its trial
# For the actor of a trial whose workers have the cores; Tune refuses one without resources.
# One mebibyte, of which every node has more: with a core of its own, this driver could take the
# place that its workers wait for.
GROUP_DRIVER = {"CPU": 0, "memory": 2**20}
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard files
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",  # no snapshots: a search resumes from trials.jsonl
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "1",
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "100000",
    "TUNE_WARN_THRESHOLD_S": "100",
    "RAY_AIR_NEW_OUTPUT": "0",  # progress is ours
}


@dataclass(frozen=True)
class Capacity:
    """The number of parallel trials and the resources of each; `grouped`: by several workers."""

    parallel: int
    resources: dict[str, float]  # of the actor of a trial of one worker
    grouped: bool


def capacity_for(search: Search) -> Capacity:
    """The capacity of the connected Ray; raise ClusterError if no trial fits."""
    base, run = search.base, search.base.run
    workers, resources = run.most_workers, {"CPU": float(run.cpus_per_worker)}
    if cluster_capacity.wants_gpu(base):
        # NCCL refuses two ranks on one GPU, so a group shares none.
        resources["GPU"] = search.settings.gpu_share if workers == 1 else 1.0
    fit = cluster_capacity.of_cluster(resources)
    if not (fitting := fit // workers):
        why = cluster_capacity.shortage(resources, workers, fit)
        raise ClusterError(f"a trial of run.workers = {workers} {why}")
    # More in parallel than fit would wait as pending actors, and count as running.
    return Capacity(min(search.settings.parallel or fitting, fitting), resources, workers > 1)


def run(controller: Controller, capacity: Capacity, storage: Path) -> None:
    """Run the controller's tasks to the end; `storage` is a folder for Tune, and removed."""
    for name, value in ENVIRONMENT.items():
        # setdefault: a user who examines Tune may set them otherwise.
        os.environ.setdefault(name, value)
    # All actors start at the same time; by default Tune starts them one after the other.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(capacity.parallel)
    # Tune would copy the AWS keys of this process into each trial's runtime_env: into logs, process
    # arguments and the dashboard.
    secrets = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE -= secrets
    shutil.rmtree(storage, ignore_errors=True)
    errors: list[Exception] = []
    try:
        tune.Tuner(
            tune.with_resources(
                TrialActor, GROUP_DRIVER if capacity.grouped else capacity.resources
            ),
            param_space=None,
            tune_config=tune.TuneConfig(
                search_alg=_TaskSearcher(controller, capacity, errors),
                num_samples=-1,  # until the searcher returns FINISHED
                # Thirty-two trials of 100 steps took 4.7 times as long with an actor for each as in
                # one process.
                reuse_actors=True,
                trial_name_creator=str,
                trial_dirname_creator=lambda each: each.trial_id,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(storage),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),  # the controller counts deaths
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    except Exception as error:
        raise errors[0] if errors else error from None
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    if errors or not controller.over:
        raise errors[0] if errors else RuntimeError("Tune ended before the search did")


@contextlib.contextmanager
def _remembered(errors: list[Exception]) -> Iterator[None]:
    """Remember an error of the controller, such as a full disk: Tune would turn it into text."""
    try:
        yield
    except Exception as error:
        errors.append(error)
        raise


class _TaskSearcher(Searcher):  # type: ignore[misc]
    """Gives Tune the next task and reports to the controller, all in one thread of Tune."""

    def __init__(self, controller: Controller, capacity: Capacity, errors: list[Exception]) -> None:
        super().__init__()
        self._controller, self._capacity, self._errors = controller, capacity, errors
        self._live: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        # None: Tune asks again later.
        # Tune asks before an actor is free, and a task that only waits must not count as running.
        if len(self._live) >= self._capacity.parallel:
            return None
        with _remembered(self._errors):
            task = self._controller.next()
            if task is None:
                # Not while one is live: if its process dies, its task waits again.
                done = self._controller.over and not self._live
                return Searcher.FINISHED if done else None
        # Tune's trial is one attempt: a task that resumes gets another id.
        self._live[trial_id] = task.trial
        # A path instead of the experiment: Tune stores the config of every trial several times.
        return {
            "trial": task.trial,
            "experiment": str(task.folder.experiment),
            "rungs": task.rungs,
            "parks": task.parks,
            "grouped": self._capacity.grouped,
            "gpu_share": self._capacity.resources.get("GPU", 1.0),
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        with _remembered(self._errors):
            for images, metrics in json.loads(result["validations"]):
                self._controller.arrived(self._live[trial_id], images, metrics)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        # A result without an outcome is of an earlier step: the process died since.
        ended = not error and result and "outcome" in result
        if ended:
            self.on_trial_result(trial_id, result)
        number = self._live.pop(trial_id)
        with _remembered(self._errors):
            if ended:
                self._controller.ended(number, TrialOutcome(**json.loads(result["outcome"])))
            else:
                self._controller.died(number)

    # The controller's log is the only state, so Tune has nothing to save here.
    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...

    def save_to_dir(self, *_: Any, **__: Any) -> None: ...


class TrialActor(tune.Trainable):  # type: ignore[misc]
    """Trains trials in sequence, each in a thread, so that its validations can be reported."""

    def setup(self, config: dict[str, Any]) -> None:
        self._wake = threading.Event()
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._thread.join()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for validations of the trial or its end, and report them."""
        while True:
            alive = self._thread.is_alive()  # before reading: a last validation is then not missed
            validations = self._reader.new()
            # A report only if there is something new: each is a message to Tune's driver.
            if validations or not alive:
                break
            # Woken at a rung, where the trial waits for the decision on what is reported here.
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()
        result = {"validations": json.dumps(validations)}
        if alive:
            return result
        return result | {"outcome": json.dumps(asdict(self._outcome)), "done": True}

    def _begin(self, config: dict[str, Any]) -> None:
        experiment = experiments.load(Path(config["experiment"]), {})
        rungs, parks = tuple(config["rungs"]), config["parks"]
        self._task = TrialTask(config["trial"], experiment, rungs, parks)
        self._reader = ValidationReader(self._task.folder)
        # Overwritten by the thread; an end without it must not pass as an earlier trial's outcome.
        self._outcome = TrialOutcome("failed", why="it did not begin")
        group: TrainGroup | None = None
        if config["grouped"]:
            from udl_dist.launch.driver import train_in_cluster

            group = train_in_cluster
        self._thread = threading.Thread(
            # daemon: an actor that Tune ends must not wait for the training in it.
            target=self._train,
            args=(group, config["gpu_share"]),
            daemon=True,
        )
        self._thread.start()

    def _train(self, group: TrainGroup | None, gpu_share: float) -> None:
        self._outcome = trial.train(self._task, group, self._wake.set, gpu_share)
        self._wake.set()
