"""A model as a folder of diffusers: config.json and one safetensors file, written and read.

The product does not need diffusers: where it is installed, it reads what was written.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from udl_dist.errors import DataError, TrainingError, UsageError
from udl_dist.evaluation.io import read_tensors
from udl_dist.inference import layout
from udl_dist.inference.calibration import LatentStatistics
from udl_dist.inference.formats import greatest_difference
from udl_dist.inference.model import Model
from udl_dist.methods.method import Method
from udl_dist.methods.networks.code_files import one_line, silenced
from udl_dist.methods.networks.hub import HubLayout

WEIGHTS = "diffusion_pytorch_model.safetensors"
VERSION = "0.42.1"  # of diffusers, whose layout this is
# What no name or shape of a tensor shows -> diffusers' value where the configuration has none.
ARITHMETIC = {"norm_num_groups": 32, "act_fn": "silu", "mid_block_add_attention": True}
# Names of attention in files of 2022, among them the autoencoder of Stable Diffusion 1.
FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
NAMED = 3  # tensors that are named in a line


def hub_of(model: Model) -> HubLayout:
    """The layout of a model; raise UsageError for a method that diffusers has no class for."""
    if not model.can("hub"):
        raise UsageError(
            f"{model.origin.folder}: diffusers has no class for method {model.origin.method}: "
            "export it without --format diffusers, or with --onnx for other programs"
        )
    return model.method.hub()


def write(model: Model, latents: LatentStatistics | None, folder: Path) -> None:
    """Write configuration and weights; without statistics diffusers has its default scale."""
    hub, tensors = hub_of(model), model.method.saved_tensors()
    measured = latents.config() if latents else {}
    statistics = {key: value for key, value in measured.items() if key in hub.statistics}
    config = {
        layout.HUB_CLASS: hub.class_name,
        "_diffusers_version": VERSION,
        **hub.config,
        **statistics,
    }
    (folder / layout.CONFIG).write_text(json.dumps(config, indent=2))
    # safetensors refuses strided tensors, and convolutions may be channels-last.
    stored = {theirs: tensors[own].contiguous() for theirs, own in hub.names.items()}
    save_file(stored, folder / WEIGHTS, {"format": "pt"})


def is_hub_folder(folder: Path) -> bool:
    """Whether a folder has the configuration of a model of diffusers."""
    path = folder / layout.CONFIG
    return path.is_file() and layout.HUB_CLASS in layout.parsed(path)


def read(folder: Path, method: Method) -> dict[str, Tensor]:
    """The tensors of a diffusers folder under the names of `method`, of any shapes.

    Raises UsageError for another class or arithmetic, DataError for pickled weights and for tensors
    that are missing or too many.
    """
    config = layout.parsed(folder / layout.CONFIG)
    there = f"{folder} is a {config[layout.HUB_CLASS]!r} of diffusers"
    if not method.can("hub"):
        raise UsageError(f"{there}, which has no class for this method: name a run of this method")
    hub = method.hub()
    if config[layout.HUB_CLASS] != hub.class_name:
        raise UsageError(
            f"{there}, this method is its {hub.class_name}: name a folder of that class"
        )
    _refuse_other_arithmetic(folder, config, hub)
    tensors, _ = read_tensors(_weights_in(folder), "safetensors file", "copy it again")
    tensors = {_renamed(name): value for name, value in tensors.items()}
    missing, unknown = hub.names.keys() - tensors.keys(), tensors.keys() - hub.names.keys()
    for names, what in ((missing, "lacks"), (unknown, "has")):
        if names:
            first = ", ".join(sorted(names)[:NAMED])
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            raise DataError(
                f"{folder / WEIGHTS} {what} {first}{more}, which this method "
                f"{'needs' if what == 'lacks' else 'lacks'}: set method.widths, method.blocks and "
                "method.attention to those of its config.json, or copy the file again"
            )
    return hub.complete({own: tensors[theirs] for theirs, own in hub.names.items()})


def own_difference(model: Model, folder: Path, images: Tensor) -> float:
    """The greatest difference of latents and reconstructions, written and read again."""
    again = copy.deepcopy(model.method)
    # What should have been written and was not makes the difference NaN, which is refused.
    nothing = {
        name: torch.full_like(value, torch.nan)
        for name, value in again.saved_tensors().items()
        if value.is_floating_point()
    }
    again.load_saved(again.saved_tensors() | nothing | read(folder, again))
    latents = model.encode(images), again.encode(images)
    return greatest_difference([latents, (model.reconstruct(images), again.reconstruct(images))])


def diffusers_difference(model: Model, folder: Path, images: Tensor) -> float | None:
    """The greatest difference from reconstructions by diffusers; None where it is not installed."""
    name = hub_of(model).class_name
    with silenced("diffusers", logging.ERROR), torch.no_grad():
        try:
            import diffusers

            kind: Any = getattr(diffusers, name)
        # RuntimeError: what its lazy imports make of a broken installation.
        except (ImportError, RuntimeError):
            return None
        try:
            # Low memory would need another package.
            network = kind.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
            found: Tensor = network(images).sample
        except Exception as error:  # it raises many kinds
            raise TrainingError(f"diffusers cannot read what was written: {one_line(error)}") from (
                error
            )
    return float((found.clamp(-1, 1) - model.reconstruct(images)).abs().max())


def _refuse_other_arithmetic(folder: Path, config: Mapping[str, Any], hub: HubLayout) -> None:
    for key, default in ARITHMETIC.items():
        theirs, own = config.get(key, default), hub.config.get(key, default)
        if theirs != own:
            raise UsageError(
                f"{folder / layout.CONFIG}: {key} is {theirs!r}, that of this method {own!r}, and "
                "the same weights would give other images: set method.attention or method.widths "
                "to fit, or name another folder"
            )


def _weights_in(folder: Path) -> Path:
    path = folder / WEIGHTS
    if path.is_file():
        return path
    pickles = [one.name for one in folder.iterdir() if one.suffix in layout.PICKLES]
    if pickles:
        raise DataError(
            f"{folder} has no {WEIGHTS} but {min(pickles)}, a pickle that may run code: save it by "
            "save_pretrained of diffusers, which writes safetensors"
        )
    raise DataError(f"{folder} has no {WEIGHTS}: copy it again")


def _renamed(name: str) -> str:
    """The present name of a tensor."""
    parts = name.split(".")
    if "attentions" in parts:
        parts[-2] = FORMER.get(parts[-2], parts[-2])
    return ".".join(parts)
