"""Ray Train: one group of workers after the other until the run ends; alone imports ray.train.

Each group is as large as the cluster allows. Workers and driver speak through the run folder alone.
"""

from __future__ import annotations

import importlib
import os
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from udl_dist.core import files
from udl_dist.data.loader.opening import Prepared
from udl_dist.experiment import Experiment
from udl_dist.launch import capacity, process_group
from udl_dist.launch.capacity import GroupSize, free_in_words, next_group
from udl_dist.launch.plan import plan
from udl_dist.launch.ray_options import storage_of_run
from udl_dist.launch.ray_runtime import START_SECONDS
from udl_dist.launch.recovery import as_error, judge, one_line
from udl_dist.runs import heartbeat, remote
from udl_dist.runs.remote_launcher import Launcher
from udl_dist.runs.run_folder import RunFolder

PLACEMENTS = 3  # tries to place the workers

Gate = Any  # `worker.Gate`, whose module imports torch


def _never_stop(images: int) -> bool:
    """The gate of a run that nothing stops at a validation; travels to the workers by its name."""
    return True


@dataclass(frozen=True)
class RunSpec:
    """What is launched: `launcher` is there if the run folder is in object storage."""

    experiment: Experiment
    prepared: Prepared
    gate: Gate = _never_stop
    launcher: Launcher | None = None

    @property
    def folder(self) -> RunFolder:
        return RunFolder(remote.working(self.experiment.run.folder, "launcher"))


def import_ray_train() -> None:
    """Import Ray Train, which takes a second."""
    importlib.import_module("ray.train.torch")


def fit(spec: RunSpec, on_workers: Callable[[int], None]) -> dict[str, Any]:
    """Train with one group of workers after the other; return what `worker.work` returned.

    A group ends early when a worker fails, and `judge` decides whether the next one may start; or
    when a larger group fits. `on_workers` gets how many train now.
    """
    folder = spec.folder
    if spec.experiment.run.workers == "auto":
        # Of a cluster, whose GPUs are known only now: what they rule out is refused as ever.
        spec = replace(spec, experiment=capacity.automatic_of_cluster(spec.experiment))
        folder.say(f"run.workers = auto: {spec.experiment.run.workers}")
        plan(spec.experiment)
    experiment = spec.experiment
    # Groups are started here, not by Ray, as the size of the next is known when one has ended.
    size = next_group(experiment, wait_seconds=experiment.run.place_seconds)
    placements = 0
    while True:
        if spec.launcher:
            spec.launcher.begin_group()
        on_workers(size.workers)
        if experiment.run.least_workers < experiment.run.most_workers:
            folder.say(f"{size.workers} workers")
        wait_seconds = 0.0
        try:
            result = dict(_trainer(spec, size).fit().return_value)
            # Stopped for a larger group only, and not by a signal as well: go on.
            if not result["stopped"] or folder.stop_asked() or not folder.resize_asked():
                return result
        except Exception as error:
            placements = _may_start_again(spec, size, error, placements)
            # A lost node may come back, as long as three tries to place the workers would take.
            wait_seconds = PLACEMENTS * START_SECONDS
        on_workers(0)  # nothing to make larger until the next group trains
        folder.resize_done()
        # The heartbeats of a larger group must not pass for those of dead ranks of the next.
        heartbeat.clear(folder)
        size = next_group(experiment, size.workers, wait_seconds)


def _may_start_again(spec: RunSpec, size: GroupSize, error: Exception, placements: int) -> int:
    """Return how many placements have failed, or raise if another group would not help."""
    folder, run = spec.folder, spec.experiment.run
    # The failure, heartbeats and stacks of a remote run are judged here: fetch the last of them.
    if spec.launcher:
        spec.launcher.sync()
    if is_misplaced(error):
        placements += 1
        if placements == PLACEMENTS:
            raise error
        folder.say(
            f"{size.workers} workers could not be placed in {START_SECONDS:g} s, free now:"
            f" {free_in_words()}: again ({placements} of {PLACEMENTS} tries)"
        )
    elif _is_loss(error):
        placements = 0  # they were placed, so the next tries are the first ones again
        failures = getattr(error, "worker_failures", {})
        with files.errors_named(folder.path):
            judge(folder, failures, run.max_failures, one_line(error))
    else:
        raise error
    if failure := folder.failure():
        raise as_error(*failure) from None
    return placements


