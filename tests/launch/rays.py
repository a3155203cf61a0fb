"""The Ray of this test process: tests that agree on its size share one."""

import contextlib
import os
import warnings
from pathlib import Path

from tests.faults import firing
from udl_dist.launch.ray_runtime import ENVIRONMENT

CORES = 4  # more than there are, so that no test waits for another's


def start(cores: int = CORES, gpus: int = 0) -> None:
    """Have a Ray with so many cores and GPUs: the one that runs, or a new one."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

        if ray.is_initialized():
            total = ray.cluster_resources()
            if (total.get("CPU"), total.get("GPU", 0)) == (cores, gpus):
                return
        end()
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        with firing():
            ray.init(address="local", num_cpus=cores, num_gpus=gpus, **quiet)


def end() -> None:
    import ray

    ray.shutdown()


def actors() -> set[str]:
    """The classes of the actors that run now, by the titles of their processes."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(stat[1])
            titles[int(entry.name)] = (entry / "cmdline").read_text().strip("\0 ")
    # This process starts Ray's raylet, and that one the actors.
    return {
        title.removeprefix("ray::").partition(".")[0]
        for number, title in titles.items()
        if title.startswith("ray::") and parents.get(parents[number]) == os.getpid()
    }
