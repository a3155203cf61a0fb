"""How held-out images of the run look to a model: quantiles of its scores, spread of its latents.

A run computes it once and keeps it in `calibration.json`; an exported model brings it along.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from udl_dist.core import files
from udl_dist.data.loader.opening import open_streams
from udl_dist.data.packing.prepare import prepare
from udl_dist.errors import DataError, UsageError
from udl_dist.models.layout import CALIBRATION
from udl_dist.models.model import BATCH_IMAGES, Model
from udl_dist.using.sources import as_batch

MOST_IMAGES = 20_000
PARTS = 1000  # quantiles of a score are kept at every thousandth


@dataclass(frozen=True)
class Calibration:
    """Figures of `images` held-out images; `data` names them, `weights` the checkpoint and the
    codes kept of it.
    """

    weights: str
    images: int
    data: str
    held_out: bool  # else they are training images: nothing was held out
    latent_mean: list[float]
    latent_deviation: list[float]
    quantiles: Mapping[str, list[float]]  # of each score, at 0, 1/1000 … 1

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    def threshold(self, score: str, quantile: float) -> float:
        """What that part of the held-out images does not exceed."""
        known = torch.tensor(self.quantiles[score], dtype=torch.float64)
        place = quantile * (len(known) - 1)
        below = int(place)
        above = min(below + 1, len(known) - 1)
        return float(torch.lerp(known[below], known[above], place - below))


def calibration(model: Model) -> Calibration:
    """What is known of a model, computed if need be; raise UsageError or DataError if it cannot be
    had.
    """
    if model.origin.experiment is None:
        return _exported(model)
    path = model.origin.folder / CALIBRATION
    if path.exists() and (known := _read(path)).weights == _measured(model):
        return known
    computed = compute(model)
    # a run that cannot be written to is measured again each time
    with contextlib.suppress(OSError):
        files.write_whole(path, computed.as_json())
    return computed


def compute(model: Model) -> Calibration:
    """Go through the held-out images of a run, at most 20,000."""
    experiment = model.origin.experiment
    assert experiment, "only a run knows its data"
    stream, held_out = open_streams(prepare(experiment.data), experiment.train.seed)
    latents: list[Tensor] = []
    scores: dict[str, list[Tensor]] = {name: [] for name in model.scores}
    images = 0
    for records in (held_out or stream).once(BATCH_IMAGES):
        batch = as_batch(records)
        if model.can("encode"):
            latents.append(model.encode(batch.images))
        for name, values in scores.items():
            values.append(model.score_batch(batch, name))
        images += len(records.images)
        if images >= MOST_IMAGES:
            break
    steps = torch.linspace(0, 1, PARTS + 1, dtype=torch.float64)
    codes = (
        torch.cat(latents).double()
        if latents
        else torch.zeros(1, model.latent_dim, dtype=torch.float64)
    )
    return Calibration(
        _measured(model),
        images,
        (held_out or stream).fingerprint,
        held_out is not None,
        _short(codes.mean(0)),
        _short(codes.std(0, correction=0)),
        {name: _short(torch.cat(values).quantile(steps)) for name, values in scores.items()},
    )


def _measured(model: Model) -> str:
    """What its quantiles depend on: the checkpoint, and the codes that outliers are told by."""
    of = (
        f" {len(model.crowd.rows)} codes {int(model.crowd.neighbours)} neighbours"
        if model.crowd
        else ""
    )
    return model.origin.weights + of


def _exported(model: Model) -> Calibration:
    if CALIBRATION not in model.origin.config["files"]:
        raise UsageError(
            f"{model.origin.folder} was exported without figures of held-out images: use its run"
            " folder, or export it again where the run's data is"
        )
    return _read(model.origin.folder / CALIBRATION)


def _read(path: Path) -> Calibration:
    try:
        return Calibration(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise DataError(
            f"{path} makes no sense: delete it in a run, export a model again"
        ) from None


def _short(values: Tensor) -> list[float]:
    """Six digits of each number: more would only make the file long."""
    return [float(f"{value:.6g}") for value in values.tolist()]
