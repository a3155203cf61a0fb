"""One trial: its experiment, its folder, and its training by the same loop as every run.

A trial of one worker is trained in the process that calls `train`, others by Ray Train.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from udl_dist.core import files
from udl_dist.data.loader.opening import Prepared
from udl_dist.data.packing.prepare import prepare
from udl_dist.errors import ClusterError, TrainingError, UdlError, UsageError
from udl_dist.experiment import Experiment
from udl_dist.launch.recovery import one_line
from udl_dist.runs import heartbeat
from udl_dist.runs.run_folder import RunFolder, held_out
from udl_dist.search.axes import with_values
from udl_dist.search.config import Search
from udl_dist.search.trial_log import Gate, read_decisions

LOCK_SECONDS = 20.0  # patience for a process of a killed search to end

TrainGroup = Callable[[Experiment, Prepared, Gate], dict[str, Any]]  # by several workers
Validation = tuple[int, dict[str, float]]  # images, held-out metrics
# More than one only if an axis is a setting of the data.
_prepared = lru_cache(8)(prepare)  # once for all trials of a process


@dataclass(frozen=True)
class TrialTask:
    """A task for an actor; `rungs` are in images, in whole steps of this trial."""

    trial: int
    experiment: Experiment
    rungs: tuple[int, ...] = ()
    parks: bool = False  # it ends at a rung until that is decided

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.experiment.run.folder)

    # With this file the folder is a run like any other: for report, resume and export.
    def saved(self) -> TrialTask:
        """Write the experiment into the folder, from which an actor reads it."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        files.write_whole(self.folder.experiment, self.experiment.to_toml())
        return self


@dataclass(frozen=True)
class TrialOutcome:
    """How a task ended: complete, stopped (at a rung), failed, or paused (by a signal, or at a
    rung that is not decided yet).
    """

    state: str
    images: int = 0
    figures: dict[str, float] | None = None
    why: str = ""
    seconds: float = 0.0
    waited_seconds: float = 0.0  # part of `seconds`, at rungs


class ValidationReader:
    """Reads each validation of a trial once, even if a resumed trial writes points again."""

    def __init__(self, folder: RunFolder) -> None:
        self._tail, self._images = files.Tail(folder.curves), 0

    def new(self) -> list[Validation]:
        """The validations since the last call."""
        found: list[Validation] = []
        for line in self._tail.lines():
            # Most lines are points of training, which need no parsing.
            # 0 images are never more than were seen, so such a line is passed over.
            point = json.loads(line) if b'"val/' in line else {"images": 0}
            if (images := int(point["images"])) > self._images:
                # A resume writes points again that were passed on before.
                self._images = images
                found.append((images, held_out(point)))
        return found


def folder_of(search: Search, trial: int) -> Path:
    return search.folder / "trials" / f"{trial:04d}"


