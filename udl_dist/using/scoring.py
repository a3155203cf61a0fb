"""`udl score`: how odd each image is, which are flagged, and where the oddest differ from what the
model expects.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from udl_dist.core.files import finish_folder, partial_folder
from udl_dist.errors import DataError, UsageError
from udl_dist.evaluation.pictures import grid
from udl_dist.methods.pixels import floats
from udl_dist.models.model import Model
from udl_dist.using.calibration import calibration
from udl_dist.using.outcome import Outcome, outcome, save
from udl_dist.using.sources import batches, named

SHOWN = 16  # of the oddest in the picture
NAMED = 5  # of them in words
STEEP = 3.0  # how fast black goes over red and yellow to white


@dataclass(order=True)
class Odd:
    """One of the oddest images."""

    score: float
    number: int
    key: str = field(compare=False)
    image: Tensor = field(compare=False)


def score(
    model: Model,
    names: Sequence[str],
    by: str,
    quantile: float,
    threshold: float | None,
    seed: int,
    out: Path,
) -> Outcome:
    """Score every image into `out`/scores.jsonl, the oddest into oddest.png; a bound draws its
    noise from `seed`.

    An image is flagged if its score is above `threshold`, or else above what the part `quantile` of
    the run's held-out images stays below.
    """
    which = model.scored_by(by)
    if not 0 <= quantile <= 1:
        raise UsageError(
            f"--quantile {quantile:g} is no part of the held-out images: give one from 0 to 1, as"
            " 0.99"
        )
    limit, how = (
        (threshold, "as given") if threshold is not None else _threshold(model, which, quantile)
    )
    with partial_folder(out) as folder:
        count, flagged, oddest = _write(
            _scored(model, names, which, seed), limit, folder / "scores.jsonl"
        )
        _draw(model, oddest, folder / "oddest.png")
        finish_folder(folder, out)
    said = [
        (
            f"{count:,} images by {which}, {flagged:,} flagged above {_number(limit)} ({how}):"
            f" {out}/scores.jsonl"
        ),
        "oddest: " + ", ".join(f"{odd.key!a} {odd.score:.5g}" for odd in oddest[:NAMED]),
        *(
            [
                f"the {len(oddest)} oddest, what the model makes of them, and where they differ:"
                f" {out}/oddest.png"
            ]
            if model.can("reconstruct")
            else []
        ),
    ]
    return outcome(
        model,
        said,
        out=str(out),
        score=which,
        images=count,
        flagged=flagged,
        threshold=limit,
        threshold_from=how,
        oddest=[{"key": odd.key, "score": odd.score} for odd in oddest],
    )


# [N, C, H, W] from 0 to 1 -> [N, 3, H, W]
def heat(differences: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Differences as colours: black, red, yellow, white."""
    amount = differences.mean(1, keepdim=True).clamp(0, 1) * STEEP
    colours = torch.cat([(amount - shift).clamp(0, 1) for shift in (0.0, 1.0, 2.0)], 1)
    pixels: np.ndarray[Any, np.dtype[np.uint8]] = (colours * 255).round().to(torch.uint8).numpy()
    return pixels


def _write(
    scored: Iterable[tuple[str, float, Tensor]], limit: float | None, path: Path
) -> tuple[int, int, list[Odd]]:
    """Write a line for each image; return how many there are, how many are flagged, and the oddest
    first.
    """
    count, flagged, oddest = 0, 0, list[Odd]()
    with path.open("w", encoding="utf-8") as file:
        for key, value, image in scored:
            is_odd = limit is not None and value > limit
            file.write(json.dumps({"key": key, "score": value, "flag": is_odd}) + "\n")
            heapq.heappush(oddest, Odd(value, -count, key, image))
            if len(oddest) > SHOWN:
                heapq.heappop(oddest)
            count, flagged = count + 1, flagged + is_odd
    return count, flagged, sorted(oddest, reverse=True)


def _scored(
    model: Model, names: Sequence[str], which: str, seed: int
) -> Iterator[tuple[str, float, Tensor]]:
    for keys, batch in batches(model, named(model, names, seed), seed=seed):
        values = model.score_batch(batch, which)
        yield from zip(keys, values.tolist(), batch.images, strict=True)


def _threshold(model: Model, which: str, quantile: float) -> tuple[float | None, str]:
    """What most held-out images stay below, and where that comes from; None where it cannot be
    known.
    """
    try:
        known = calibration(model)
    except (DataError, UsageError) as error:
        return None, f"no threshold: {error}"
    kind = "held-out" if known.held_out else "training"
    return (
        known.threshold(which, quantile),
        f"{quantile:g} of {known.images:,} {kind} images stay below it",
    )


def _draw(model: Model, oddest: Sequence[Odd], path: Path) -> None:
    """Rows of images, reconstructions and heat maps, the oddest first."""
    if not oddest or not model.can("reconstruct"):
        return
    images = torch.stack([odd.image for odd in oddest])
    rebuilt = model.reconstruct(images)
    colour = [part.expand(-1, 3, -1, -1) for part in (images, rebuilt)]
    maps = floats(torch.from_numpy(heat((images - rebuilt).abs() / 2)))
    picture: Image.Image = grid(torch.cat([*colour, maps]), len(oddest))
    save(picture, path)


def _number(limit: float | None) -> str:
    return "nothing" if limit is None else f"{limit:.5g}"
