"""What `udl plan` is told of the machines and of the data that are not here. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from udl_dist.errors import UsageError
from udl_dist.settings import setting


@dataclass(frozen=True)
class ForecastSettings:
    """Machines, data and speeds; a speed that is not said is the one that was measured."""

    nodes: int = setting(1, "machines", low=1)
    gpus_per_node: int = setting(0, "workers of a machine, one a GPU; 0: they compute on CPU cores", low=0)
    workers_per_node: int = setting(0, "workers of a machine without GPUs; 0: run.workers of the job", low=0)
    cpus_per_node: int = setting(0, "CPU cores of a machine; 0: run.cpus_per_worker for each worker", low=0)
    batch: Literal["grows", "stays"] = setting(
        "grows",
        "grows: a worker keeps its share, train.batch_size / run.workers of the job; stays: all workers share "
        "train.batch_size",
    )
    records: int | None = setting(None, "images of an epoch; none: as many as the job's data has", low=1)
    record_bytes: float | None = setting(None, "mean bytes of an encoded image; none: those of the job's data", above=0)
    storage_bytes_per_second: float | None = setting(
        None, "what storage gives to all machines together; none: to each what it gives to one", above=0
    )
    node_bytes_per_second: float | None = setting(None, "what storage gives to one machine", above=0)
    link_bytes_per_second: float | None = setting(
        None, "what gradients travel by: the slowest link of the ring of workers, between machines the network card",
        above=0,
    )  # fmt: skip
    sync_seconds: float | None = setting(None, "a message from one worker to another, however short", above=0)
    compute_seconds: float | None = setting(
        None, "one step of one worker on its share, without waiting for data or for gradients of others", above=0
    )
    write_bytes_per_second: float | None = setting(None, "what a checkpoint is written with", above=0)
    measure_seconds: float = setting(4.0, "how long steps are measured", above=0, high=600)

    def __post_init__(self) -> None:
        if self.gpus_per_node and self.workers_per_node:
            raise UsageError("gpus_per_node and workers_per_node are the same thing for machines with and without "
                             "GPUs: give one of them")  # fmt: skip

    def workers_of_node(self, asked: int) -> int:
        """The workers of a machine, of a job that asks for so many."""
        return self.gpus_per_node or self.workers_per_node or asked
