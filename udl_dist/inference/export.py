"""`udl export`: the folder of a model, complete or absent; see `formats` for other programs.

Everything that is written is read again and compared on real images before the folder appears.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import save_file
from torch import Tensor

from udl_dist import __version__
from udl_dist.core import config_schema, rng
from udl_dist.core.files import finish_folder, partial_folder
from udl_dist.errors import DataError, TrainingError, UsageError
from udl_dist.evaluation import pictures
from udl_dist.inference import card, formats, hub_folder, layout
from udl_dist.inference.calibration import calibration, latent_statistics
from udl_dist.inference.model import Model, load
from udl_dist.inference.outcome import Outcome, outcome
from udl_dist.inference.sources import as_batch, open_run
from udl_dist.methods.method import Batch

CHECKED_IMAGES = 16
# onnxruntime differs by about 1e-7 on the same weights: 1e-4 is another network.
TOLERANCE = 1e-4
LONGEST_LICENSE = 500  # characters of what a card repeats
NOT_SCALED = (
    "latents were not measured, so scaling_factor is absent and diffusers assumes 0.18215: export "
    "where the data is, or scale by 1 / std of your latents"
)
Format = Literal["udl", "diffusers"]  # our own folder, or what from_pretrained of diffusers loads


@dataclass(frozen=True)
class ExportSettings:
    """What is exported besides the weights."""

    onnx: bool = False  # also encoder, decoder and whole as ONNX
    torch_export: bool = False  # also the same as .pt2
    license: str = "other"  # of the model, as a hub names it
    title: str = ""  # of the card; empty: the name of the run folder
    format: Format = "udl"


@dataclass(frozen=True)
class RealImages:
    """Images that exported files are compared on, and what is known of the data."""

    batch: Batch
    facts: card.DataFacts
    missing: str = ""  # why they are noise, in words; "" for images of the run


def export(model: Model, dest: Path, asked: ExportSettings) -> Outcome:
    """Write the model folder `dest`, always on the CPU.

    Raises UsageError for a folder that is not empty, or a method that the format has no class for;
    TrainingError if what was written does not give what the model gives.
    """
    if model.origin.experiment is None:
        raise UsageError(f"{model.origin.folder} is an exported model already: give its run folder")
    if asked.onnx:
        formats.require_onnx()
    for_hub = asked.format == "diffusers"
    if for_hub:
        hub_folder.hub_of(model)
        if asked.onnx or asked.torch_export:
            raise UsageError(
                "--onnx and --torch-export belong to the format udl: export twice, into two folders"
            )
    if model.device.type != "cpu":  # files must open everywhere, and TF32 is less exact
        model = load(model.origin.folder, "cpu", model.origin.images)
    # Read before anything is written; every file is then compared on these images.
    real = _real_images(model)
    said = [real.missing] if real.missing else []
    # Under a temporary name: a folder that failed a check never gets its own.
    with partial_folder(dest) as folder:
        write = _write_for_hub if for_hub else _write_own
        differences, notes = write(model, real, folder, asked)
        for name, difference in differences.items():
            if not difference <= TOLERANCE:  # NaN is refused too
                raise TrainingError(
                    f"{name} gives other numbers than the model: up to {difference:.2g} apart, "
                    f"{TOLERANCE:g} is allowed: nothing was exported"
                )
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        total = finish_folder(folder, dest)
    said += [*notes, f"{dest}: {len(sizes)} files, {total / 1e6:,.1f} MB"]
    for name, size in sizes.items():
        compared = ""
        if name in differences:
            compared = f"  read again: differs by {differences[name]:.1e} at most"
        said.append(f"  {name:24} {size / 1e6:10.3f} MB{compared}")
    return outcome(model, said, dest=str(dest), files=sizes, differences=differences)


def _write_own(
    model: Model, real: RealImages, folder: Path, asked: ExportSettings
) -> tuple[dict[str, float], list[str]]:
    """Write our own folder; return the greatest difference of each file, and notes."""
    _write_tensors(model, folder)
    # Compared right after it is written, by the runtime that would read it.
    others = formats.write(model, real.batch, folder, asked.onnx, asked.torch_export)
    _draw(model, real, folder)
    # Thresholds and the spread of latents need images of the run: noise has neither.
    if not real.missing:
        (folder / layout.CALIBRATION).write_text(calibration(model).as_json())
    files = sorted(path.name for path in folder.iterdir())
    text = card.text(model, asked.license, files, real.facts, asked.title)
    (folder / layout.CARD).write_text(text, encoding="utf-8")
    # Last, because it lists the size and sha256 of all other files.
    _write_config(model, folder, files)
    # Opened as a user opens it, with every check of `layout`.
    return {layout.WEIGHTS: _difference(model, load(folder), real.batch.images)} | others, []


def _write_for_hub(
    model: Model, real: RealImages, folder: Path, asked: ExportSettings
) -> tuple[dict[str, float], list[str]]:
    """Write a folder of diffusers; return the same."""
    hub, latents, said = hub_folder.hub_of(model), None, list[str]()
    if hub.statistics:
        latents = None if real.missing else latent_statistics(model)
        said.append(latents.line() if latents else NOT_SCALED)
    hub_folder.write(model, latents, folder)
    _draw(model, real, folder)
    files = sorted(path.name for path in folder.iterdir())
    facts = card.HubFacts(hub, "".join(said))
    text = card.text(model, asked.license, files, real.facts, asked.title, facts)
    (folder / layout.CARD).write_text(text, encoding="utf-8")
    images = real.batch.images
    differences = {hub_folder.WEIGHTS: hub_folder.own_difference(model, folder, images)}
    by_diffusers = hub_folder.diffusers_difference(model, folder, images)
    if by_diffusers is None:
        said.append("diffusers is not installed: only this library has read what was written")
    else:
        differences["diffusers"] = by_diffusers
        said.append(
            f"diffusers gives the same reconstructions: they differ by {by_diffusers:.1e} at most"
        )
    return differences, said


def _draw(model: Model, real: RealImages, folder: Path) -> None:
    # 64 images are the 8 × 8 of each picture.
    for name, picture in pictures.draw(model.method, real.batch, rng.keys(0, 64), 8).items():
        picture.save(folder / f"{name}.png")


def _real_images(model: Model) -> RealImages:
    """Held-out images to compare on; noise if the data cannot be read."""
    experiment = model.origin.experiment
    assert experiment
    try:
        stream, held_out = open_run(experiment)
        batch = as_batch(next((held_out or stream).once(64)))
    except (DataError, UsageError) as error:
        keys = rng.keys(0, 64)
        # Enough to see whether a file computes the same, which is all that is asked of it here.
        noise = rng.uniform(keys, "images", model.shape) * 2 - 1
        missing = (
            f"the data cannot be read ({error}): compared on noise, and the card has no metrics "
            "of held-out images"
        )
        return RealImages(Batch(noise, keys, keys, 0), card.DataFacts(), missing)
    count = f"{held_out.records:,}" if held_out else "none"
    # Several data sets may have several licences: all are named.
    licenses = {dataset.index.about.license for dataset in stream.datasets} - {""}
    license = " ".join(sorted(licenses))[:LONGEST_LICENSE]
    return RealImages(batch, card.DataFacts(f"{stream.records:,}", count, license))


def _write_tensors(model: Model, folder: Path) -> None:
    tensors = model.method.saved_tensors().items()
    # safetensors refuses strided tensors, and convolutions may be channels-last.
    save_file({name: value.contiguous() for name, value in tensors}, folder / layout.WEIGHTS)
    if model.mixture:
        model.mixture.save(folder / layout.PRIOR)
    if model.reference_codes:
        (folder / layout.CODES).write_bytes(model.reference_codes.as_bytes(model.origin.weights))


def _write_config(model: Model, folder: Path, files: list[str]) -> None:
    origin = model.origin
    config = {
        "format": layout.FORMAT,
        "library": f"udl-dist {__version__}",
        "method": origin.method,
        "settings": config_schema.to_dict(model.method.settings),
        "shape": list(model.shape),
        "fit": origin.fit,
        "latent_shape": list(model.latent_shape),
        "classes": list(model.method.classes),
        "images": origin.images,
        "checkpoint": origin.weights,
        "averaged": origin.averaged,
        "data": origin.data,
        # The key of the first release; exported models that exist have it.
        "figures": dict(origin.figures),
        "mixture_preferred": bool(model.mixture and model.mixture.preferred),
        "files": {name: layout.described(folder / name) for name in files},
    }
    (folder / layout.CONFIG).write_text(json.dumps(config, indent=1))


def _difference(model: Model, again: Model, images: Tensor) -> float:
    """The greatest difference between the outputs of two models."""
    pairs = []
    if model.can("encode"):
        pairs.append((model.encode(images), again.encode(images)))
    if model.can("reconstruct"):
        # Classes in turn: any will do, as both models get the same.
        classes = len(model.method.classes)
        labels = [n % classes for n in range(len(images))] if model.method.conditional else None
        pairs.append((model.reconstruct(images, labels), again.reconstruct(images, labels)))
    if model.can("sample"):
        # The same seed, so the same latents.
        pairs.append((model.sample(CHECKED_IMAGES), again.sample(CHECKED_IMAGES)))
    return formats.greatest_difference(pairs)
