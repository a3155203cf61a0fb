"""The calibration of a model: quantiles of its scores and spread of its latents on held-out images.

A run computes it once into `calibration.json`; an exported model brings it along.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from udl_dist.core import files
from udl_dist.errors import DataError, UsageError
from udl_dist.inference.layout import CALIBRATION
from udl_dist.inference.model import BATCH_IMAGES, Model
from udl_dist.inference.sources import as_batch, open_run

# 20 of them lie above the highest quantile but one.
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
        # Linear between thousandths.
        return float(np.interp(quantile, np.linspace(0, 1, len(known)), known))

    @classmethod
    def read(cls, path: Path) -> Calibration:
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            cure = "delete it in a run, export a model again"
            raise DataError(f"{path} is not a valid calibration: {cure}") from None


def calibration(model: Model) -> Calibration:
    """The calibration of a model, computed if need be; raise UsageError or DataError without."""
    origin = model.origin
    path = origin.folder / CALIBRATION
    # An exported model has no data to compute it from.
    if origin.experiment is None:
        if CALIBRATION not in origin.config["files"]:
            raise UsageError(
                f"{origin.folder} was exported without a calibration: use its run folder, or "
                "export it again where the run's data is"
            )
        return Calibration.read(path)
    weights = origin.weights
    # Outlier factors change with the stored codes, and so do their quantiles.
    if codes := model.reference_codes:
        weights += f" {len(codes.rows)} codes {int(codes.neighbours)} neighbours"
    # Of another checkpoint: computed again and replaced.
    if path.exists() and (known := Calibration.read(path)).weights == weights:
        return known
    stream, held_out = open_run(origin.experiment)
    latents: list[Tensor] = []
    scores: dict[str, list[Tensor]] = {name: [] for name in model.scores}
    images = 0
    # Scores of training images are lower than those of new ones, which `held_out` tells users.
    for records in (held_out or stream).once(BATCH_IMAGES):
        batch = as_batch(records)
        if model.can("encode"):
            latents.append(model.codes(batch.images))
        for name, values in scores.items():
            # All scores at once: another --by later needs no second pass.
            values.append(model.score_batch(batch, name))
        images += len(records.images)
        if images >= MOST_IMAGES:
            break
    steps = torch.linspace(0, 1, PARTS + 1, dtype=torch.float64)
    # Without an encoder: one latent of zeros, which nothing reads.
    codes_of = torch.cat(latents or [torch.zeros(1, model.latent_dim)]).double()
    computed = Calibration(
        weights,
        images,
        (held_out or stream).fingerprint,
        held_out is not None,
        _short(codes_of.mean(0)),
        # By n, not n - 1: one image has a spread of 0, not NaN.
        _short(codes_of.std(0, correction=0)),
        {name: _short(torch.cat(values).quantile(steps)) for name, values in scores.items()},
    )
    with contextlib.suppress(OSError):  # a run on a read-only disk is calibrated again each time
        files.write_whole(path, computed.as_json())
    return computed


def _short(values: Tensor) -> list[float]:
    """Six digits of each number: more would only make the file long."""
    return [float(f"{value:.6g}") for value in values.tolist()]
