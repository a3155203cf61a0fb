"""From a folder to a method with its weights: a run's checkpoint or an exported model, safetensors
and JSON alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from udl_dist import experiment as experiments
from udl_dist import methods
from udl_dist.core import config_schema
from udl_dist.data.images.headers import Fit, Shape
from udl_dist.errors import DataError, TrainingError, UsageError
from udl_dist.evaluation.oddness import Crowd
from udl_dist.experiment import Experiment
from udl_dist.methods import Method
from udl_dist.models import crowd as crowds
from udl_dist.models import layout
from udl_dist.models.prior import Mixture
from udl_dist.runs.run_folder import RunFolder, winner_of
from udl_dist.training import checkpoint as checkpoints

LARGEST_SIDE = 4096
PRIOR_FACTS = "prior.json"


@dataclass(frozen=True)
class Origin:
    """Where a model comes from: everything that a figure or a card says of it."""

    folder: Path
    method: str
    images: int  # that it was trained on
    chosen: str  # which checkpoint, in words
    averaged: bool
    fit: Fit
    weights: str  # sha256 of the file, or of the checkpoint's two
    figures: Mapping[str, float]
    data: str = ""  # fingerprint of what it was trained on
    experiment: Experiment | None = None  # of a run
    config: Mapping[str, Any] = field(default_factory=dict)  # of an exported model
    notes: tuple[str, ...] = ()  # what was passed over on the way

    def line(self) -> str:
        """What was opened, for people."""
        averaged = ", averaged weights" if self.averaged else ""
        return (
            f"{self.folder}: {self.method} after {self.images:,} images ({self.chosen}{averaged})"
        )


@dataclass(frozen=True)
class Opened:
    """A method with its weights, in evaluation, and where it comes from."""

    method: Method
    shape: Shape
    origin: Origin
    mixture: Mixture | None
    crowd: Crowd | None


def open_folder(folder: Path | str, checkpoint: str | int = "best") -> Opened:
    """Open a run folder, an exported model, or the winner of a search; raise UsageError for a
    folder that is none.
    """
    asked = config_schema.as_path(str(folder))
    path = winner_of(asked)
    if (path / "experiment.toml").is_file():
        notes = (
            [f"{asked} is a search: this is the best run of its winner"] if path != asked else []
        )
        return _open_run(RunFolder(path), checkpoint, notes)
    if not path.is_dir():
        raise UsageError(f"there is no folder {path}: give a run folder or an exported model")
    if not layout.is_model(path):
        raise UsageError(
            f"{path} is neither a run folder nor an exported model: it has no experiment.toml and"
            f" no {layout.CONFIG}"
        )
    if checkpoint != "best":
        raise UsageError(
            f"{path} is an exported model and has one set of weights: leave the checkpoint out"
        )
    return _open_model(path)


def latent_dim(method: Method, shape: Shape) -> int:
    """How many numbers a latent has; 0 for a method without latents."""
    device = next(method.networks.parameters()).device
    with torch.no_grad():
        if method.can("prior"):
            return method.prior(torch.zeros(1, dtype=torch.int64, device=device)).shape[1]
        if method.can("encode"):
            return method.encode(torch.zeros(1, *shape, device=device)).shape[1]
    return 0


def _open_run(run: RunFolder, checkpoint: str | int, notes: list[str]) -> Opened:
    experiment = experiments.load(run.experiment, {})
    path, chosen = _choose(run, experiment, checkpoint, notes)
    files, facts = checkpoints.load(path, ("networks", "average"))
    shape = experiment.data.shape
    method = methods.find(experiment.method_name)(experiment.method, shape)
    _fill(method, files["networks"] | files.get("average", {}), path)
    used = checkpoints.weights(path)
    mixture = _mixture_of_run(run.path, method, shape, used, notes)
    crowd = _crowd_of_run(run.path, method, shape, used, notes)
    origin = Origin(
        run.path,
        experiment.method_name,
        int(facts["images"]),
        chosen,
        "average" in files,
        experiment.data.fit,
        used,
        dict(facts.get("figures", {})),
        str(facts.get("data", "")),
        experiment,
        notes=tuple(notes),
    )
    return Opened(method, shape, origin, mixture, crowd)


def _choose(
    run: RunFolder, experiment: Experiment, asked: str | int, notes: list[str]
) -> tuple[Path, str]:
    """The checkpoint that was asked for, and why it is that one."""
    found = checkpoints.complete(run.checkpoints)
    if not found:
        raise TrainingError(
            f"{run.path} has no checkpoint yet: train it first (udl train {run.experiment})"
        )
    best = experiment.run.best or f"val/{methods.find(experiment.method_name).best}"
    if asked == "best" and (path := checkpoints.best_of(found, best)):
        return path, f"best of the {len(found)} that are kept, by {best}"
    if asked in ("best", "last"):
        newest = checkpoints.newest(run.checkpoints, notes.append)
        assert newest, "there is one, or newest has raised"
        return newest, "the last checkpoint"
    path = _numbered(run, int(asked)) if str(asked).isdecimal() else None
    if path is None:
        every = {int(one.name) for one in [*found, *checkpoints.complete(run.followed)]}
        there = ", ".join(map(str, sorted(every)))
        raise UsageError(f"{run.path} has no checkpoint {asked!r}: there are best, last, {there}")
    return path, "as asked"


def _numbered(run: RunFolder, images: int) -> Path | None:
    """The checkpoint after so many images; its copy, which no run deletes, where it is of the same
    weights.
    """
    own, copy = (checkpoints.path_of(folder, images) for folder in (run.checkpoints, run.followed))
    if not copy.is_dir():
        return own if own.is_dir() else None
    try:
        return copy if checkpoints.weights(own) == checkpoints.weights(copy) else own
    except (OSError, ValueError, KeyError, TypeError):
        # the run has deleted its own, or it is damaged
        return copy


def _open_model(folder: Path) -> Opened:
    config = layout.read_config(folder)
    shape = _shape(config["shape"], folder)
    kind = methods.find(config["method"])
    method = kind(config_schema.from_dict(kind.Settings, config["settings"], "method."), shape)
    path = folder / layout.WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} holds no safetensors ({' '.join(str(error).split())}): export it again"
        ) from None
    _fill(method, tensors, path)
    origin = Origin(
        folder,
        config["method"],
        config["images"],
        "an exported model",
        bool(config.get("averaged")),
        "pad" if config["fit"] == "pad" else "crop",
        config["files"][layout.WEIGHTS]["sha256"],
        dict(config.get("figures", {})),
        str(config.get("data", "")),
        config=config,
    )
    mixture = crowd = None
    if layout.PRIOR in config["files"]:
        mixture = Mixture.load(folder / layout.PRIOR, latent_dim(method, shape))
    if layout.CROWD in config["files"]:
        crowd, _ = crowds.load(folder / layout.CROWD, latent_dim(method, shape))
    return Opened(method, shape, origin, mixture, crowd)


def _fill(method: Method, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Build the method around its weights: on torch's meta device, so that no claim of a size takes
    memory.
    """
    with torch.device("meta"), unfilled():
        method.build()
    wanted = {
        name: (value.shape, value.dtype) for name, value in method.networks.state_dict().items()
    }
    given = {name: (value.shape, value.dtype) for name, value in tensors.items()}
    if odd := sorted(
        name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name)
    ):
        of, there = wanted.get(odd[0]), given.get(odd[0])
        raise TrainingError(
            f"{path} is of other networks than its settings describe: {odd[0]} should be "
            f"{_in_words(of)}, is {_in_words(there)}"
        )
    method.networks.load_state_dict(tensors, assign=True)
    if any(value.is_meta for value in method.networks.buffers()):  # those that no file keeps
        method.build()
        method.networks.load_state_dict(tensors)
    method.networks.requires_grad_(False).eval()


