"""What each rank does: open the data, build the method, resume, train, and act on every report.

`work` runs in a Ray worker, under plain torch.distributed or in a single process alike, and imports
none of Ray. Rank 0 alone writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from udl_dist import methods
from udl_dist.core import files
from udl_dist.data.loader.decoded import memory_bytes
from udl_dist.data.loader.opening import Prepared, open_streams
from udl_dist.data.loader.reader import Stream
from udl_dist.errors import TrainingError, UdlError
from udl_dist.experiment import Experiment
from udl_dist.launch.memory import StepMemory
from udl_dist.launch.recorder import RunRecorder
from udl_dist.launch.report_handler import Gate, ReportHandler, WorkerContext, may_continue
from udl_dist.launch.resume import resume
from udl_dist.launch.watchdog import Watchdog
from udl_dist.methods.networks.sizes import MethodMaker, cost_of
from udl_dist.runs import environment, remote
from udl_dist.runs.remote_node import sync_node
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training import arithmetic, checkpoint
from udl_dist.training.batches import batch_memory, decoded_rows
from udl_dist.training.distributed import Ranks
from udl_dist.training.finite_guard import MAX_ROLLBACKS, Diverged
from udl_dist.training.loop import Intervals, Report, TrainingLoop
from udl_dist.training.train_state import TrainState


def work(
    experiment: Experiment,
    prepared: Prepared,
    ranks: Ranks,
    on_checkpoint: Callable[[Report], None] = lambda report: None,
    gate: Gate = lambda images: True,
) -> dict[str, Any]:
    """Train to the end or to a stop; return `{"images", "stopped", "figures"}`, equal on all ranks.

    `on_checkpoint` gets each report that comes with a checkpoint, on every rank at the same images.
    `gate` is asked after each validation, and where the run goes on from.
    """
    folder = RunFolder(remote.working(experiment.run.folder, "node"))
    used = arithmetic.set_up(ranks.device, experiment.run.determinism, experiment.train.precision)
    hang_seconds = experiment.run.hang_seconds
    with sync_node(experiment.run.folder, folder, ranks.is_main) as node:
        try:
            with (
                files.errors_named(folder.path),
                Watchdog(folder, ranks.rank, hang_seconds) as watchdog,
            ):
                context = WorkerContext(
                    experiment, prepared, ranks, on_checkpoint, gate, folder, watchdog, node, used
                )
                return _train_with_rollbacks(context)
        except UdlError as error:
            # Before the process ends: the driver shows these words, Ray only a traceback.
            folder.fail(error)
            raise


def _train_with_rollbacks(context: WorkerContext) -> dict[str, Any]:
    """Train from the last checkpoint, and again from there whenever the run diverges."""
    rollbacks = 0
    while True:
        try:
            with _permanent_errors_refused(context):
                return _train_from_checkpoint(context, rollbacks)
        except Diverged as error:
            rollbacks = error.rollbacks + 1
            if rollbacks > MAX_ROLLBACKS:
                raise TrainingError(
                    f"{error}, and the run went back {MAX_ROLLBACKS} times: lower"
                    " train.learning_rate, or set train.clip_norm; the last checkpoint remains"
                ) from None
            if context.ranks.is_main:
                context.folder.say(
                    f"{error}: back to the last checkpoint, with another order of the images from"
                    f" there on ({rollbacks} of {MAX_ROLLBACKS} times)"
                )


@contextlib.contextmanager
def _permanent_errors_refused(context: WorkerContext) -> Iterator[None]:
    """Errors of torch that every restart would meet again become refusals with what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        train = context.experiment.train
        # On a GPU torch has a class for it, on a CPU only the words of its allocator.
        memory_errors = (MemoryError, torch.OutOfMemoryError)
        if isinstance(error, memory_errors) or "can't allocate memory" in str(error):
            raise TrainingError(_too_small(context)) from error
        # Its errors are of many classes, in these two modules.
        compiler = ("torch._dynamo", "torch._inductor")
        if train.compile and type(error).__module__.startswith(compiler):
            why = " ".join(str(error).split())[:200]
            raise TrainingError(
                f"train.compile: PyTorch's compiler failed ({why}): install the C++ compiler that"
                " it needs, or leave train.compile out"
            ) from error
        raise


