"""`udl score`: how anomalous each image is, which are flagged, where they differ from the model.

The threshold comes from the calibration: quantiles of scores over held-out images of the run. A
run computes it once into `calibration.json`; an exported model brings it along.
"""

from __future__ import annotations

import contextlib
import heapq
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udl_dist.core import files
from udl_dist.core.files import finish_folder, partial_folder
from udl_dist.data.loader.opening import open_streams
from udl_dist.data.packing.prepare import prepare
from udl_dist.errors import DataError, UsageError
from udl_dist.evaluation.pictures import grid
from udl_dist.inference.layout import CALIBRATION
from udl_dist.inference.model import BATCH_IMAGES, Model
from udl_dist.inference.outcome import Outcome, outcome, save
from udl_dist.inference.sources import as_batch, batches, named
from udl_dist.methods.pixels import floats

SHOWN = 16  # of the highest scores in the picture
NAMED = 5  # of them in words
STEEP = 3.0  # how fast black goes over red and yellow to white
MOST_IMAGES = 20_000  # of a calibration
PARTS = 1000  # a score has a quantile at every thousandth


@dataclass(frozen=True)
class Calibration:
    """Scores and latents of `images` held-out images."""

    weights: str  # of the checkpoint, and the size of its reference codes
    images: int
    data: str  # fingerprint of the images
    held_out: bool  # else they are training images: nothing was held out
    latent_mean: list[float]
    latent_deviation: list[float]
    quantiles: Mapping[str, list[float]]  # of each score, at 0, 1/1000 … 1

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    def threshold(self, score: str, quantile: float) -> float:
        """The score that this part of the held-out images does not exceed."""
        known = self.quantiles[score]
        return float(np.interp(quantile, np.linspace(0, 1, len(known)), known))

    @classmethod
    def read(cls, path: Path) -> Calibration:
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            cure = "delete it in a run, export a model again"
            raise DataError(f"{path} is not a valid calibration: {cure}") from None


@dataclass(frozen=True)
class Threshold:
    """Which score flags an image: the one given, else a quantile of held-out images."""

    quantile: float = 0.99
    score: float | None = None


@dataclass(order=True)
class ScoredImage:
    """One of the highest scores."""

    score: float
    number: int
    key: str = field(compare=False)
    image: Tensor = field(compare=False)


@dataclass
class Scored:
    """How many images were scored, how many flagged, and those with the highest scores."""

    images: int = 0
    flagged: int = 0
    highest: list[ScoredImage] = field(default_factory=list)


def score(
    model: Model,
    names: Sequence[str],
    by: str,
    threshold: Threshold,
    seed: int,
    out: Path,
) -> Outcome:
    """Score every image into `out`/scores.jsonl, pictures of the highest into oddest.png.

    An image is flagged if its score is above the threshold. A bound draws its noise from `seed`.
    """
    name = model.scored_by(by)
    if not 0 <= threshold.quantile <= 1:
        raise UsageError(
            f"--quantile {threshold.quantile:g} is not a part of the held-out images: give one from"
            " 0 to 1, as 0.99"
        )
    limit, how = threshold.score, "as given"
    if limit is None:
        limit, how = _quantile(model, name, threshold.quantile)
    with partial_folder(out) as folder:
        found = _write(_scored(model, names, name, seed), limit, folder / "scores.jsonl")
        if found.highest and model.can("reconstruct"):
            _draw(model, found.highest, folder / "oddest.png")
        finish_folder(folder, out)
    above = "nothing" if limit is None else f"{limit:.5g}"
    highest = ", ".join(f"{one.key!a} {one.score:.5g}" for one in found.highest[:NAMED])
    said = [
        (
            f"{found.images:,} images by {name}, {found.flagged:,} flagged above {above} ({how}): "
            f"{out}/scores.jsonl"
        ),
        f"highest: {highest}",
    ]
    if model.can("reconstruct"):
        said.append(
            f"the {len(found.highest)} highest, their reconstructions, and where they differ: "
            f"{out}/oddest.png"
        )
    return outcome(
        model,
        said,
        out=str(out),
        score=name,
        images=found.images,
        flagged=found.flagged,
        threshold=limit,
        threshold_from=how,
        oddest=[{"key": one.key, "score": one.score} for one in found.highest],
    )


