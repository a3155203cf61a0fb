"""From a run's checkpoint or an exported model to a method with its weights."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from udl_dist import experiment as experiments
from udl_dist import methods
from udl_dist.core import config_schema
from udl_dist.data.images.headers import Fit
from udl_dist.errors import TrainingError, UsageError
from udl_dist.evaluation.fitted import Mixture, ReferenceCodes
from udl_dist.evaluation.io import read_tensors
from udl_dist.experiment import Experiment
from udl_dist.inference import layout
from udl_dist.methods.method import Method
from udl_dist.methods.networks.sizes import MethodMaker
from udl_dist.runs.run_folder import RunFolder, winner_of
from udl_dist.training import checkpoint as checkpoints


@dataclass(frozen=True)
class Origin:
    """Where a model comes from: everything that a metric or a card says of it."""

    folder: Path
    method: str
    images: int  # that it was trained on
    chosen: str  # which checkpoint, in words
    averaged: bool
    fit: Fit
    weights: str  # sha256 of the file, or of the checkpoint's two
    figures: Mapping[str, float]  # held-out metrics of the checkpoint
    data: str = ""  # fingerprint of what it was trained on
    held_out: int = 0  # images that those metrics are means over; 0: not known
    experiment: Experiment | None = None  # of a run
    config: Mapping[str, Any] = field(default_factory=dict)  # of an exported model
    notes: tuple[str, ...] = ()  # what was ignored while opening it

    def line(self) -> str:
        """What was opened, for people."""
        averaged = ", averaged weights" if self.averaged else ""
        trained = f"{self.method} after {self.images:,} images"
        return f"{self.folder}: {trained} ({self.chosen}{averaged})"


@dataclass(frozen=True)
class LoadedModel:
    """A method with its weights, in evaluation mode, and where it comes from."""

    method: Method
    origin: Origin
    mixture: Mixture | None
    reference_codes: ReferenceCodes | None


def open_folder(folder: Path | str, checkpoint: str | int = "best") -> LoadedModel:
    """Open a run, an exported model, or the winner of a search; raise UsageError for another."""
    asked = config_schema.as_path(str(folder))
    path = winner_of(asked)
    if (path / "experiment.toml").is_file():
        searched = f"{asked} is a search: this is the best run of its winner"
        return _open_run(RunFolder(path), checkpoint, [searched] if path != asked else [])
    if not path.is_dir():
        raise UsageError(f"there is no folder {path}: give a run folder or an exported model")
    if not layout.is_model(path):
        raise UsageError(
            f"{path} is neither a run folder nor an exported model: it has no experiment.toml and "
            f"no {layout.CONFIG}"
        )
    if checkpoint != "best":
        raise UsageError(
            f"{path} is an exported model and has one set of weights: leave the checkpoint out"
        )
    return _open_model(path)


def _open_run(run: RunFolder, asked: str | int, notes: list[str]) -> LoadedModel:
    experiment = experiments.load(run.experiment, {})
    path, chosen = _choose(run, experiment, asked, notes)
    files, facts = checkpoints.load(path, ("networks", "average"))
    shape, weights = experiment.data.shape, checkpoints.weights(path)
    kind = methods.find(experiment.method_name)
    # An average may cover some of the networks only (method.averaged).
    tensors = files["networks"] | files.get("average", {})
    make = MethodMaker(kind, experiment.method, shape, tuple(facts.get("classes", ())))
    method = _filled(make, tensors, path)
    mixture, codes = _fitted_of_run(run.path, latent_dim(method), weights, notes)
    held_out = facts.get("held_out")
    origin = Origin(
        run.path,
        experiment.method_name,
        int(facts["images"]),
        chosen,
        averaged="average" in files,
        fit=experiment.data.fit,
        weights=weights,
        figures=dict(facts.get("figures", {})),
        data=str(facts.get("data", "")),
        held_out=held_out if isinstance(held_out, int) else 0,
        experiment=experiment,
        notes=tuple(notes),
    )
    return LoadedModel(method, origin, mixture, codes)


def latent_dim(method: Method) -> int:
    """The numbers in the latent of an image; 0 without latents."""
    return math.prod(method.latent_shape) if method.latent_shape else 0


def _choose(
    run: RunFolder, experiment: Experiment, asked: str | int, notes: list[str]
) -> tuple[Path, str]:
    """The checkpoint that was asked for, and why it is that one."""
    found = checkpoints.complete(run.checkpoints)
    if not found:
        raise TrainingError(
            f"{run.path} has no checkpoint yet: train it first (udl train {run.experiment})"
        )
    best = experiment.best_metric
    if asked == "best" and (path := checkpoints.best_of(found, best, experiment.sign_of(best))):
        return path, f"best of {len(found)} checkpoints by {best}"
    if asked in ("best", "last"):
        newest = checkpoints.newest(run.checkpoints, notes.append)
        assert newest, "there is one, or newest has raised"
        return newest, "the last checkpoint"
    if str(asked).isdecimal() and (path := _numbered(run, int(asked))):
        return path, "as asked"
    numbers = {int(one.name) for one in [*found, *checkpoints.complete(run.followed)]}
    there = ", ".join(map(str, sorted(numbers)))
    raise UsageError(f"{run.path} has no checkpoint {asked!r}: there are best, last, {there}")


def _numbered(run: RunFolder, images: int) -> Path | None:
    """The checkpoint after so many images; its copy of --follow, if that has the same weights."""
    folders = (run.checkpoints, run.followed)
    own, copy = (checkpoints.path_of(folder, images) for folder in folders)
    if not copy.is_dir():
        return own if own.is_dir() else None
    try:
        return copy if checkpoints.weights(own) == checkpoints.weights(copy) else own
    except (OSError, ValueError, KeyError, TypeError):  # deleted by the run, or damaged
        return copy


def _open_model(folder: Path) -> LoadedModel:
    config = layout.read_config(folder)
    shape, files = layout.shape_of(config, folder), config["files"]
    kind = methods.find(config["method"])
    settings: Any = config_schema.from_dict(kind.Settings, config["settings"], "method.")
    path = folder / layout.WEIGHTS
    tensors, _ = read_tensors(path, "safetensors file", "export it again")
    method = _filled(
        MethodMaker(kind, settings, shape, tuple(config.get("classes", ()))), tensors, path
    )
    origin = Origin(
        folder,
        config["method"],
        config["images"],
        "an exported model",
        averaged=bool(config.get("averaged")),
        # From a file of anyone: whatever else it says is the default.
        fit="pad" if config["fit"] == "pad" else "crop",
        weights=files[layout.WEIGHTS]["sha256"],
        figures=dict(config.get("figures", {})),
        data=str(config.get("data", "")),
        config=config,
    )
    mixture, codes = None, None
    size = latent_dim(method)
    if layout.PRIOR in files:
        preferred = config.get("mixture_preferred") is True
        mixture = Mixture.load(folder / layout.PRIOR, size, preferred)
    if layout.CODES in files:
        codes, _ = ReferenceCodes.load(folder / layout.CODES, size)
    return LoadedModel(method, origin, mixture, codes)


def _filled(make: MethodMaker, tensors: Mapping[str, Tensor], path: Path) -> Method:
    """The method around its weights, made on the meta device: a claimed size takes no memory."""
    # Where a loss had its files says nothing here, and those of a stranger's model are not opened.
    without = replace(make.settings, **dict.fromkeys(make.kind.loss_files, ""))
    make = replace(make, settings=without)
    method = make.on_meta()
    wanted = {name: _in_words(value) for name, value in method.saved_tensors().items()}
    given = {name: _in_words(value) for name, value in tensors.items()}
    names = sorted(wanted.keys() | given.keys())
    if name := next((name for name in names if wanted.get(name) != given.get(name)), None):
        raise TrainingError(
            f"{path} is of other networks than its settings describe: {name} should be "
            f"{wanted.get(name, 'absent')}, is {given.get(name, 'absent')}"
        )
    method.load_state_dict(tensors, strict=False, assign=True)
    if any(value.is_meta for value in itertools.chain(method.parameters(), method.buffers())):
        # Frozen networks, and buffers that no file holds.
        method = make()
        method.load_saved(tensors)
    return method.requires_grad_(False).eval()


def _in_words(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _fitted_of_run(
    folder: Path, size: int, weights: str, notes: list[str]
) -> tuple[Mixture | None, ReferenceCodes | None]:
    """The mixture and the reference codes of this checkpoint; those of another leave a note."""
    mixture, codes = None, None
    prior, facts = folder / layout.PRIOR, folder / layout.PRIOR_FACTS
    # The facts are written last: without them a fit was cut short.
    if prior.exists() and facts.exists():
        fitted = json.loads(facts.read_text())
        if fitted.get("weights") == weights:
            mixture = Mixture.load(prior, size, fitted.get("preferred") is True)
        else:
            notes.append(
                f"{layout.PRIOR} was fitted after {fitted.get('images')} images, not to this "
                "checkpoint: run udl fit-prior again to use one"
            )
    if (stored := folder / layout.CODES).exists():
        codes, of_weights = ReferenceCodes.load(stored, size)
        if of_weights != weights:
            codes = None
            notes.append(
                f"{layout.CODES} is of another checkpoint: run udl fit-outliers again to use one"
            )
    return mixture, codes