def _too_small(context: WorkerContext) -> str:
    """Which rank has too little memory, and with which settings it should have enough."""
    experiment, ranks, train = context.experiment, context.ranks, context.experiment.train
    on_gpu = ranks.device.type == "cuda"
    whole = torch.cuda.mem_get_info(ranks.device)[1] if on_gpu else memory_bytes()[1]
    share = -(-train.batch_size // ranks.world)
    rows = -(-share // train.accumulate)
    stream, _ = open_streams(context.prepared, train.seed)
    make = MethodMaker(
        methods.find(experiment.method_name), experiment.method, stream.shape, stream.classes
    )
    fit = StepMemory.of(make.on_meta(), cost_of(make), train).rows_in(whole)
    # Where the estimate says that all fits, others use the memory too: half may.
    fit = max(1, min(fit, rows // 2) or rows // 2)
    return (
        f"rank {ranks.rank}: the {'GPU' if on_gpu else 'memory'} is too small for {rows} images at"
        f" once, {fit} should fit: set train.accumulate = {-(-share // fit)} (parts of a step,"
        f" computed one after the other) or train.batch_size = {fit * ranks.world}, or"
        " train.precision = bfloat16; the last checkpoint remains"
    )


def _train_from_checkpoint(context: WorkerContext, rollbacks: int) -> dict[str, Any]:
    """Train from the newest checkpoint, after `rollbacks` of this run; raise Diverged."""
    experiment, ranks, watchdog = context.experiment, context.ranks, context.watchdog
    memory, seed = batch_memory(ranks.device), experiment.train.seed
    prepared, most = context.prepared, experiment.evaluate.images

    rows = decoded_rows(experiment.data, ranks)
    stream, held_out = open_streams(prepared, seed, memory, most, rows)
    decodes = bool(experiment.data.decoded_bytes) and experiment.data.random_crop == 1
    if ranks.is_main and decodes and not stream.loader.decoded.rows:
        context.folder.say(
            f"data.decoded_bytes = {experiment.data.decoded_bytes} is more memory than is free, or"
            " less than an image takes: images are decoded in every epoch"
        )
    # Everything is made again after a rollback: nothing of the diverged state can stay.
    state = new_train_state(experiment, stream, ranks)
    start, resumed = resume(experiment, context.folder, context.node, ranks, state, stream)
    if rollbacks > resumed.rollbacks:
        # The checkpoint is from before this rollback and cannot know of it.
        resumed = replace(resumed, rollbacks=rollbacks, skips=0)
    # Another order from here on, or the run would meet the same batch and diverge again. The data
    # itself was compared above with the order of the experiment.
    if resumed.rollbacks:
        seed = _seed_after(resumed.rollbacks, seed)
        stream, _ = open_streams(prepared, seed, memory, decoded=rows)
    total = experiment.train.length(stream.records)
    if start >= total:  # ended between its last checkpoint and its result
        facts = checkpoint.facts(checkpoint.path_of(context.folder.checkpoints, start))
        return {"images": start, "stopped": False, "figures": facts["figures"]}
    watchdog.rest()  # a rank that waits at a gate makes no step
    if start and not may_continue(context.gate, start, ranks):
        return {"images": start, "stopped": True, "figures": {}}
    recorder = None
    if ranks.is_main:
        recorder = RunRecorder(
            experiment, context.folder, context.node, state, (stream, held_out), start
        )
        environment.keep(context.folder, ranks, context.arithmetic, start)
    reports = ReportHandler(context, state, (stream, held_out), recorder, total)
    loop = TrainingLoop(
        state,
        stream,
        held_out,
        experiment.train,
        intervals(experiment, total, held_out.records if held_out else 0),
        ranks,
        reports.hooks(),
    )
    try:
        stopped = reports.handle_all(loop.reports(start, resumed))
        watchdog.rest()
        if recorder:
            recorder.finish()
    finally:
        watchdog.rest()
        if recorder:
            recorder.close()
    return {"images": reports.images, "stopped": stopped, "figures": reports.metrics}


def intervals(experiment: Experiment, total: int, held_out: int) -> Intervals:
    """The intervals of the settings; by default 100 reports and 10 checkpoints of a run."""
    evaluate = experiment.evaluate
    return Intervals(
        experiment.train.report_images or max(1, total // 100),
        evaluate.interval(total, held_out),
        experiment.run.checkpoint_images or evaluate.every_images or max(1, total // 10),
        evaluate.at_images,
    )


def new_train_state(experiment: Experiment, stream: Stream, ranks: Ranks) -> TrainState:
    """The method of an experiment with its first weights, for the images of `stream`."""
    torch.manual_seed(experiment.train.seed)  # the same first weights on every rank
    method = methods.find(experiment.method_name)(experiment.method, stream.shape, stream.classes)
    train, elastic = experiment.train, experiment.run.determinism == "elastic"
    return TrainState(method, train, ranks, train.VIRTUAL_RANKS if elastic else 0)


def _seed_after(rollbacks: int, seed: int) -> int:
    """The seed of order and noise after so many rollbacks."""
    # 63 bits, as a seed must fit into an int64.
    words = np.random.SeedSequence([seed, rollbacks]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))