def calibration(model: Model) -> Calibration:
    """The calibration of a model, computed if need be; raise UsageError or DataError without."""
    origin = model.origin
    path = origin.folder / CALIBRATION
    if origin.experiment is None:
        if CALIBRATION not in origin.config["files"]:
            raise UsageError(
                f"{origin.folder} was exported without a calibration: use its run folder, or "
                "export it again where the run's data is"
            )
        return Calibration.read(path)
    weights = origin.weights
    if codes := model.reference_codes:
        weights += f" {len(codes.rows)} codes {int(codes.neighbours)} neighbours"
    if path.exists() and (known := Calibration.read(path)).weights == weights:
        return known
    stream, held_out = open_streams(prepare(origin.experiment.data), origin.experiment.train.seed)
    latents: list[Tensor] = []
    scores: dict[str, list[Tensor]] = {name: [] for name in model.scores}
    images = 0
    for records in (held_out or stream).once(BATCH_IMAGES):
        batch = as_batch(records)
        if model.can("encode"):
            latents.append(model.codes(batch.images))
        for name, values in scores.items():
            values.append(model.score_batch(batch, name))
        images += len(records.images)
        if images >= MOST_IMAGES:
            break
    steps = torch.linspace(0, 1, PARTS + 1, dtype=torch.float64)
    codes_of = torch.cat(latents or [torch.zeros(1, model.latent_dim)]).double()
    computed = Calibration(
        weights,
        images,
        (held_out or stream).fingerprint,
        held_out is not None,
        _short(codes_of.mean(0)),
        _short(codes_of.std(0, correction=0)),
        {name: _short(torch.cat(values).quantile(steps)) for name, values in scores.items()},
    )
    with contextlib.suppress(OSError):  # a run on a read-only disk is calibrated again each time
        files.write_whole(path, computed.as_json())
    return computed


def heat(differences: Tensor) -> NDArray[np.uint8]:  # [N, C, H, W] from 0 to 1 -> [N, 3, H, W]
    """Differences as colours: black, red, yellow, white."""
    amount = differences.mean(1, keepdim=True).clamp(0, 1) * STEEP
    colours = torch.cat([(amount - shift).clamp(0, 1) for shift in (0.0, 1.0, 2.0)], 1)
    pixels: NDArray[np.uint8] = (colours * 255).round().to(torch.uint8).numpy()
    return pixels


def _write(scored: Iterable[tuple[str, float, Tensor]], limit: float | None, path: Path) -> Scored:
    """Write a line for each image."""
    found = Scored()
    with path.open("w", encoding="utf-8") as file:
        for key, value, image in scored:
            flag = limit is not None and value > limit
            file.write(json.dumps({"key": key, "score": value, "flag": flag}) + "\n")
            heapq.heappush(found.highest, ScoredImage(value, -found.images, key, image))
            if len(found.highest) > SHOWN:
                heapq.heappop(found.highest)
            found.images += 1
            found.flagged += flag
    found.highest.sort(reverse=True)
    return found


def _scored(
    model: Model, names: Sequence[str], by: str, seed: int
) -> Iterator[tuple[str, float, Tensor]]:
    for keys, batch in batches(model, named(model, names, seed), seed=seed):
        values = model.score_batch(batch, by)
        yield from zip(keys, values.tolist(), batch.images, strict=True)


def _quantile(model: Model, by: str, quantile: float) -> tuple[float | None, str]:
    """The quantile of held-out images, and where it comes from; None where it is not known."""
    try:
        known = calibration(model)
    except (DataError, UsageError) as error:
        return None, f"no threshold: {error}"
    kind = "held-out" if known.held_out else "training"
    how = f"{quantile:g} of {known.images:,} {kind} images stay below it"
    return known.threshold(by, quantile), how


def _draw(model: Model, highest: Sequence[ScoredImage], path: Path) -> None:
    """Rows of images, reconstructions and heat maps, the highest score first."""
    images = torch.stack([one.image for one in highest])
    rebuilt = model.reconstruct(images)
    colour = [part.expand(-1, 3, -1, -1) for part in (images, rebuilt)]
    maps = floats(torch.from_numpy(heat((images - rebuilt).abs() / 2)))
    save(grid(torch.cat([*colour, maps]), len(highest)), path)


def _short(values: Tensor) -> list[float]:
    """Six digits of each number: more would only make the file long."""
    return [float(f"{value:.6g}") for value in values.tolist()]
