"""Weights of another run as the first weights of a new one: by name and shape, whatever the rest of
the two may be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from udl_dist import methods
from udl_dist.core import files
from udl_dist.errors import TrainingError, UsageError
from udl_dist.experiment import Experiment
from udl_dist.models.opening import Origin, open_folder, unfilled
from udl_dist.runs.run_folder import RunFolder
from udl_dist.storage.uris import is_remote
from udl_dist.training.distributed import Ranks
from udl_dist.training.train_state import Learning

NAMED = 5  # tensors that are named in a line


@dataclass(frozen=True)
class WarmStart:
    """The tensors that fit, where they come from, and what starts anew: name -> why."""

    tensors: Mapping[str, Tensor]
    origin: Origin
    anew: Mapping[str, str]

    def line(self) -> str:
        """What is taken and what is not, for people."""
        names = [f"{name} ({why})" for name, why in list(self.anew.items())[:NAMED]]
        more = f" and {len(self.anew) - NAMED} more" if len(self.anew) > NAMED else ""
        rest = f"; first weights of its own for {', '.join(names)}{more}" if names else ""
        taken, total = len(self.tensors), len(self.tensors) + len(self.anew)
        return f"starts from {taken} of {total} tensors of {self.origin.line()}{rest}"

    def facts(self) -> dict[str, Any]:
        """What is kept in the run folder."""
        origin = self.origin
        return {
            "from": str(origin.folder),
            "weights": origin.weights,
            "method": origin.method,
            "images": origin.images,
            "taken": sorted(self.tensors),
            "anew": dict(self.anew),
        }


def read(source: str, networks: Mapping[str, Tensor]) -> WarmStart:
    """The weights in use of a run or an exported model, as far as they fit; raise UsageError if
    none do.
    """
    opened = open_folder(source)
    given = opened.method.networks.state_dict()
    anew = {}
    for name, value in networks.items():
        if name not in given:
            anew[name] = "not there"
        elif given[name].shape != value.shape:
            anew[name] = f"{list(given[name].shape)} there, {list(value.shape)} here"
    if len(anew) == len(networks):
        raise UsageError(
            f"train.init_from {source!r} is of other networks, none of its tensors fits: name a run"
            " with the same method.network, or leave it out"
        )
    return WarmStart(
        {name: given[name] for name in networks if name not in anew}, opened.origin, anew
    )


def check(experiment: Experiment) -> None:
    """Raise what `read` would raise when the run starts; a run that has a checkpoint goes on from
    that instead.
    """
    folder = experiment.run.folder
    if (
        not experiment.train.init_from
        or is_remote(folder)
        or any(RunFolder(folder).checkpoints.glob("[0-9]*"))
    ):
        return
    method = methods.find(experiment.method_name)(experiment.method, experiment.data.shape)
    with torch.device("meta"), unfilled():
        method.build()
    read(experiment.train.init_from, method.networks.state_dict())


def start(source: str, learning: Learning, ranks: Ranks, folder: RunFolder) -> None:
    """Give a run its first weights, the same ones on every rank; `init.json` keeps what was
    taken.
    """
    found = read(source, learning.method.networks.state_dict())
    marks = ranks.gather([float(int(found.origin.weights[:12], 16))])
    if any(mark != marks[0] for mark in marks):
        raise TrainingError(
            f"train.init_from {source!r} is still being trained, its best checkpoint changed while"
            " it was read: wait for it, or export it"
        )
    learning.start_from(found.tensors)
    if ranks.leads:
        files.write_whole(folder.path / "init.json", json.dumps(found.facts(), indent=1))
        folder.say(found.line())
