"""How many trials there is place for at once, and what each takes."""

from __future__ import annotations

from dataclasses import dataclass

from udl_dist import clusters
from udl_dist.errors import ClusterError
from udl_dist.search.settings import Search


@dataclass(frozen=True)
class Slots:
    parallel: int
    resources: dict[str, float]  # of the actor of a trial of one worker
    grouped: bool


def slots(search: Search) -> Slots:
    """The places of this cluster; raise ClusterError if it has none for a trial. Ray must have been joined."""
    base, run = search.base, search.base.run
    gpu, workers = clusters.wants_gpu(base), run.most_workers
    share = search.settings.gpu_share if gpu and workers == 1 else 1.0
    of_gpus = int(clusters.total("GPU") / share) // workers if gpu else None
    of_cores = int(clusters.total("CPU")) // (run.cpus_per_worker * workers)
    places = of_cores if of_gpus is None else min(of_cores, of_gpus)
    if not places:
        kind, there = ("GPUs", clusters.total("GPU")) if gpu and not of_gpus else ("CPU cores", clusters.total("CPU"))
        each = workers if kind == "GPUs" else workers * run.cpus_per_worker
        raise ClusterError(f"a trial of run.workers = {workers} needs {each} {kind}, the cluster has {there:g}: set "
                           "run.workers to fewer")  # fmt: skip
    asked = search.settings.parallel
    resources = {"CPU": float(run.cpus_per_worker), "GPU": share if gpu else 0.0}
    return Slots(min(asked, places) if asked else places, resources, workers > 1)
