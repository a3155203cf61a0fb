"""`udl fit-outliers`: codes of a run's training images, kept so that codes which lie outside of
them can be told.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from udl_dist.data.loader.opening import open_streams
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.shards.writing import written
from udl_dist.errors import UsageError
from udl_dist.evaluation.outliers import MOST_NEIGHBOURS, Crowd
from udl_dist.inference import reference_codes as crowds
from udl_dist.inference.inputs import scaled
from udl_dist.inference.layout import CROWD
from udl_dist.inference.model import BATCH_IMAGES, OUTLIER_FACTOR, Model
from udl_dist.inference.outcome import Outcome, outcome, writing

Progress = Callable[[int, int], None]


def fit_outliers(model: Model, neighbours: int, progress: Progress) -> Outcome:
    """Keep the codes of at most 30,000 training images, drawn at random once, and how dense they
    lie.

    `udl score` then knows the local outlier factor of a code (Breunig et al. 2000) among so many
    neighbours.
    """
    model.require("encode")
    origin = model.origin
    if origin.experiment is None:
        raise UsageError(
            f"{origin.folder} is an exported model: keep the codes of its run, and export it again"
        )
    if neighbours < 1:
        raise UsageError(f"--neighbours {neighbours}: give 1 or more")
    stream, _ = open_streams(prepare(origin.experiment.data), origin.experiment.train.seed)
    count = min(stream.records, MOST_NEIGHBOURS)
    if count <= neighbours:
        raise UsageError(
            f"{count} training images are too few for {neighbours} neighbours: lower --neighbours"
        )
    codes = []
    for records in stream.batches(0, BATCH_IMAGES):
        codes.append(model.encode(scaled(records.images)))
        done = min(len(codes) * BATCH_IMAGES, count)
        progress(done, count)
        if done == count:
            break
    crowd = Crowd.of(torch.cat(codes)[:count], neighbours)
    with writing(origin.folder):
        path = origin.folder / CROWD
        with written(path) as file:
            file.write(crowds.as_bytes(crowd, origin.weights))
    said = [
        f"{count:,} codes, {neighbours} neighbours: {path}",
        f"use it: udl score RUN IMAGES --by {OUTLIER_FACTOR}",
    ]
    return outcome(model, said, codes=count, neighbours=neighbours, path=str(path))