class unfilled(TorchFunctionMode):
    """Leaves first weights undrawn: on the meta device a draw does nothing but import torch's
    compiler, for 1 s.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("normal_", "uniform_", "trunc_normal_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _in_words(tensor: tuple[torch.Size, torch.dtype] | None) -> str:
    return f"{str(tensor[1]).removeprefix('torch.')} {list(tensor[0])}" if tensor else "absent"


def _mixture_of_run(
    folder: Path, method: Method, shape: Shape, weights: str, notes: list[str]
) -> Mixture | None:
    """The mixture that was fitted to this checkpoint; one of another is left alone, with a note."""
    facts = folder / PRIOR_FACTS
    if not facts.exists() or not (folder / layout.PRIOR).exists():
        return None
    fitted = json.loads(facts.read_text())
    if fitted.get("weights") != weights:
        notes.append(
            f"{layout.PRIOR} was fitted after {fitted.get('images')} images, not to this"
            " checkpoint: run udl fit-prior again to use one"
        )
        return None
    return Mixture.load(folder / layout.PRIOR, latent_dim(method, shape))


def _crowd_of_run(
    folder: Path, method: Method, shape: Shape, weights: str, notes: list[str]
) -> Crowd | None:
    """The codes that were kept of this checkpoint; those of another are left alone, with a note."""
    if not (folder / layout.CROWD).exists():
        return None
    crowd, fitted = crowds.load(folder / layout.CROWD, latent_dim(method, shape))
    if fitted != weights:
        notes.append(
            f"{layout.CROWD} is of another checkpoint: run udl fit-outliers again to use one"
        )
        return None
    return crowd


def _shape(given: list[Any], folder: Path) -> Shape:
    sides = tuple(given)
    if (
        len(sides) != 3
        or not all(type(side) is int for side in sides)
        or sides[0] not in (1, 3)
        or not all(1 <= side <= LARGEST_SIDE for side in sides[1:])
    ):
        raise DataError(
            f"{folder / layout.CONFIG}: {given!r} is no shape of images (channels, height, width): "
            "export it again"
        )
    return sides[0], sides[1], sides[2]
