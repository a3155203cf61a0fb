"""The only room that knows Ray Train: one group of workers after the other, until one ends the run.

Each group is as large as there is place for. Workers and driver speak through the run folder alone.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from udl_dist.core import files
from udl_dist.data.loader.opening import Prepared
from udl_dist.experiment import Experiment
from udl_dist.launch import network_interfaces, ray_runtime
from udl_dist.launch.ray_runtime import PLACEMENTS, START_SECONDS, Size
from udl_dist.launch.recovery import as_error, judge, one_line
from udl_dist.runs import heartbeat, remote
from udl_dist.runs.remote_launcher import Launcher
from udl_dist.runs.run_folder import RunFolder
from udl_dist.storage.access import endpoint_of, region_of
from udl_dist.storage.uris import Uri, is_remote, joined, parse

Gate = Any  # what `work` asks whether to go on; its type would bring in torch


def _open(images: int) -> bool:
    """The gate of a run that nobody stops at a validation."""
    return True


@dataclass(frozen=True)
class Launched:
    """A run as it is launched: `faults` on purpose, the workers' `gate`, the hold on a run in
    object storage.
    """

    experiment: Experiment
    prepared: Prepared
    faults: str = ""
    gate: Gate = _open  # travels to the workers by its name
    far: Launcher | None = None

    @property
    def folder(self) -> RunFolder:
        return RunFolder(remote.working(self.experiment.run.folder, "launcher"))


def run(launched: Launched, outcome: dict[str, Any]) -> dict[str, Any]:
    """One group of workers after the other, each as large as there is place for, until one ends the
    run.

    A group ends early when a worker fails, which `judge` may take for the end of the run, or for a
    larger one. `workers` in `outcome` is how many are at work, so that somebody can look whether
    more can be had.
    """
    experiment, folder = launched.experiment, launched.folder
    size, placements = ray_runtime.size(experiment, wait_seconds=experiment.run.place_seconds), 0
    while True:
        if launched.far:
            launched.far.begin_group()
        outcome["workers"] = size.workers
        if experiment.run.least_workers < experiment.run.most_workers:
            folder.say(f"{size.workers} workers")
        wait = 0.0
        try:
            result = dict(_trainer(launched, size).fit().return_value)
            if not result["stopped"] or folder.stop_asked() or not folder.resize_asked():
                return result
        except Exception as error:
            if launched.far:
                launched.far.carry()
            if ray_runtime.is_misplaced(error):
                placements += 1
                if placements == PLACEMENTS:
                    raise
                folder.say(
                    f"{size.workers} workers found no place in {START_SECONDS:g} s, free now: "
                    f"{ray_runtime.in_words()}: again ({placements} of {PLACEMENTS} tries)"
                )
            elif ray_runtime.is_loss(error):
                placements = 0
                with files.errors_named(folder.path):
                    judge(
                        folder,
                        getattr(error, "worker_failures", {}),
                        experiment.run.max_failures,
                        one_line(error),
                    )
            else:
                raise
            if failure := folder.failure():
                raise as_error(*failure) from None
            wait = PLACEMENTS * START_SECONDS
        outcome["workers"] = 0
        folder.resize_done()
        # those of a larger group must not be taken for dead ranks of the next
        heartbeat.clear(folder)
        size = ray_runtime.size(experiment, size.workers, wait)


def _trainer(launched: Launched, size: Size) -> Any:
    """Ray's trainer for one group of workers."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    experiment = launched.experiment
    return TorchTrainer(
        _rank,
        train_loop_config={
            "experiment": experiment.to_dict(),
            "prepared": asdict(launched.prepared),
            "faults": launched.faults,
            "gate": launched.gate,
        },
        torch_config=_meeting("cpu:gloo,cuda:nccl" if size.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=size.workers,
            use_gpu=size.gpu,
            resources_per_worker={"CPU": experiment.run.cpus_per_worker, "GPU": int(size.gpu)},
        ),
        # Our checkpoints are the truth: Ray gets a name of its own each time, so that its snapshot
        # is never taken up. It starts nothing again by itself either: the next group may be another
        # size.
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            **_storage(experiment.run.folder),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )


def _meeting(backend: str) -> Any:
    """How the workers meet: as Ray has it, but that each first says which interface its node's
    address is on.

    By itself gloo takes what the machine's name means, often loopback, and NCCL the first interface
    that looks right, often one of containers or a VPN.
    """
    from ray.train.torch import TorchConfig

    class Backend(TorchConfig().backend_cls):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(_choose_interface)
            super().on_start(worker_group, backend_config)

    class Meeting(TorchConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type:
            return Backend

    return Meeting(backend=backend)


def _choose_interface() -> None:
    """Runs in each worker; whoever has set the variable on the nodes knows better."""
    import ray

    if name := network_interfaces.having(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        # exactly this one, not all that begin like it
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")


def _rank(config: dict[str, Any]) -> dict[str, Any]:
    """The body of one Ray worker."""
    import ray.train
    import ray.train.torch

    from udl_dist import experiment as experiments
    from udl_dist.core import faults
    from udl_dist.launch.worker import work
    from udl_dist.training.distributed import Ranks

    experiment = experiments.from_dict(config["experiment"])
    folder = RunFolder(remote.working(experiment.run.folder, "node"))
    faults.arm(config["faults"], folder, ray.train.get_context().get_world_rank())
    ranks = Ranks(ray.train.torch.get_device())
    prepared = Prepared(**config["prepared"] | {"settings": experiment.data})
    return work(
        experiment,
        prepared,
        ranks,
        lambda report: ray.train.report({"images": report.images, **report.figures}),
        config["gate"],
    )


def _storage(where: str) -> dict[str, Any]:
    """Where Ray keeps what nobody reads: a place that all nodes see, or it refuses to start."""
    if not is_remote(where):
        return {"storage_path": str(Path(where) / ".ray")}
    uri = parse(joined(where, ".ray"))
    return {"storage_path": uri.path, "storage_filesystem": _file_system(uri)}


def _file_system(uri: Uri) -> Any:
    """What Ray writes through: it takes file systems of pyarrow only."""
    from pyarrow import fs

    scheme, _, host = endpoint_of(uri).rpartition("://")
    options: dict[str, Any] = {"endpoint_override": host, "scheme": scheme} if host else {}
    if uri.scheme == "az":
        account, key = (os.environ.get(f"AZURE_STORAGE_ACCOUNT_{part}") for part in ("NAME", "KEY"))
        return fs.AzureFileSystem(account or "", key)
    options["anonymous"] = uri.options.get("anonymous") == "true"
    if uri.scheme == "gs":
        return fs.GcsFileSystem(**options)

    class WithoutMarkers(fs.S3FileSystem):  # type: ignore[misc]
        def create_dir(self, path: str, *, recursive: bool = True) -> None:
            """S3 needs no folders, and pyarrow would leave an empty object for each."""

        def __reduce__(self) -> Any:
            return _file_system, (uri,)

    return WithoutMarkers(region=region_of(uri) or None, **options)
