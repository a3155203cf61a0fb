"""`udl export`: the folder from start to end, complete or absent. Knows no format of other programs
(see `formats`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from udl_dist import __version__
from udl_dist.core import config_schema, rng
from udl_dist.core.files import finish_folder, partial_folder
from udl_dist.data.loader.opening import open_streams
from udl_dist.data.packing.prepare import prepare
from udl_dist.errors import DataError, TrainingError, UsageError
from udl_dist.evaluation import pictures
from udl_dist.export import card, formats
from udl_dist.methods import Batch
from udl_dist.models import crowd as crowds
from udl_dist.models import layout
from udl_dist.models.model import Model, load
from udl_dist.using.calibration import calibration
from udl_dist.using.outcome import Outcome, outcome
from udl_dist.using.sources import as_batch

CHECKED_IMAGES = 16
TOLERANCE = 1e-4
LONGEST_LICENSE = 500  # characters of what a card repeats


@dataclass(frozen=True)
class ExportSettings:
    """What is exported beside the weights."""

    onnx: bool = False  # also encoder, decoder and whole as ONNX
    torch_export: bool = False  # also the same as .pt2
    license: str = "other"  # of the model, as a hub names it
    title: str = ""  # of the card; empty: the name of the run folder


def export(model: Model, dest: Path, asked: ExportSettings) -> Outcome:
    """Write the model folder `dest`, always on the CPU; raise UsageError for a folder that holds
    something, TrainingError if what was written does not give what the model gives.
    """
    experiment = model.origin.experiment
    if experiment is None:
        raise UsageError(f"{model.origin.folder} is an exported model already: give its run folder")
    if asked.onnx:
        formats.require_onnx()
    # files must open everywhere, and are compared within less than TF32 keeps
    if model.device.type != "cpu":
        model = load(model.origin.folder, "cpu", model.origin.images)
    images, seen, notes = _real_images(model)
    with partial_folder(dest) as folder:
        save_file(
            {
                name: value.cpu().contiguous()
                for name, value in model.method.networks.state_dict().items()
            },
            folder / layout.WEIGHTS,
        )
        if model.mixture:
            model.mixture.save(folder / layout.PRIOR)
        if model.crowd:
            (folder / layout.CROWD).write_bytes(crowds.as_bytes(model.crowd, model.origin.weights))
        differences = formats.write(model, images, folder, asked.onnx, asked.torch_export)
        for name, picture in pictures.draw(model.method, images, rng.keys(0, 64), 8).items():
            picture.save(folder / f"{name}.png")
        if not notes:
            (folder / layout.CALIBRATION).write_text(calibration(model).as_json())
        config = _config(model, folder)
        (folder / layout.CONFIG).write_text(json.dumps(config, indent=1))
        text = card.written(model, asked.license, _files(folder), seen, asked.title)
        (folder / layout.CARD).write_text(text, encoding="utf-8")
        differences = {
            layout.WEIGHTS: _difference(model, load(folder), images.images)
        } | differences
        _refuse_different(differences)
        written = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        total = finish_folder(folder, dest)
    listed = [
        f"  {name:24} {size / 1e6:10.3f} MB" + _compared(differences.get(name))
        for name, size in written.items()
    ]
    said = [*notes, f"{dest}: {len(written)} files, {total / 1e6:,.1f} MB", *listed]
    return outcome(model, said, dest=str(dest), files=written, differences=differences)


def _real_images(model: Model) -> tuple[Batch, card.Seen, list[str]]:
    """Held-out images to compare on; drawn ones, with a note, where the data is no longer there."""
    experiment = model.origin.experiment
    assert experiment
    try:
        stream, held_out = open_streams(prepare(experiment.data), experiment.train.seed)
        batch = as_batch(next((held_out or stream).once(64)))
        kept = f"{held_out.records:,}" if held_out else "none"
        licenses = {dataset.index.about.license for dataset in stream.datasets} - {""}
        return (
            batch,
            card.Seen(f"{stream.records:,}", kept, " ".join(sorted(licenses))[:LONGEST_LICENSE]),
            [],
        )
    except (DataError, UsageError) as error:
        drawn = rng.uniform(rng.keys(0, 64), "images", model.shape) * 2 - 1
        note = (
            f"the data cannot be read ({error}): compared on noise, and the card has no figures of"
            " held-out images"
        )
        return Batch(drawn, rng.keys(0, 64), rng.keys(0, 64), 0), card.Seen(), [note]


def _config(model: Model, folder: Path) -> dict[str, Any]:
    origin = model.origin
    assert origin.experiment
    return {
        "format": layout.FORMAT,
        "library": f"udl-dist {__version__}",
        "method": origin.method,
        "settings": config_schema.to_dict(model.method.settings),
        "shape": list(model.shape),
        "fit": origin.fit,
        "latent_dim": model.latent_dim,
        "images": origin.images,
        "checkpoint": origin.weights,
        "averaged": origin.averaged,
        "data": origin.data,
        "figures": dict(origin.figures),
        "files": {name: layout.described(folder / name) for name in _files(folder)},
    }


def _files(folder: Path) -> list[str]:
    return [
        path.name
        for path in sorted(folder.iterdir())
        if path.name not in (layout.CONFIG, layout.CARD)
    ]


def _difference(model: Model, again: Model, images: Tensor) -> float:
    """The greatest difference between what two models give."""
    pairs = []
    if model.can("encode"):
        pairs.append((model.encode(images), again.encode(images)))
    if model.can("reconstruct"):
        pairs.append((model.reconstruct(images), again.reconstruct(images)))
    if model.can("sample"):
        pairs.append((model.sample(CHECKED_IMAGES), again.sample(CHECKED_IMAGES)))
    return max(float((one - other).abs().max()) for one, other in pairs)


def _refuse_different(differences: Mapping[str, float]) -> None:
    for name, difference in differences.items():
        if not difference <= TOLERANCE:  # not a number is none
            raise TrainingError(
                f"{name} gives other numbers than the model: up to {difference:.2g} apart, "
                f"{TOLERANCE:g} is allowed: nothing was exported"
            )


def _compared(difference: float | None) -> str:
    return "" if difference is None else f"  read again: differs by {difference:.1e} at most"
