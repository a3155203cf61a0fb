"""`udl score`: how anomalous each image is, which are flagged, where they differ from the model.

The threshold comes from the calibration: quantiles of scores over held-out images of the run.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udl_dist.core.files import finish_folder, partial_folder
from udl_dist.errors import DataError, UsageError
from udl_dist.evaluation.pictures import grid
from udl_dist.inference.calibration import calibration
from udl_dist.inference.model import Model
from udl_dist.inference.outcome import Outcome, outcome, save
from udl_dist.inference.sources import batches, named
from udl_dist.methods.pixels import floats

SHOWN = 16  # of the highest scores in the picture
NAMED = 5  # of them in words
STEEP = 3.0  # how fast black goes over red and yellow to white: a third for each


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
    # Tensors have no order: two equal scores are ordered by number.
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
    # A threshold of the user needs no calibration, and so no data.
    limit, how = threshold.score, "as given"
    if limit is None:
        limit, how = _quantile(model, name, threshold.quantile)
    # Scores of all images or no folder at all.
    with partial_folder(out) as folder:
        found = _write(_scored(model, names, name, seed), limit, folder / "scores.jsonl")
        if found.highest and model.can("reconstruct"):
            _draw(model, found.highest, folder / "oddest.png")
        finish_folder(folder, out)
    above = "nothing" if limit is None else f"{limit:.5g}"
    # !a: a key comes from data, and may hold what a terminal obeys.
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


def heat(differences: Tensor) -> NDArray[np.uint8]:  # [N, C, H, W] from 0 to 1 -> [N, 3, H, W]
    """Differences as colours: black, red, yellow, white."""
    # Each colour rises from 0 to 1 in its third of the range.
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
            # The least of SHOWN is at the front, and leaves: memory stays the same for any number
            # of images. Of equal scores the first stay, whose negative number is greater.
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
        yield from zip(keys, model.score_batch(batch, by).tolist(), batch.images, strict=True)


def _quantile(model: Model, by: str, quantile: float) -> tuple[float | None, str]:
    """The quantile of held-out images, and where it comes from; None where it is not known."""
    try:
        known = calibration(model)
    except (DataError, UsageError) as error:
        # Scores are useful without flags: data may be gone, as for a run moved elsewhere.
        return None, f"no threshold: {error}"
    kind = "held-out" if known.held_out else "training"
    how = f"{quantile:g} of {known.images:,} {kind} images stay below it"
    return known.threshold(by, quantile), how


def _draw(model: Model, highest: Sequence[ScoredImage], path: Path) -> None:
    """Rows of images, reconstructions and heat maps, the highest score first."""
    # Stored with the scores, so that no image is decoded twice.
    images = torch.stack([one.image for one in highest])
    rebuilt = model.reconstruct(images)
    colour = [part.expand(-1, 3, -1, -1) for part in (images, rebuilt)]
    # / 2: pixels in [-1, 1] differ by 2 at most.
    maps = floats(torch.from_numpy(heat((images - rebuilt).abs() / 2)))
    save(grid(torch.cat([*colour, maps]), len(highest)), path)
