"""One worker while it is measured: python -m udl_dist.forecast.measure, its task on stdin, its figures on stdout.

The steps are those of the real loop on the job's own images and networks, with its readers at work beside it: alone,
and together with the other workers, turn by turn, so that the machine's moods meet both. Waits for data are left out,
decoding is measured by itself.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from math import log2
from pathlib import Path
from typing import Any

import torch

from udl_dist import experiment as experiments
from udl_dist.errors import TrainingError, UdlError
from udl_dist.experiment import Experiment
from udl_dist.shards.reading import cut_out
from udl_dist.stream.dataset import Dataset
from udl_dist.stream.opening import Prepared, open_streams
from udl_dist.stream.reader import Stream
from udl_dist.training import checkpoint
from udl_dist.training.learner import Learning
from udl_dist.training.loop import Intervals, Report, batch_memory, train
from udl_dist.training.ranks import Ranks, joined
from udl_dist.training.writer import Copies
from udl_dist.worker import new_learning

Middle = Callable[[Sequence[float]], float]
ENDLESS = 10**12  # images
LEAST_TURNS, WARM_STEPS, MOST_STEPS = 5, 3, 10_000
WAIT = "perf/data_wait_seconds"
READ_SECONDS, REQUESTS, SHARDS, BLOCK_BYTES = 2.0, 16, 64, 2**22
QUICKEST = 1e12  # bytes a second: a link whose time is lost in the noise


@dataclass(frozen=True)
class Task:
    """What one worker is told; `folder` is where a checkpoint is written and read no more."""

    experiment: Experiment
    prepared: Prepared
    rank: int
    world: int
    gpu: bool
    images: int  # of each worker in a step
    seconds: float
    meeting: Path
    folder: Path
    turn_seconds: float = 0.25  # at most


def measured(task: Task) -> dict[str, float | str]:
    """The figures of this worker by the names of `Parts`; those of storage and of checkpoints are rank 0's."""
    torch.set_num_threads(task.experiment.run.cpus_per_worker)
    device = torch.device("cuda", task.rank) if task.gpu else torch.device("cpu")
    stream, _ = open_streams(task.prepared, 0, batch_memory(device))
    found: dict[str, float | str] = {"device": torch.cuda.get_device_name(device) if task.gpu else "cpu"}
    if task.rank == 0:
        found |= storage(stream)  # first: what is mapped already is not read again
    alone = Ranks(device)
    with joined(task.rank, task.world, task.meeting, task.gpu):
        together = Ranks(device)
        learning = new_learning(asked(task, 1), stream, alone)
        found |= steps(task, stream, learning, alone, together)
        together.await_announced()
    if task.rank == 0:
        found |= saves(learning, task.folder)
    return found


def asked(task: Task, world: int) -> Experiment:
    """The experiment of an endless run whose workers have that many images each."""
    own = task.experiment
    return own.replace(train=replace(own.train, batch_size=task.images * world, total_images=ENDLESS, epochs=0.0))


class Turns:
    """Turns of the real loop: so many steps each as take a turn's time, the same on all ranks."""

    def __init__(self, task: Task, stream: Stream, learning: Learning, ranks: Ranks) -> None:
        self._task, self._stream, self._learning, self._ranks = task, stream, learning, ranks
        next(self._reports(WARM_STEPS))  # allocates, compiles, chooses its kernels
        began = time.perf_counter()
        next(self._reports(WARM_STEPS))
        each = (time.perf_counter() - began) / WARM_STEPS
        within = min(task.turn_seconds, task.seconds / LEAST_TURNS)
        self.steps = ranks.from_leader(max(1, min(MOST_STEPS, int(within / each))))
        self._endless = self._reports(self.steps)

    def _reports(self, steps: int) -> Iterator[Report]:
        settings = asked(self._task, self._ranks.world).train
        between = Intervals(steps * settings.batch_size, ENDLESS, ENDLESS)
        return train(self._learning, self._stream, None, settings, between, self._ranks)

    def take(self) -> tuple[float, float, float]:
        """Seconds of a step without its wait for data, those of the wait, and CPU seconds of both."""
        began = time.process_time()
        report = next(self._endless)
        while WAIT not in report.figures:  # a step that was left out is told apart
            report = next(self._endless)
        cpu = time.process_time() - began
        images = self.steps * self._task.images * self._ranks.world
        waited = report.figures[WAIT]
        seconds = images / report.figures["perf/images_per_second"] - waited
        return seconds / self.steps, waited / self.steps, cpu / self.steps