def in_steps(images: int, batch_size: int) -> int:
    """Images rounded up to whole steps."""
    return -(-images // batch_size) * batch_size


def experiment_of(
    search: Search, trial: int, values: Mapping[str, Any], budget: int, rungs: Sequence[int]
) -> Experiment:
    """A trial as an experiment of its own, which `udl train` could run too."""
    made = with_values(search.base, values)
    # Trials of one setting have consecutive numbers and differ in their seed.
    # Seed k of every setting is the same, so that settings compare on equal chance.
    seed = made.train.seed + trial % search.settings.seeds
    # Validated at rungs only, without periodic checkpoints: both cost short trials much time.
    folder = str(folder_of(search, trial))
    run = replace(made.run, folder=folder, checkpoint_images=0, fresh=False, keep_checkpoints=1)
    evaluate = replace(made.evaluate, every_images=budget, at_images=tuple(rungs), pictures=False)
    return made.replace(
        # The two measures of a run's length exclude each other.
        train=replace(made.train, seed=seed, total_images=budget, epochs=0.0),
        evaluate=evaluate,
        run=run,
        track=replace(made.track, group=made.track.group or search.folder.name),
    )


def train(
    task: TrialTask,
    group: TrainGroup | None,
    at_rung: Callable[[], None],
    gpu_share: float = 1.0,
) -> TrialOutcome:
    """Train a trial in its folder until it ends; an error fails this trial only.

    `group` trains it by several workers; None: this process does, with at most `gpu_share` of a
    GPU's memory. `at_rung` is called before it waits for a decision.
    """
    began = time.monotonic()
    try:
        here = partial(_train_here, at_rung=at_rung, gpu_share=gpu_share)
        outcome = _train(task, group or here)
    # A refusal of ours is a sentence already; of other errors the type is part of the meaning.
    except UdlError as error:
        outcome = TrialOutcome("failed", why=str(error))
    except Exception as error:
        outcome = TrialOutcome("failed", why=f"{type(error).__name__}: {one_line(error)}")
    # A group's workers are processes of their own, which end with the trial.
    if group is None:
        _release()
    return replace(outcome, seconds=time.monotonic() - began)


def _release() -> None:
    """Free what a trial left in reference cycles, such as open shards, for the next trial."""
    import torch

    gc.collect()
    gc.freeze()  # what survives (all of torch) is not searched again after each trial
    torch.cuda.empty_cache()  # does nothing in a process that has used no GPU


def _train(task: TrialTask, train_all: TrainGroup) -> TrialOutcome:
    experiment, folder = task.experiment, task.folder
    gate = Gate(str(folder.path), task.rungs, task.parks)
    with files.errors_named(folder.path), _held(folder):
        # Its actor died between the end of the run and the report of it.
        if (done := folder.finished()) is not None:
            return TrialOutcome("complete", done["images"], done["figures"])
        # Packed or indexed by the driver before: here it is only found.
        prepared = _prepared(experiment.data)
        result = train_all(experiment, prepared, gate)
        state = "complete"
        # The loop stops for a decision at a rung or for a request in the folder (a signal).
        if result["stopped"]:
            goes_on = all(read_decisions(folder.path))  # nothing was decided against it yet
            state = "paused" if folder.stop_asked() or goes_on else "stopped"
        else:
            folder.finish({"images": result["images"], "figures": result["figures"]})
        validated = [point for point in folder.points() if held_out(point)]
        last = {**validated[-1]} if validated else {}
        last.pop("images", None)
        waited = result.get("waited", 0.0)
        return TrialOutcome(state, result["images"], last, waited_seconds=waited)


def _train_here(
    experiment: Experiment,
    prepared: Prepared,
    gate: Gate,
    at_rung: Callable[[], None],
    gpu_share: float,
) -> dict[str, Any]:
    """Train by one worker: this process."""
    import torch

    from udl_dist.launch.worker import work
    from udl_dist.training.distributed import Ranks

    waited = 0.0

    def wait(images: int) -> bool | None:
        nonlocal waited
        began = time.monotonic()
        at_rung()
        goes_on = gate(images)
        waited += time.monotonic() - began
        return goes_on

    cuda = experiment.run.device != "cpu" and torch.cuda.is_available()
    if experiment.run.device == "cuda" and not cuda:
        raise ClusterError(
            "run.device = cuda, but PyTorch sees no GPU here: install a CUDA build, or set "
            "run.device to auto"
        )
    if cuda and gpu_share < 1:  # the peak of one trial must not fail the others on its GPU
        torch.cuda.set_per_process_memory_fraction(gpu_share)
    ranks = Ranks(torch.device("cuda" if cuda else "cpu"))
    return work(experiment, prepared, ranks, gate=wait) | {"waited": waited}


@contextlib.contextmanager
def _held(folder: RunFolder) -> Iterator[None]:
    """Lock the folder, after killing processes of a search that was killed."""
    deadline = time.monotonic() + LOCK_SECONDS
    for life in heartbeat.read_all(folder).values():
        # A resumed trial may run in the process that trained it before.
        if life.process != os.getpid():
            life.kill()
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(folder.held())
                break
            except UsageError as error:
                if time.monotonic() > deadline:
                    raise TrainingError(str(error)) from None
                time.sleep(0.1)
        yield
