"""Mean and std of the latents of real images, by which a second model scales what it learns."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch

from udl_dist.errors import TrainingError
from udl_dist.inference.calibration import MOST_IMAGES
from udl_dist.inference.model import BATCH_IMAGES, Model
from udl_dist.inference.sources import as_batch, open_run


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
    # All in the order of the shards, or the first of a random order.
    whole = images == source.records
    parts = source.once(BATCH_IMAGES) if whole else source.batches(0, BATCH_IMAGES)
    for start, records in zip(itertools.count(0, BATCH_IMAGES), parts, strict=False):
        # [N, C, h, w] -> [C, N·h·w]
        latents = model.encode(as_batch(records).images[: images - start]).double()
        values = latents.transpose(0, 1).flatten(1)
        sums += torch.stack([values.sum(1), values.square().sum(1)])
        if start + BATCH_IMAGES >= images:
            break
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
