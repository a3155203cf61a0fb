"""What each rank does with a run: open the data, make the method, take up the newest checkpoint,
act on every report.

It stands between a launcher and the loop and knows no launcher: `work` runs in one process, under
plain torch.distributed or in a Ray worker alike. Rank 0 alone writes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from udl_dist import methods
from udl_dist.core import faults, files
from udl_dist.data.loader.opening import Prepared, open_streams
from udl_dist.data.loader.reader import Stream
from udl_dist.errors import TrainingError, UdlError
from udl_dist.experiment import Experiment
from udl_dist.launch.recorder import Scribe
from udl_dist.launch.resume import resume
from udl_dist.launch.watchdog import Watchdog
from udl_dist.runs import environment, remote
from udl_dist.runs.remote_node import Node, carried
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training import arithmetic, checkpoint
from udl_dist.training.distributed import Ranks
from udl_dist.training.finite_guard import ROLLBACKS, Diverged
from udl_dist.training.loop import Intervals, Report, batch_memory, train
from udl_dist.training.train_state import Learning

Gate = Callable[[int], bool | None]
ANSWERS = (None, False, True)


@dataclass(frozen=True)
class Task:
    """What one rank is to do, and with whom it speaks meanwhile."""

    experiment: Experiment
    prepared: Prepared
    ranks: Ranks
    hand_over: Callable[[Report], None]
    gate: Gate
    folder: RunFolder
    watchdog: Watchdog
    node: Node | None  # where the run folder is in object storage
    arithmetic: Mapping[str, str]  # as `arithmetic.set_up` says


def work(
    experiment: Experiment,
    prepared: Prepared,
    ranks: Ranks,
    hand_over: Callable[[Report], None] = lambda report: None,
    gate: Gate = lambda images: True,
) -> dict[str, Any]:
    """Train to the end or to a stop; return `{"images", "stopped", "figures"}`, the same on every
    rank.

    `hand_over` hears of each report that comes with a checkpoint, on every rank at the same images.
    `gate` is asked on rank 0, after each validation and where the run goes on from, whether to go
    on; None: that is not known yet.
    """
    folder = RunFolder(remote.working(experiment.run.folder, "node"))
    used = arithmetic.set_up(ranks.device, experiment.run.determinism, experiment.train.precision)
    with carried(experiment.run.folder, folder, ranks.leads) as node:
        try:
            with (
                files.errors_named(folder.path),
                Watchdog(folder, ranks.rank, experiment.run.hang_seconds) as watchdog,
            ):
                return _attempts(
                    Task(experiment, prepared, ranks, hand_over, gate, folder, watchdog, node, used)
                )
        except UdlError as error:
            folder.fail(error)
            raise


def _attempts(task: Task) -> dict[str, Any]:
    """One attempt after the other, each from the last checkpoint, while they diverge."""
    rollbacks = 0
    while True:
        try:
            with _refusing(task):
                return _attempt(task, rollbacks)
        except Diverged as error:
            rollbacks = error.rollbacks + 1
            if rollbacks > ROLLBACKS:
                raise TrainingError(
                    f"{error}, and the run went back {ROLLBACKS} times: lower train.learning_rate, "
                    "or set train.clip_norm; the last checkpoint is kept"
                ) from None
            if task.ranks.leads:
                task.folder.say(
                    f"{error}: back to the last checkpoint, with another order of the images from"
                    f" there on ({rollbacks} of {ROLLBACKS} times)"
                )


@contextlib.contextmanager
def _refusing(task: Task) -> Iterator[None]:
    """Turn errors of torch that would come again after every restart into refusals with the
    cure.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        train, ranks = task.experiment.train, task.ranks
        if isinstance(
            error, MemoryError | torch.OutOfMemoryError
        ) or "can't allocate memory" in str(error):
            rows = -(-train.batch_size // (ranks.world * train.accumulate))
            where = "GPU" if ranks.device.type == "cuda" else "memory"
            raise TrainingError(
                f"rank {ranks.rank}: the {where} is too small for {rows} images at once: raise"
                " train.accumulate (parts of a step, computed one after the other), lower"
                " train.batch_size, or set train.precision = bfloat16; the last checkpoint is kept"
            ) from error
        if train.compile and type(error).__module__.startswith(
            ("torch._dynamo", "torch._inductor")
        ):
            why = " ".join(str(error).split())[:200]
            raise TrainingError(
                f"train.compile: PyTorch's compiler failed ({why}): install the C++ compiler that"
                " it needs, or leave train.compile out"
            ) from error
        raise


def _attempt(task: Task, rollbacks: int) -> dict[str, Any]:
    """One attempt, after so many that came to nothing; raise Diverged where it does."""
    experiment, prepared, ranks, folder, watchdog = (
        task.experiment,
        task.prepared,
        task.ranks,
        task.folder,
        task.watchdog,
    )
    stream, held_out = open_streams(
        prepared, experiment.train.seed, batch_memory(ranks.device), experiment.evaluate.images
    )
    learning = new_learning(experiment, stream, ranks)
    start, kept = resume(experiment, folder, task.node, ranks, learning, stream)
    if rollbacks > kept.rollbacks:
        kept = replace(kept, rollbacks=rollbacks, skips=0)
    if kept.rollbacks:
        stream, _ = open_streams(
            prepared, _seed_after(kept.rollbacks, experiment), batch_memory(ranks.device)
        )
    total = experiment.train.length(stream.records)
    if start >= total:  # ended between its last checkpoint and its result
        facts = checkpoint.facts(checkpoint.path_of(folder.checkpoints, start))
        return {"images": start, "stopped": False, "figures": facts["figures"]}
    watchdog.rest()  # whoever waits at a gate makes no step
    if start and not _goes_on(task.gate, start, ranks):
        return {"images": start, "stopped": True, "figures": {}}
    scribe = (
        Scribe(experiment, folder, learning, stream, held_out, start, task.node)
        if ranks.leads
        else None
    )
    if ranks.leads:
        environment.keep(folder, ranks, task.arithmetic, start)
    figures: dict[str, float] = {}
    images, stopped, alarms = start, False, set[str]()
    clock = Clock(experiment.run.checkpoint_seconds if ranks.leads else 0.0)

    def beat(images: int, place: str) -> None:
        watchdog.beat(images, place)
        faults.reach(images, place)

    try:
        between = intervals(experiment, total, held_out.records if held_out else 0)
        for report in train(
            learning,
            stream,
            held_out,
            experiment.train,
            between,
            ranks,
            start,
            folder.end_asked if ranks.leads else lambda: False,
            clock.due,
            kept,
            beat,
        ):
            figures |= report.figures
            images, stopped = report.images, report.stopped
            beat(images, "save" if report.checkpoint else "report")
            folder.add_damaged([*stream.damage, *(held_out.damage if held_out else ())])
            if scribe:
                scribe.take(report)
            if report.validated:
                _look_for_collapse(experiment, learning, report, folder, alarms, ranks)
            if report.checkpoint:
                clock.start()
                task.hand_over(report)
            if report.validated and images < total:
                watchdog.rest()
                if not _goes_on(task.gate, images, ranks):
                    stopped = True
                    ranks.await_announced()
                    break
            beat(images, "report")
        watchdog.rest()
        if scribe:
            scribe.finish()
    finally:
        watchdog.rest()
        if scribe:
            scribe.close()
    return {"images": images, "stopped": stopped, "figures": figures}


def _goes_on(gate: Gate, images: int, ranks: Ranks) -> bool:
    """Rank 0's answer, on every rank: two that were asked might hear of a stop at different times.

    "Not yet" is told too, and asked again: no rank waits for another as long as that may take.
    """
    answer = None
    while answer is None:
        answer = ANSWERS[ranks.from_leader(ANSWERS.index(gate(images)) if ranks.leads else 0)]
    return answer


def _look_for_collapse(
    experiment: Experiment,
    learning: Learning,
    report: Report,
    folder: RunFolder,
    told: set[str],
    ranks: Ranks,
) -> None:
    """Tell each alarm of the method once, or stop at it: figures are equal on every rank, so all do
    the same.
    """
    for name, line in learning.method.alarms(report.figures, report.images).items():
        if experiment.train.on_collapse == "stop":
            raise TrainingError(
                f"{name} after {report.images} images: {line}; the last checkpoint is kept"
            )
        if ranks.leads and name not in told:
            folder.say(f"ALARM: {name} after {report.images} images: {line}")
        told.add(name)


def _seed_after(rollbacks: int, experiment: Experiment) -> int:
    """The seed of order and noise of a run that went back so many times."""
    seeds = np.random.SeedSequence([experiment.train.seed, rollbacks])
    return int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(1))


