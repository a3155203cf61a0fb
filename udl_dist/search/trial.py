"""One trial: its experiment, its folder, and the body that trains it, with the loop that every run
has.

A trial of one worker is trained in the process that calls `train`, one of several by workers under
Ray Train.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from udl_dist.core import files
from udl_dist.data.loader.opening import Prepared
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.settings import DataSettings
from udl_dist.errors import ClusterError, TrainingError, UdlError, UsageError
from udl_dist.experiment import Experiment, from_dict
from udl_dist.launch.recovery import one_line
from udl_dist.runs import heartbeat
from udl_dist.runs.run_folder import RunFolder
from udl_dist.search.axes import with_values
from udl_dist.search.config import Search
from udl_dist.search.gate import Gate

TURN = "turn.json"
LOCK_SECONDS = 20.0  # that the process of a search which was killed may take to go


@dataclass(frozen=True)
class Turn:
    """What one trial has to do next: plain values, so that it travels by its folder. `rungs` are in
    its own steps.
    """

    trial: int
    experiment: dict[str, Any]
    rungs: tuple[int, ...] = ()

    def write(self) -> Path:
        """Leave it in the folder of the trial, which is returned."""
        folder = Path(self.experiment["run"]["folder"])
        (folder / TURN).write_text(json.dumps(asdict(self)), "utf-8")
        return folder

    @classmethod
    def read(cls, folder: Path) -> Turn:
        values = json.loads((folder / TURN).read_text("utf-8"))
        return cls(**values | {"rungs": tuple(values["rungs"])})


@dataclass(frozen=True)
class Outcome:
    """How a turn ended: `state` is complete, stopped (by a decision), paused (by a signal) or
    failed.
    """

    state: str
    images: int = 0
    figures: dict[str, float] | None = None
    why: str = ""
    seconds: float = 0.0
    waited_seconds: float = 0.0  # at rungs, for what is decided there


def folder_of(search: Search, trial: int) -> Path:
    return search.folder / "trials" / f"{trial:04d}"


def experiment_of(
    search: Search,
    trial: int,
    values: Mapping[str, Any],
    seed: int,
    budget: int,
    rungs: tuple[int, ...],
) -> Experiment:
    """A trial as an experiment of its own: `udl train` takes the experiment.toml in its folder."""
    made = with_values(search.base, values)
    # Rungs are validated at, and nothing is in between: what a trial costs beside its steps is what
    # a search costs.
    evaluate = replace(made.evaluate, every_images=budget, at_images=rungs, pictures=False)
    run = replace(
        made.run,
        folder=str(folder_of(search, trial)),
        checkpoint_images=0,
        fresh=False,
        keep_checkpoints=1,
    )
    group = made.track.group or search.folder.name
    return made.replace(
        train=replace(made.train, seed=seed, total_images=budget, epochs=0.0),
        evaluate=evaluate,
        run=run,
        track=replace(made.track, group=group),
    )


def in_steps(images: int, batch_size: int) -> int:
    """Images rounded up to whole steps."""
    return -(-images // batch_size) * batch_size


def train(
    turn: Turn,
    group: Callable[..., dict[str, Any]] | None,
    reached: Callable[[], None],
    gpu_share: float = 1.0,
) -> Outcome:
    """Train a trial until it ends, is stopped or fails, in its folder; whatever happens is an
    outcome, not an error.

    `group` trains it by several workers, None: it is trained here, with no more than `gpu_share` of
    a GPU's memory. `reached` is called where it waits at a rung.
    """
    began = time.monotonic()
    try:
        if group is None:
            _bound_memory(gpu_share)
        outcome = _train(from_dict(turn.experiment), turn, group, reached)
    except UdlError as error:
        outcome = Outcome("failed", why=str(error))
    except Exception as error:  # a trial that fails in whatever way costs itself only
        outcome = Outcome("failed", why=f"{type(error).__name__}: {one_line(error)}")
    if group is None:
        _let_go()
    return replace(outcome, seconds=time.monotonic() - began)


def _bound_memory(gpu_share: float) -> None:
    """Trials that share a GPU share its memory: the peak of one must not starve the others."""
    import torch

    if gpu_share < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(gpu_share)


def _let_go() -> None:
    """Close what a trial has left in circles, such as the shards it read: its process trains others
    after it.

    What survives is passed over from now on: all of torch would be looked at for each trial.
    """
    import torch

    gc.collect()
    gc.freeze()
    torch.cuda.empty_cache()  # does nothing in a process that has used no GPU


def _train(
    experiment: Experiment,
    turn: Turn,
    group: Callable[..., dict[str, Any]] | None,
    reached: Callable[[], None],
) -> Outcome:
    folder = RunFolder(experiment.run.folder)
    gate = Gate(str(folder.path), turn.rungs)
    with files.errors_named(folder.path), _held(folder):
        if (done := folder.finished()) is not None:
            return Outcome("complete", done["images"], done["figures"])
        files.write_whole(folder.experiment, experiment.to_toml())
        prepared = _prepared(experiment.data)
        if group:
            result = group(experiment, prepared, gate)
        else:
            result = _alone(experiment, prepared, folder, gate, reached)
        if not result["stopped"]:
            folder.finish({"images": result["images"], "figures": result["figures"]})
        state = "paused" if folder.stop_asked() else "stopped"
        return Outcome(
            state if result["stopped"] else "complete",
            result["images"],
            _last_figures(folder),
            waited_seconds=result.get("waited", 0.0),
        )


def _alone(
    experiment: Experiment,
    prepared: Prepared,
    folder: RunFolder,
    gate: Gate,
    reached: Callable[[], None],
) -> dict[str, Any]:
    """Train by the one worker that this process is."""
    import torch

    from udl_dist.launch.worker import work
    from udl_dist.training.distributed import Ranks

    waited = 0.0

    def asked(images: int) -> bool | None:
        nonlocal waited
        began = time.monotonic()
        reached()
        goes_on = gate(images)
        waited += time.monotonic() - began
        return goes_on

    wanted = experiment.run.device != "cpu" and torch.cuda.is_available()
    if experiment.run.device == "cuda" and not wanted:
        raise ClusterError(
            "run.device = cuda, but PyTorch sees no GPU here: install a CUDA build, or set"
            " run.device to auto"
        )
    result = work(
        experiment, prepared, Ranks(torch.device("cuda" if wanted else "cpu")), gate=asked
    )
    return result | {"waited": waited}


@contextlib.contextmanager
def _held(folder: RunFolder) -> Iterator[None]:
    """Hold the folder; what a killed search left at work in it is ended first."""
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


def _last_figures(folder: RunFolder) -> dict[str, float]:
    """The figures of the last validation."""
    looked = [point for point in folder.points() if any(name.startswith("val/") for name in point)]
    return {name: value for name, value in looked[-1].items() if name != "images"} if looked else {}


@lru_cache(8)
def _prepared(data: DataSettings) -> Prepared:
    """Where the images are, found once in a process."""
    return prepare(data)
