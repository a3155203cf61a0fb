"""How many trials there is place for at once, and what each takes."""

from __future__ import annotations

from dataclasses import dataclass

from udl_dist.errors import ClusterError
from udl_dist.launch import capacity
from udl_dist.search.config import Search


@dataclass(frozen=True)
class Slots:
    parallel: int
    resources: dict[str, float]  # of the actor of a trial of one worker
    grouped: bool


def slots(search: Search) -> Slots:
    """The places of this cluster; raise ClusterError if it has none for a trial. Ray must have been
    joined.
    """
    base, run = search.base, search.base.run
    gpu, workers = capacity.wants_gpu(base), run.most_workers
    share = search.settings.gpu_share if workers == 1 else 1.0
    resources = {"CPU": float(run.cpus_per_worker)} | ({"GPU": share} if gpu else {})
    places = capacity.of_cluster(resources) // workers
    if not places:
        needs, there = (
            capacity.in_words(resources, workers),
            capacity.in_words(capacity.totals(resources)),
        )
        raise ClusterError(
            f"a trial of run.workers = {workers} needs {needs}, the cluster has {there}: set"
            " run.workers to fewer"
        )
    asked = search.settings.parallel
    return Slots(min(asked, places) if asked else places, resources, workers > 1)
