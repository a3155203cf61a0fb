"""How many workers fit on a Ray cluster by CPUs and GPUs, now and when nodes come and go."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from udl_dist.errors import ClusterError
from udl_dist.experiment import Experiment
from udl_dist.launch.ray_runtime import POLL_SECONDS
from udl_dist.runs import heartbeat
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training.settings import TrainSettings

RELEASE_SECONDS = 10.0  # until the CPUs and GPUs of a former group are free again: it takes up to 5
GROW_SECONDS = 20.0  # between two looks for more workers


@dataclass(frozen=True)
class GroupSize:
    """A group of workers that can be placed: how many, and whether each has a GPU."""

    workers: int
    gpu: bool


class ElasticScaler:
    """For run.workers = "2..8": ends a group, after a checkpoint, when a larger one would fit."""

    def __init__(self, experiment: Experiment, folder: RunFolder) -> None:
        self._experiment, self._folder = experiment, folder
        self._next = time.monotonic() + GROW_SECONDS
        self._tried = 0  # workers that were tried and not placed

    def check(self, workers: int) -> None:
        """Called often with the workers that train now; 0: none."""
        most = self._experiment.run.most_workers
        if not 0 < workers < most or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + GROW_SECONDS
        # Before all of them train, the CPUs that they are about to take seem to be free.
        if len(heartbeat.read_all(self._folder)) < workers:
            return
        try:
            more = largest_group(self._experiment, workers)
        except Exception:  # Ray is ending in the other thread
            return
        # Once for each number: if the group came back no larger, others use those CPUs, and
        # every try costs a restart.
        if more > max(workers, self._tried) and not self._folder.resize_asked():
            self._folder.say(
                f"{more} workers fit now, not {workers}: they write a checkpoint, then all start"
                " again"
            )
            self._folder.ask_resize()
            self._tried = more
        elif more == workers:
            self._tried = 0  # they are gone: should they come again, it is worth another try


def automatic_here(experiment: Experiment) -> Experiment:
    """`experiment` with a number for run.workers = "auto", if it will run on this machine alone.

    Imports torch in that case.
    """
    run = experiment.run
    if run.workers != "auto" or run.address:
        return experiment
    import torch

    gpus = torch.cuda.device_count() if run.device != "cpu" else 0
    there = {"CPU": os.cpu_count() or 1, "GPU": gpus}
    return _with_workers(experiment, fitting(there, _needs(experiment, True)))


def automatic_of_cluster(experiment: Experiment) -> Experiment:
    """The same for the connected Ray: one worker a GPU, or one without GPUs."""
    return _with_workers(experiment, _fitting(experiment) if wants_gpu(experiment) else 1)


def _with_workers(experiment: Experiment, gpus: int) -> Experiment:
    # Each has two images at a time at least: one alone has no variance to normalise by.
    train = experiment.train
    most = max(1, min(gpus, train.batch_size // (2 * train.accumulate)))
    return experiment.replace(run=replace(experiment.run, workers=_allowed(experiment, most)))


def next_group(experiment: Experiment, before: int = 0, wait_seconds: float = 0.0) -> GroupSize:
    """The workers to start now, within run.workers; `before`: those of the group that has ended.

    Raises ClusterError if not even the least of them fit after `wait_seconds`, in which a lost node
    may come back or an autoscaler may start one. Nodes in use by others count: the workers wait.
    """
    run = experiment.run
    if (fit := _fitting(experiment)) < run.least_workers and wait_seconds > 0:
        deadline = time.monotonic() + wait_seconds
        with _autoscaler_demand(experiment):
            while (fit := _fitting(experiment)) < run.least_workers and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
    if fit < run.least_workers:
        why = shortage(_needs(experiment), run.least_workers, fit)
        raise ClusterError(f"run.workers = {run.workers} {why}")
    # A former group gives its CPUs back worker by worker: at a first look too few would be free,
    # and the next group would be smaller without need.
    released = time.monotonic() + RELEASE_SECONDS * (before > 0)
    while (free := _free(experiment)) < min(before, fit) and time.monotonic() < released:
        time.sleep(POLL_SECONDS)
    # If fewer than the least are free, Ray waits for others to release them.
    most = min(max(free, run.least_workers), run.most_workers)
    return GroupSize(_allowed(experiment, most), wants_gpu(experiment))


def largest_group(experiment: Experiment, workers: int) -> int:
    """The workers that would fit if the present `workers` ended first; at least `workers`."""
    fit = min(_fitting(experiment), workers + _free(experiment), experiment.run.most_workers)
    return max(workers, _allowed(experiment, fit))


def wants_gpu(experiment: Experiment) -> bool:
    """Whether each worker gets a GPU."""
    import ray

    device = experiment.run.device
    return device == "cuda" or (device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)


def of_cluster(needs: Mapping[str, float]) -> int:
    """How many processes with these needs (CPU, GPU) fit on the living nodes if all were free."""
    import ray

    # Node by node: what is left over on two nodes does not add up to a place.
    return sum(fitting(node["Resources"], needs) for node in ray.nodes() if node["Alive"])


def fitting(there: Mapping[str, float], needs: Mapping[str, float]) -> int:
    """How many fit into these resources; the scarcest decides. A share of a GPU is of one GPU."""
    # The small number because of rounding: 1 / (1 / 93) is a little less than 93.
    return min(
        int(there.get(kind, 0)) * int(1 / each + 1e-9)
        if each < 1
        else int(there.get(kind, 0) // each)
        for kind, each in needs.items()
    )


def shortage(needs: Mapping[str, float], workers: int, fit: int) -> str:
    """What so many workers need and what the cluster has, in use or not, and what to do, for a
    refusal; `fit` of them have a place.
    """
    import ray

    there = {kind: float(ray.cluster_resources().get(kind, 0)) for kind in needs}
    if fit:
        remedy = f"set run.workers to {fit} or fewer"
    elif there.get("GPU", 0.0) < needs.get("GPU", 0.0):
        remedy = "set run.device to cpu"
    else:
        remedy = "lower run.cpus_per_worker"
    return f"needs {in_words(needs, workers)}, the cluster has {in_words(there)}: {remedy}"


def in_words(resources: Mapping[str, float], times: int = 1) -> str:
    """Resources for a person: "4 CPU cores and 2 GPUs"."""
    names = {"CPU": "CPU core", "GPU": "GPU"}
    counts = {names[kind]: amount * times for kind, amount in resources.items()}
    return " and ".join(f"{count:g} {name}{'s' * (count != 1)}" for name, count in counts.items())


def free_in_words() -> str:
    """The CPUs and GPUs of the cluster that are free now."""
    import ray

    free = ray.available_resources() if ray.is_initialized() else {}
    return in_words({kind: free.get(kind, 0.0) for kind in ("CPU", "GPU")})


@contextlib.contextmanager
def _autoscaler_demand(experiment: Experiment) -> Iterator[None]:
    """Shows an autoscaler what is missing, by a placement group that ends with this process."""
    from ray.util.placement_group import placement_group, remove_placement_group

    wanted = placement_group([_needs(experiment)] * experiment.run.least_workers)
    try:
        yield
    finally:
        remove_placement_group(wanted)  # on the new nodes it would occupy the workers' places


def _allowed(experiment: Experiment, most: int) -> int:
    """`most` workers or the next fewer that the settings allow; elastic runs: divisors of 12."""
    if experiment.run.determinism == "elastic":
        # Each worker computes as many of the 12 parts of a batch as any other.
        virtual_ranks = TrainSettings.VIRTUAL_RANKS
        return max(world for world in range(1, most + 1) if virtual_ranks % world == 0)
    return most


def _fitting(experiment: Experiment) -> int:
    return of_cluster(_needs(experiment))


def _free(experiment: Experiment) -> int:
    import ray

    # Free resources are known for the cluster as a whole only: an upper bound.
    return min(_fitting(experiment), fitting(ray.available_resources(), _needs(experiment)))


def _needs(experiment: Experiment, gpu: bool | None = None) -> dict[str, float]:
    """The resources of one worker; `gpu`: whether with a GPU, if no Ray is to be asked."""
    cores = {"CPU": float(experiment.run.cpus_per_worker)}
    return cores | {"GPU": 1.0} if gpu or wants_gpu(experiment) else cores
