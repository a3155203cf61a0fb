"""Which Ray there is, what of it is free, and how many workers fit: started, joined and ended here,
and only here.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import secrets
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udl_dist.errors import ClusterError
from udl_dist.experiment import Experiment
from udl_dist.launch import capacity, module_check, ray_options
from udl_dist.launch.process_reaper import Guardian
from udl_dist.launch.recovery import one_line
from udl_dist.training.settings import TrainSettings

START_SECONDS = 60.0  # a start of Ray, and one try to place workers
PLACEMENTS = 3  # tries to place the workers
RELEASE_SECONDS = 10.0  # until what a group of workers held is free again
POLL_SECONDS = 0.2
ENVIRONMENT = {
    # 15 unless told: anything else on the machine would starve the workers
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # a report waits for this poll (2 s unless told)
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": f"{START_SECONDS:g}",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": f"{START_SECONDS:g}",  # ten minutes unless told
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}
_guardians: list[Guardian] = []  # of the Ray that this process started: one or none


@dataclass(frozen=True)
class Size:
    """A group of workers that can be placed: how many, and whether each takes a GPU."""

    workers: int
    gpu: bool


def start(address: str, verbose: bool) -> bool:
    """Join the cluster at `address`, or start a private Ray that opens no dashboard; say whether it
    is ours to end.

    The private one asks for a token that this process alone has, and listens on loopback if Ray was
    not imported yet. A Ray that is there already is somebody's own session or a test's cluster:
    theirs to end.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if (known := sys.modules.get("ray")) and known.is_initialized():
        module_check.refuse_others()
        return False
    if address:
        ray_options.refuse_silent(address)
    with warnings.catch_warnings(), contextlib.nullcontext() if address else _closed():
        warnings.simplefilter("ignore")
        import ray

        options: dict[str, Any] = {
            "address": address or "local",
            "job_config": ray_options.job_config(),
        }
        options |= {
            "log_to_driver": verbose,
            "logging_level": logging.INFO if verbose else logging.ERROR,
        }
        if not address:
            options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
            options |= {"_temp_dir": folder} if (folder := ray_options.short_folder()) else {}
        try:
            with ray_options.hangups_blocked(), contextlib.nullcontext() if address else _guarded():
                ray.init(**options, namespace="udl-dist")
        except Exception as error:  # Ray raises many kinds here
            end()
            raise ClusterError(
                f"no Ray at {address or 'this machine'}: {one_line(error)}"
            ) from None
    if not verbose:
        _hush()
    try:
        module_check.refuse_others()
    except ClusterError:
        end()
        raise
    return True


