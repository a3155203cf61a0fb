"""The arithmetic of a forecast: from parts and machines to the time of a step, and what it is spent on.

A step is as slow as the slowest of four things that go on at the same time: the workers compute and send gradients;
reader threads decode the next batches; the cores of a machine do the work of both; storage gives the bytes. Nothing is
taken for hidden that is not: gradients are reckoned as sent after the backward pass, though DDP begins within it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, log2

COMPUTING, GRADIENTS, DECODING = "computing", "sending gradients", "decoding"
CORES, STORAGE = "the cores of a machine", "storage"


@dataclass(frozen=True)
class Inputs:
    """What a step depends on; `images` are of one worker in one step, and so are seconds."""

    nodes: int
    workers_per_node: int
    cpus_per_node: int
    images: float
    readers: int
    compute_seconds: float
    host_seconds: float  # of CPU, in a step, besides decoding
    decode_seconds: float  # of CPU, an image
    record_bytes: float
    node_bytes_per_second: float  # of storage
    storage_bytes_per_second: float  # of storage, to all nodes
    reduces: float  # in a step
    gradient_bytes: float
    sync_seconds: float
    link_bytes_per_second: float
    checkpoint_bytes: float
    copy_seconds: float
    write_bytes_per_second: float

    @property
    def workers(self) -> int:
        return self.nodes * self.workers_per_node

    @property
    def batch_images(self) -> float:
        """Of a step, over all workers."""
        return self.images * self.workers


@dataclass(frozen=True)
class Step:
    """Seconds of a step, and of each thing that goes on in it."""

    seconds: float
    reduce_seconds: float
    wait_seconds: float  # for data
    limits: dict[str, float]  # what a step would take if there were only this; the longest first


def step(given: Inputs) -> Step:
    """The time of one step in the long run, when what was read ahead before the start is used up."""
    reduce = reduce_seconds(given)
    decode = given.images * given.decode_seconds
    read = max(
        given.workers_per_node * given.images * given.record_bytes / given.node_bytes_per_second,
        given.batch_images * given.record_bytes / given.storage_bytes_per_second,
    )
    busy = given.compute_seconds + reduce
    limits = {COMPUTING if given.compute_seconds >= reduce else GRADIENTS: busy}
    cores = given.cpus_per_node / given.workers_per_node
    if given.readers:
        limits |= {DECODING: decode / given.readers, STORAGE: read,
                   CORES: (given.host_seconds + decode) / cores}  # fmt: skip
        longest = max(limits.values())
    else:  # the loop itself reads and decodes, one after the other
        longest = busy + decode + read
        limits = {name: seconds for name, seconds in
                  {COMPUTING: given.compute_seconds, GRADIENTS: reduce, DECODING: decode, STORAGE: read}.items()
                  if seconds}  # fmt: skip
    ordered = dict(sorted(limits.items(), key=lambda item: -item[1]))
    return Step(longest, reduce, longest - busy, ordered)


def reduce_seconds(given: Inputs) -> float:
    """All that a step sends: log2(W) messages for each all-reduce, and 2 (W - 1) / W times the gradients by a ring.

    Patarasuk & Yuan 2009: no all-reduce sends fewer bytes from each worker.
    """
    workers = given.workers
    messages = given.reduces * given.sync_seconds * log2(workers)
    return messages + 2 * (workers - 1) / workers * given.gradient_bytes / given.link_bytes_per_second


def efficiency(given: Inputs) -> float:
    """The images a second of all workers against as many times those of one alone on its part of a machine.

    The one alone has all of storage's rate to one machine.
    """
    alone = replace(given, nodes=1, workers_per_node=1, cpus_per_node=max(1, given.cpus_per_node
                                                                          // given.workers_per_node))  # fmt: skip
    return step(alone).seconds / step(given).seconds


def stall_seconds(given: Inputs, between_seconds: float = inf) -> float:
    """How long all workers stand still for a checkpoint: it is copied, and the one before it must be written."""
    write = given.checkpoint_bytes / given.write_bytes_per_second
    return given.copy_seconds + max(0.0, write - between_seconds)
