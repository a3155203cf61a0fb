"""What held-out images show of a model: quantiles of its scores, mean and spread of its latents.

A run computes its calibration once into `calibration.json`; an exported model brings it along.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from udl_dist.core import files
from udl_dist.errors import DataError, TrainingError, UsageError
from udl_dist.inference.layout import CALIBRATION
from udl_dist.inference.model import BATCH_IMAGES, Model
from udl_dist.inference.sources import as_batch, at_most, open_run

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


@dataclass(frozen=True)
class LatentStatistics:
    """Over every place of the latent maps of `images`; of a KL autoencoder, of its means."""

    images: int
    held_out: bool  # else they are training images: nothing was held out
    mean: float
    std: float
    channel_means: tuple[float, ...]
    channel_stds: tuple[float, ...]

    def config(self) -> dict[str, Any]:
        """The same, under the keys of diffusers."""
        return {
            "scaling_factor": 1 / self.std,
            "shift_factor": self.mean,
            "latents_mean": list(self.channel_means),
            "latents_std": list(self.channel_stds),
        }

    def line(self) -> str:
        """What was measured, for people."""
        kind = "held-out" if self.held_out else "training"
        return (
            f"latents of {self.images:,} {kind} images: mean {self.mean:.4g}, std {self.std:.4g}, "
            f"so scaling_factor is {1 / self.std:.6g}"
        )


def latent_statistics(model: Model) -> LatentStatistics:
    """Statistics over all held-out images, or training images if there are none.

    Of more than 20,000 these are drawn at random. Raises UsageError or DataError if the data cannot
    be read, TrainingError for latents that are all equal.
    """
    # LDM scaled by the std of one batch, which differs from that of the data by some percent.
    assert model.origin.experiment
    stream, held_out = open_run(model.origin.experiment)
    source = held_out or stream
    images = min(source.records, MOST_IMAGES)
    channels = model.latent_shape[0]
    sums = torch.zeros(2, channels, dtype=torch.float64)
    for records in at_most(source, images):
        # [N, C, h, w] -> [C, N·h·w]
        values = model.encode(as_batch(records).images).double().transpose(0, 1).flatten(1)
        sums += torch.stack([values.sum(1), values.square().sum(1)])
    places = images * model.latent_dim // channels
    means, squares = sums / places
    # By n, not n - 1, which differ by less than the last digit here.
    stds = (squares - means.square()).clamp(min=0).sqrt()
    std = float((squares.mean() - means.mean().square()).clamp(min=0).sqrt())
    if std < 1e-12:
        raise TrainingError(
            f"{model.origin.line()} encodes every image alike: use another checkpoint"
        )
    return LatentStatistics(
        images,
        held_out is not None,
        float(means.mean()),
        std,
        tuple(means.tolist()),
        tuple(stds.tolist()),
    )


def _short(values: Tensor) -> list[float]:
    """Six digits of each number: more would only make the file long."""
    return [float(f"{value:.6g}") for value in values.tolist()]