@contextlib.contextmanager
def _closed() -> Iterator[None]:
    """While Ray is imported and started, here and by whatever it starts."""
    own = {"RAY_AUTH_TOKEN_PATH": str(_token_file())}
    # no cluster of machines: loopback will do for an address
    own["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if "ray" not in sys.modules:  # read at the import; afterwards Ray's own default has to do
        own["RAY_AUTH_MODE"] = os.environ.get("RAY_AUTH_MODE", "token")
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@functools.cache  # as Ray does: one process, one token
def _token_file() -> Path:
    """A new token, for its owner's eyes: the one that Ray would make may be read by all users of
    the machine.
    """
    folder = tempfile.mkdtemp(prefix="udl-token-")  # 0700
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file = Path(folder) / "token"
    file.touch(0o600)
    file.write_text(secrets.token_hex(32))
    return file


def _guarded() -> contextlib.AbstractContextManager[None]:
    """While Ray is started: nothing of it outlives this process."""
    _guardians.append(Guardian())
    return _guardians[-1].marking()


def _hush() -> None:
    """Keep Ray off our own output: what it has to say of a dead worker is an echo of what the run
    says itself.

    It prints that to stdout whatever its settings are, into the midst of a --json; there is no
    public way to stop it.
    """
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *_, **__: None
    for name in ("ray", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


def end() -> None:
    """End a Ray that is ours, or leave the cluster that was joined."""
    import ray

    ray.shutdown()
    while _guardians:
        _guardians.pop().close()


def size(experiment: Experiment, before: int = 0, wait_seconds: float = 0.0) -> Size:
    """The workers to start now, within run.workers; `before` is how many the group had that has
    just ended.

    Raise ClusterError if the cluster has no place for the least of them, not even after
    `wait_seconds`: a node that was lost may come back, an autoscaler may start one. Nodes that
    others use count as place: the workers wait for their turn.
    """
    run = experiment.run
    if (places := _places(experiment)) < run.least_workers and wait_seconds > 0:
        with _missed(experiment):
            places = _wait_for_places(experiment, time.monotonic() + wait_seconds)
    if places < run.least_workers:
        needs, there = (
            capacity.in_kinds(_needs(experiment), run.least_workers),
            capacity.in_kinds(capacity.totals(_needs(experiment))),
        )
        raise ClusterError(
            f"run.workers = {run.workers} needs {needs}, the cluster has {there}: set run.workers"
            f" to {places} or fewer"
        )
    released = time.monotonic() + RELEASE_SECONDS * (before > 0)
    while (free := _free_places(experiment)) < min(before, places) and time.monotonic() < released:
        time.sleep(POLL_SECONDS)
    return Size(_within(experiment, max(free, run.least_workers)), wants_gpu(experiment))


def _wait_for_places(experiment: Experiment, deadline: float) -> int:
    while (
        places := _places(experiment)
    ) < experiment.run.least_workers and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return places


@contextlib.contextmanager
def _missed(experiment: Experiment) -> Iterator[None]:
    """Meanwhile an autoscaler sees what is missing: a placement that nobody uses, and that ends
    with this process.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    wanted = placement_group([_needs(experiment)] * experiment.run.least_workers)
    try:
        yield
    finally:
        remove_placement_group(wanted)


def growth(experiment: Experiment, workers: int) -> int:
    """How many workers there could be if those that are at work made room for a larger group;
    `workers` if no more.
    """
    places = min(_places(experiment), workers + _free_places(experiment))
    return max(workers, _within(experiment, places))


def is_loss(error: Exception) -> bool:
    """Whether workers failed, or Ray's own process that watches them: what a new group of workers
    may cure.
    """
    from ray.exceptions import RayActorError

    return bool(getattr(error, "worker_failures", None)) or isinstance(error, RayActorError)


def is_misplaced(error: Exception) -> bool:
    """Whether the workers found no place in time."""
    return "startup timed out" in str(error)


def in_words() -> str:
    """What of the cluster nobody uses at the moment."""
    import ray

    free = ray.available_resources() if ray.is_initialized() else {}
    return capacity.in_kinds({kind: free.get(kind, 0.0) for kind in ("CPU", "GPU")})


def wants_gpu(experiment: Experiment) -> bool:
    """Whether each worker is to take a GPU."""
    import ray

    asked = experiment.run.device
    return asked == "cuda" or (asked == "auto" and ray.cluster_resources().get("GPU", 0) > 0)


def _within(experiment: Experiment, places: int) -> int:
    """The most workers that are wanted of so many places; elastic determinism cannot be had in
    every world.
    """
    run = experiment.run
    most = min(places, run.most_workers)
    if run.determinism == "elastic":
        return max(world for world in range(1, most + 1) if TrainSettings.SHARES % world == 0)
    return most


def _places(experiment: Experiment) -> int:
    """Workers that fit on the nodes that live, if nobody else used them."""
    return capacity.of_cluster(_needs(experiment))


def _free_places(experiment: Experiment) -> int:
    import ray

    return min(_places(experiment), capacity.fitting(ray.available_resources(), _needs(experiment)))


def _needs(experiment: Experiment) -> dict[str, float]:
    """What one worker takes."""
    cores = {"CPU": float(experiment.run.cpus_per_worker)}
    return cores | {"GPU": 1.0} if wants_gpu(experiment) else cores
