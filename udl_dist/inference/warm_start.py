"""Weights of another run as first weights of a new one, matched by name and shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from udl_dist import methods
from udl_dist.core import files
from udl_dist.core.config_schema import as_path
from udl_dist.data.packing.prepare import survey
from udl_dist.errors import TrainingError, UsageError
from udl_dist.experiment import Experiment
from udl_dist.inference import hub_folder, layout
from udl_dist.inference.loading import open_folder
from udl_dist.methods.method import Method
from udl_dist.methods.networks.sizes import MethodMaker
from udl_dist.runs.run_folder import RunFolder
from udl_dist.storage.uris import is_remote
from udl_dist.training.distributed import Ranks
from udl_dist.training.train_state import TrainState

NAMED = 5  # tensors that are named in a line


@dataclass(frozen=True)
class WarmStart:
    """The tensors that fit, where they come from, and those that keep their own first weights."""

    tensors: Mapping[str, Tensor]  # under the names of the method
    weights: str  # sha256 of all that was there
    origin: str  # for people
    facts: Mapping[str, object]  # for `init.json`
    unmatched: Mapping[str, str] = field(default_factory=dict)  # name -> why

    def line(self) -> str:
        """What is copied and what is not, for people."""
        rest = [f"{name} ({why})" for name, why in list(self.unmatched.items())[:NAMED]]
        if len(self.unmatched) > NAMED:
            rest[-1] += f" and {len(self.unmatched) - NAMED} more"
        own = f"; first weights of its own for {', '.join(rest)}" if rest else ""
        count, total = len(self.tensors), len(self.tensors) + len(self.unmatched)
        return f"starts from {count} of {total} tensors of {self.origin}{own}"


def read(source: str, method: Method) -> WarmStart:
    """The weights of a run, an exported model or a diffusers folder that fit a method.

    Raises UsageError if none do, or what `hub_folder.read` raises.
    """
    origin = _given(source, method)
    given, networks, unmatched = origin.tensors, method.saved_tensors(), {}
    for name, value in networks.items():
        if name not in given:
            unmatched[name] = "not there"
        elif given[name].shape != value.shape:
            unmatched[name] = f"{list(given[name].shape)} there, {list(value.shape)} here"
    # Some tensors may differ on purpose, such as a last layer; none in common is a mistake.
    if len(unmatched) == len(networks):
        raise UsageError(
            f"train.init_from {source!r} is of other networks, none of its tensors fits: name a "
            "run with the same method.network, or leave it out"
        )
    tensors = {name: given[name] for name in networks if name not in unmatched}
    return replace(origin, tensors=tensors, unmatched=unmatched)


def _given(source: str, method: Method) -> WarmStart:
    """All tensors of the source."""
    folder = as_path(source)
    if hub_folder.is_hub_folder(folder):
        tensors = hub_folder.read(folder, method)
        sha256 = layout.described(folder / hub_folder.WEIGHTS)["sha256"]
        kind = f"{method.hub().class_name} of diffusers"
        return WarmStart(
            tensors, sha256, f"{folder}: {kind}", {"from": str(folder), "method": kind}
        )
    # As a model is opened for use: its best checkpoint, averaged weights where there are any.
    opened = open_folder(source)
    origin = opened.origin
    facts = {
        "from": str(origin.folder),
        "method": origin.method,
        "images": origin.images,
    }
    return WarmStart(opened.method.saved_tensors(), origin.weights, origin.line(), facts)


def check(experiment: Experiment) -> None:
    """Raise what `read` would raise when the run starts; a run with a checkpoint resumes
    instead.
    """
    folder, source = experiment.run.folder, experiment.train.init_from
    # Whether a remote folder has a checkpoint is known only to the run, once it has its files.
    if not source or is_remote(folder) or any(RunFolder(folder).checkpoints.glob("[0-9]*")):
        return
    kind = methods.find(experiment.method_name)
    classes = survey(experiment.data).classes
    # Names and shapes are enough here, so no memory is filled.
    method = MethodMaker(kind, experiment.method, experiment.data.shape, classes).on_meta()
    read(source, method)


def start(source: str, learning: TrainState, ranks: Ranks, folder: RunFolder) -> None:
    """Give a run its first weights, the same on every rank; `init.json` lists what was copied."""
    found = read(source, learning.method)
    # 12 hex digits are 48 bits, which a float64 holds exactly. Ranks read the source at different
    # moments, and a run in training may have a new best checkpoint in between.
    marks = ranks.gather([float(int(found.weights[:12], 16))])
    if any(mark != marks[0] for mark in marks):
        raise TrainingError(
            f"train.init_from {source!r} is still being trained, its best checkpoint changed while "
            "it was read: wait for it, or export it"
        )
    # The optimizers start from nothing: their moments belong to the other run.
    learning.start_from(found.tensors)
    if ranks.is_main:
        facts = {
            **found.facts,
            "weights": found.weights,
            "taken": sorted(found.tensors),
            "anew": dict(found.unmatched),
        }
        files.write_whole(folder.path / "init.json", json.dumps(facts, indent=1))
        folder.say(found.line())