class Clock:
    """Says once, `seconds` after it was started, that a checkpoint is due; 0: never. No jump of the
    date moves it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.start()

    def start(self) -> None:
        self._started = time.monotonic()

    def due(self) -> bool:
        due = 0 < self._seconds <= time.monotonic() - self._started
        if due:
            self.start()
        return due


def intervals(experiment: Experiment, total: int, held_out: int) -> Intervals:
    """The intervals asked for, or a hundred reports and ten checkpoints a run, and validations as
    they are paid for.
    """
    evaluate = experiment.evaluate
    checkpoint = experiment.run.checkpoint_images or evaluate.every_images or max(1, total // 10)
    return Intervals(
        experiment.train.report_images or max(1, total // 100),
        evaluate.interval(total, held_out),
        checkpoint,
        evaluate.at_images,
    )


def new_learning(experiment: Experiment, stream: Stream, ranks: Ranks) -> Learning:
    """The method of an experiment with its first weights, as it learns from this stream."""
    method = methods.find(experiment.method_name)(experiment.method, stream.shape)
    torch.manual_seed(experiment.train.seed)  # the same first weights on every rank
    method.build()
    shares = experiment.train.SHARES if experiment.run.determinism == "elastic" else 0
    return Learning(method, experiment.train, ranks, shares)
