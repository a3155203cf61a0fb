"""What PCA reaches with as many numbers as a latent has: the line that an autoencoder must get below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from udl_dist.experiment import Experiment
from udl_dist.packing.prepare import prepare
from udl_dist.stream.feed import Feed
from udl_dist.stream.opening import open_streams

MOST_PIXELS = 4096
MOST_IMAGES = 20_000


def pca_floor(experiment: Experiment, sizes: Sequence[int]) -> dict[int, float]:
    """The squared error per pixel in [0, 1] of held-out images, by number of components; empty for large images."""
    if np.prod(experiment.data.shape) > MOST_PIXELS or experiment.data.sequential:
        return {}
    stream, held_out = open_streams(prepare(experiment.data), experiment.train.seed)
    if held_out is None:
        return {}
    learned, looked = _images(stream), _images(held_out)
    centre = learned.mean(0)
    _, vectors = np.linalg.eigh(np.cov((learned - centre).T))
    along = ((looked - centre) @ vectors[:, ::-1]) ** 2
    rest = along.mean(0)[::-1].cumsum()[::-1]  # what the k-th component and all after it hold
    return {size: float(rest[size] / len(centre)) if size < len(centre) else 0.0 for size in sizes}


def _images(feed: Feed) -> NDArray[np.float64]:
    found, count = [], 0
    for records in feed.once(256):
        found.append(records.images.reshape(len(records.images), -1) / 255.0)
        count += len(found[-1])
        if count >= MOST_IMAGES:
            break
    return np.concatenate(found)
