"""What PCA reaches with as many numbers as a latent has: the line that an autoencoder must get
below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from udl_dist.data.loader.opening import open_streams
from udl_dist.data.loader.reader import Stream
from udl_dist.data.packing.prepare import prepare
from udl_dist.evaluation import pca
from udl_dist.experiment import Experiment
from udl_dist.using.measuring import passes


def pca_floor(experiment: Experiment, sizes: Sequence[int]) -> dict[int, float]:
    """The squared error per pixel in [0, 1] of held-out images, by number of components; empty if
    none are held out.
    """
    stream, held_out = open_streams(prepare(experiment.data), experiment.train.seed)
    return pca.errors(_images(stream), _images(held_out), sizes)[0] if held_out else {}


def _images(stream: Stream) -> Callable[[], Iterator[Tensor]]:
    return passes(lambda: stream.once(256), stream.records * math.prod(stream.shape))