def is_misplaced(error: Exception) -> bool:
    """Whether the workers could not be placed in time."""
    # Ray has no error class of its own for it.
    return "startup timed out" in str(error)


def _is_loss(error: Exception) -> bool:
    """Whether workers failed, or Ray's own actor that watches them: a new group may succeed."""
    from ray.exceptions import RayActorError

    return bool(getattr(error, "worker_failures", None)) or isinstance(error, RayActorError)


def _trainer(spec: RunSpec, size: GroupSize) -> Any:
    """Ray's trainer for one group of workers."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    experiment = spec.experiment
    # Each of them starts a process that takes a second of a core just before the first step: one
    # for datasets of Ray Data, and one that outlives a dead controller, as no private Ray does.
    idle = {"DatasetsCallback"}
    idle |= set() if experiment.run.address else {"PlacementGroupCleanerCallback"}

    class Trainer(TorchTrainer):  # type: ignore[misc]
        # Ray has no public way to leave them out; a release without these methods keeps them.
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [each for each in callbacks if type(each).__name__ not in idle]

        def _initialize_and_run_controller(self, **parts: Any) -> Any:
            # It would start an actor of Ray Data, 1.5 s before the workers, that shares a cluster
            # with datasets and tells an autoscaler what is missing: `next_group` does.
            if policy := parts.get("scaling_policy"):
                policy.after_controller_start = policy._maybe_send_resource_request = _no_request
            return super()._initialize_and_run_controller(**parts)

    return Trainer(
        _worker_main,
        train_loop_config={
            "experiment": experiment.to_dict(),
            "prepared": asdict(spec.prepared),
            "gate": spec.gate,
            "gpu": size.gpu,
        },
        torch_config=_torch_config("cpu:gloo,cuda:nccl" if size.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=size.workers,
            use_gpu=size.gpu,
            resources_per_worker={"CPU": experiment.run.cpus_per_worker, "GPU": int(size.gpu)},
        ),
        # Our checkpoints are the only ones: a new name each time keeps Ray from resuming a
        # snapshot of its own. Nor does Ray restart workers: the next group may be another size.
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            **storage_of_run(experiment.run.folder),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )


def _no_request(*_: Any) -> None:
    """Stands where Ray's controller would ask for resources that `next_group` has seen free."""


def _torch_config(backend: str) -> Any:
    """Joins the workers to one group of torch.distributed, as Ray's TorchConfig does.

    Ray's own imports torch into its controller, too, before the workers start: 1.5 s. And it takes
    network interfaces that often lead nowhere: gloo's is the one of the machine's name, NCCL's the
    first, which may be that of containers.
    """
    import ray
    from ray.train.backend import Backend, BackendConfig

    class ProcessGroup(Backend):  # type: ignore[misc]
        share_cuda_visible_devices = True  # each worker sees all GPUs of its node

        def on_start(self, worker_group: Any, _: Any) -> None:
            worker_group.execute(process_group.prepare_worker, backend != "gloo")
            url = worker_group.execute_single(0, process_group.meeting_place)
            start, world = worker_group.execute_single_async, len(worker_group)
            ray.get(
                [
                    start(rank, process_group.join, backend, url, rank, world)
                    for rank in range(world)
                ]
            )

    # Classes, as Ray asks the configuration for its backend's class.
    class Config(BackendConfig):  # type: ignore[misc]
        def __init__(self) -> None:
            self.backend = backend  # Ray's trainer reads it

        @property
        def backend_cls(self) -> type:
            return ProcessGroup

    return Config()


def _worker_main(config: dict[str, Any]) -> dict[str, Any]:
    """The body of one Ray worker."""
    import ray.train

    from udl_dist import experiment as experiments
    from udl_dist.launch.worker import work
    from udl_dist.training import distributed

    # As torchrun does: the workers of a machine share its cores.
    os.environ["LOCAL_WORLD_SIZE"] = str(ray.train.get_context().get_local_world_size())
    device = None
    if config["gpu"]:
        import ray.train.torch

        device = ray.train.torch.get_device()
    experiment = experiments.from_dict(config["experiment"])
    outcome = work(
        experiment,
        Prepared(**config["prepared"] | {"settings": experiment.data}),
        distributed.Ranks(device),
        # Collective, and Ray takes one per poll: at checkpoints only, never at a step.
        lambda report: ray.train.report({"images": report.images, **report.metrics}),
        config["gate"],
    )
    distributed.leave()  # a worker that fails is killed instead
    return outcome