def steps(
    task: Task, stream: Stream, learning: Learning, alone: Ranks, together: Ranks, middle_of: Middle = statistics.median
) -> dict[str, float]:
    """Seconds of a step by what they are for; medians over turns."""
    solo = Turns(task, stream, learning, alone)
    group = solo
    if task.world > 1:
        group = Turns(task, stream, new_learning(asked(task, task.world), stream, together), together)
    here = replace(task.prepared, settings=replace(task.prepared.settings, readers=0))
    batches = open_streams(here, 0)[0].batches(0, task.images)
    times: dict[str, list[float]] = {"solo": [], "group": [], "decode": [], "host": [], "message": []}
    ends = time.perf_counter() + task.seconds
    while together.from_leader(len(times["solo"]) < LEAST_TURNS or time.perf_counter() < ends):
        took, _, cpu = solo.take()
        times["solo"].append(took)
        began = time.perf_counter()
        for _batch in islice(batches, solo.steps):
            pass
        times["decode"].append((time.perf_counter() - began) / solo.steps)
        if task.world > 1:
            took, _, cpu = group.take()
            times["group"].append(took)
            times["message"].append(message(together))
        times["host"].append(cpu)
    middle = {name: middle_of(values or [0.0]) for name, values in times.items()}
    sums = [(sum(value.nbytes for value in each.parameters()), 1 / each.phase.every) for each in learning.turns]
    gradients, reduces = sum(size * often for size, often in sums), sum(often for _, often in sums)
    found = {
        "compute_seconds": middle["solo"], "host_seconds": max(0.0, middle["host"] - middle["decode"]),
        "decode_seconds": middle["decode"] / task.images, "gradient_bytes": gradients, "reduces": reduces,
    }  # fmt: skip
    if task.world > 1:
        sent = 2 * (task.world - 1) / task.world * gradients
        seconds = middle["group"] - middle["solo"] - reduces * middle["message"]
        found |= {"sync_seconds": middle["message"] / log2(task.world),
                  "link_bytes_per_second": sent / max(seconds, sent / QUICKEST)}  # fmt: skip
    return found


def message(ranks: Ranks) -> float:
    """Seconds that a number takes to everybody."""
    times = []
    for _ in range(20):
        began = time.perf_counter()
        ranks.total({"nothing": 1.0})
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def storage(stream: Stream) -> dict[str, float]:
    """How fast this machine gets shards that it does not have in memory, as far as the kernel lets go of them."""
    blocks = [block for dataset in stream.datasets for block in blocks_of(dataset, stream.settings.block_bytes)]
    random.Random(0).shuffle(blocks)
    began = time.perf_counter()

    def read(block: tuple[str, int, int]) -> int:
        return len(cut_out(*block)) if time.perf_counter() - began < READ_SECONDS else 0

    with ThreadPoolExecutor(REQUESTS) as pool:
        read_bytes = sum(pool.map(read, blocks))
    seconds = time.perf_counter() - began
    return {"record_bytes": sum(each.record_bytes * each.records for each in stream.datasets) / stream.records,
            "read_bytes": read_bytes, "node_bytes_per_second": read_bytes / seconds}  # fmt: skip


def blocks_of(dataset: Dataset, block_bytes: int) -> Iterator[tuple[str, int, int]]:
    """Where the blocks of a few shards lie, out of memory: shard, first byte, end."""
    numbers = random.Random(0).sample(range(len(dataset.index.shards)), min(SHARDS, len(dataset.index.shards)))
    each = block_bytes if dataset.shards.remote else BLOCK_BYTES
    for number in numbers:
        path, end = dataset.index.shard_path(number), dataset.index.shards[number].shard_bytes
        if not dataset.shards.remote:
            forget(path)
        yield from ((path, start, min(start + each, end)) for start in range(0, end, each))


def forget(path: str) -> None:
    """Drop a file from the kernel's cache; pages that another process has mapped stay."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def saves(learning: Learning, folder: Path) -> dict[str, float]:
    """What a checkpoint takes: its bytes, the copy that steps wait for, the writing beside them."""
    copies = Copies()
    copies.take(learning.tensors())  # the first makes the memory
    copies.ready()
    began = time.perf_counter()
    copies.take(learning.tensors())
    files = copies.ready()
    copied = time.perf_counter() - began
    with tempfile.TemporaryDirectory(dir=folder, prefix=".udl-plan-") as name:
        began = time.perf_counter()
        checkpoint.save(Path(name), 0, files, {})
        seconds = time.perf_counter() - began
    size = learning.checkpoint_bytes()
    return {"checkpoint_bytes": size, "copy_seconds": copied, "write_bytes_per_second": size / seconds}


def main() -> None:
    """Do the task on stdin; print figures, or the exit code and the line of a refusal."""
    told: dict[str, Any] = json.load(sys.stdin)
    experiment = experiments.from_dict(told.pop("experiment"))
    prepared = Prepared(experiment.data, *(tuple(part) for part in told.pop("prepared")))
    meeting, folder = Path(told.pop("meeting")), Path(told.pop("folder"))
    try:
        found = measured(Task(experiment, prepared, meeting=meeting, folder=folder, **told))
    except UdlError as error:
        found = {"exit_code": error.exit_code, "message": str(error)}
    except torch.OutOfMemoryError:
        share = told["images"]
        found = {"exit_code": TrainingError.exit_code, "message": f"{share} images a step do not fit into the memory "
                 "of a GPU: give a smaller train.batch_size, or train.accumulate"}  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
