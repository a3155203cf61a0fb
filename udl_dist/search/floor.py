"""What PCA reaches with as many numbers as a latent has: the line that an autoencoder must get below."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from udl_dist.evaluation import pca
from udl_dist.evaluation.family import Taken, joined
from udl_dist.experiment import Experiment
from udl_dist.packing.prepare import prepare
from udl_dist.stream.feed import Feed
from udl_dist.stream.opening import open_streams
from udl_dist.training.loop import to_batch


def pca_floor(experiment: Experiment, sizes: Sequence[int]) -> dict[int, float]:
    """The squared error per pixel in [0, 1] of held-out images, by number of components; empty for large images."""
    if math.prod(experiment.data.shape) > pca.MOST_PIXELS or experiment.data.sequential:
        return {}
    stream, held_out = open_streams(prepare(experiment.data), experiment.train.seed)
    if held_out is None:
        return {}
    fitted, measured = _moments(stream), _moments(held_out)
    return {size: pca.error(fitted, measured, size) for size in sizes}


def _moments(feed: Feed) -> Taken:
    batches = (to_batch(records, 0, torch.device("cpu")).images for records in feed.once(256))
    return joined(Taken(len(images), pca.moments(images)) for images in batches)
