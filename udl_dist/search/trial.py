"""One trial: its experiment, its folder, and its training, by the same loop as every run.

A trial of one worker is trained in the process that calls `train`, one of several by Ray Train.
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
from udl_dist.data.settings import DataSettings
from udl_dist.errors import ClusterError, TrainingError, UdlError, UsageError
from udl_dist.experiment import Experiment
from udl_dist.launch.recovery import one_line
from udl_dist.runs import heartbeat
from udl_dist.runs.run_folder import RunFolder
from udl_dist.search.axes import with_values
from udl_dist.search.config import Search
from udl_dist.search.scheduler import Gate

LOCK_SECONDS = 20.0  # that the process of a killed search may take to end

TrainGroup = Callable[[Experiment, Prepared, Gate], dict[str, Any]]  # by several workers
Validation = tuple[int, dict[str, float]]  # images, held-out metrics


@dataclass(frozen=True)
class TrialTask:
    """What an actor has to train; `rungs` are in the steps of this trial."""

    trial: int
    experiment: Experiment
    rungs: tuple[int, ...] = ()

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.experiment.run.folder)

    def saved(self) -> TrialTask:
        """Write the experiment into the folder, from which an actor reads it."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        files.write_whole(self.folder.experiment, self.experiment.to_toml())
        return self


@dataclass(frozen=True)
class TrialOutcome:
    """How a task ended: complete, stopped (at a rung), paused (by a signal) or failed."""

    state: str
    images: int = 0
    figures: dict[str, float] | None = None
    why: str = ""
    seconds: float = 0.0
    waited_seconds: float = 0.0  # part of `seconds`, at rungs


class ValidationReader:
    """Reads each validation of a trial once, though a resumed trial removes points and repeats
    them.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._tail, self._images = files.Tail(folder.curves), 0

    def new(self) -> list[Validation]:
        """The validations since the last call."""
        found: list[Validation] = []
        for line in self._tail.lines():
            if (
                b'"val/' in line
                and (images := int((point := json.loads(line))["images"])) > self._images
            ):
                self._images = images
                found.append((images, held_out(point)))
        return found


def held_out(point: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a validation among all of a point or a run."""
    return {name: value for name, value in point.items() if name.startswith("val/")}


def folder_of(search: Search, trial: int) -> Path:
    return search.folder / "trials" / f"{trial:04d}"


def in_steps(images: int, batch_size: int) -> int:
    """Images rounded up to whole steps."""
    return -(-images // batch_size) * batch_size


def experiment_of(
    search: Search, trial: int, values: Mapping[str, Any], budget: int, rungs: Sequence[int]
) -> Experiment:
    """A trial as an experiment of its own: `udl train` takes the experiment.toml in its folder."""
    made = with_values(search.base, values)
    seed = made.train.seed + trial % search.settings.seeds
    # Validated at rungs only, without periodic checkpoints: short trials would pay for both.
    folder = str(folder_of(search, trial))
    run = replace(made.run, folder=folder, checkpoint_images=0, fresh=False, keep_checkpoints=1)
    evaluate = replace(made.evaluate, every_images=budget, at_images=tuple(rungs), pictures=False)
    return made.replace(
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
    """Train a trial in its folder until it ends; an error is an outcome too: it costs this trial
    only.

    `group` trains it by several workers; None: it is trained here, with at most `gpu_share` of a
    GPU's memory. `at_rung` is called before it waits for a decision.
    """
    began = time.monotonic()
    try:
        if group is None:
            _limit_memory(gpu_share)
        outcome = _train(task, group, at_rung)
    except UdlError as error:
        outcome = TrialOutcome("failed", why=str(error))
    except Exception as error:
        outcome = TrialOutcome("failed", why=f"{type(error).__name__}: {one_line(error)}")
    if group is None:
        _release()
    return replace(outcome, seconds=time.monotonic() - began)


def _limit_memory(gpu_share: float) -> None:
    """Trials that share a GPU share its memory: the peak of one must not fail the others."""
    import torch

    if gpu_share < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(gpu_share)


def _release() -> None:
    """Close what a trial left in reference cycles, such as shards: its process trains others next.

    Frozen, what survives (all of torch) is not searched again for each trial.
    """
    import torch

    gc.collect()
    gc.freeze()
    torch.cuda.empty_cache()  # does nothing in a process that has used no GPU


def _train(task: TrialTask, group: TrainGroup | None, at_rung: Callable[[], None]) -> TrialOutcome:
    experiment, folder = task.experiment, task.folder
    gate = Gate(str(folder.path), task.rungs)
    with files.errors_named(folder.path), _held(folder):
        if (done := folder.finished()) is not None:
            return TrialOutcome("complete", done["images"], done["figures"])
        prepared = _prepared(experiment.data)
        train_all = group or partial(_train_here, at_rung=at_rung)
        result = train_all(experiment, prepared, gate)
        state = "complete"
        if result["stopped"]:
            state = "paused" if folder.stop_asked() else "stopped"
        else:
            folder.finish({"images": result["images"], "figures": result["figures"]})
        validated = [point for point in folder.points() if held_out(point)]
        last = {**validated[-1]} if validated else {}
        last.pop("images", None)
        waited = result.get("waited", 0.0)
        return TrialOutcome(state, result["images"], last, waited_seconds=waited)


def _train_here(
    experiment: Experiment, prepared: Prepared, gate: Gate, at_rung: Callable[[], None]
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
    ranks = Ranks(torch.device("cuda" if cuda else "cpu"))
    return work(experiment, prepared, ranks, gate=wait) | {"waited": waited}


@contextlib.contextmanager
def _held(folder: RunFolder) -> Iterator[None]:
    """Hold the folder; processes that a killed search left there are ended first."""
    deadline = time.monotonic() + LOCK_SECONDS
    for life in heartbeat.read_all(folder).values():
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


@lru_cache(8)
def _prepared(data: DataSettings) -> Prepared:
    """Where the images are, found once in a process."""
    return prepare(data)
