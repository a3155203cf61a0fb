"""`udl fit-extractor`: a small classifier of labelled images, whose features compare sets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from udl_dist.data.loader.opening import open_streams
from udl_dist.data.loader.reader import Stream
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.settings import DataSettings
from udl_dist.errors import DataError, UsageError
from udl_dist.evaluation.extractor import Classifier
from udl_dist.evaluation.settings import ExtractorSettings
from udl_dist.inference.inputs import scaled
from udl_dist.inference.model import BATCH_IMAGES
from udl_dist.inference.outcome import Outcome, Progress, writing

MOST_CLASSES = 10_000
LEAST_SIZE = 8  # pixels


def fit_extractor(source: str, dest: Path, asked: ExtractorSettings, progress: Progress) -> Outcome:
    """Train a small classifier of labelled images, whose features compare sets of images.

    Writes one safetensors file; held-out images measure its accuracy.
    """
    # Never overwritten: evaluations name an extractor by its hash, and could not be repeated.
    if dest.exists():
        raise UsageError(f"{str(dest)!r} exists: name a new file")
    data = DataSettings(
        source=source,
        size=asked.size,
        channels=asked.channels,
        fit=asked.fit,
        readers=asked.readers,
    )
    stream, held_out = open_streams(prepare(data), asked.seed)
    if stream.shape[1] < LEAST_SIZE:
        raise UsageError(
            f"an extractor needs {LEAST_SIZE} pixels at least, not {stream.shape[1]}: give --size"
        )
    # A pass over all labels first: a missing one must not end the training at its last step.
    classes = _classes(source, stream)
    # First weights from the seed, without a change to the generator of the calling program.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(asked.seed)
        classifier = Classifier(stream.shape, classes)
    _train(classifier, stream, asked, progress)
    with torch.no_grad():
        # Centre and scale over the training images make distances of two classifiers comparable in
        # size. One scale for all features: see Classifier.
        features = torch.cat([classifier.activated(images) for images, _ in _once(stream)])
        classifier.centre.copy_(features.mean(0))
        # The clamp is for a classifier whose features are all 0.
        classifier.scale.copy_(features.var(0).mean().sqrt().clamp(min=1e-6))
        # Without held-out images the accuracy is of training images, which the message says.
        tested = [
            classifier(images).argmax(1) == labels for images, labels in _once(held_out or stream)
        ]
    right = torch.cat(tested)
    accuracy = float(right.float().mean())
    with writing(dest):
        dest.parent.mkdir(parents=True, exist_ok=True)
        classifier.save(dest)
        sha256 = hashlib.sha256(dest.read_bytes()).hexdigest()
    kind = "held-out" if held_out else "training"
    said = [
        f"{classes} classes, {100 * accuracy:.2f} % of {len(right):,} {kind} images right: {dest}",
        f"sha256 {sha256}",
        f"use it: udl evaluate RUN --extractor {dest}",
    ]
    facts = {"dest": str(dest), "classes": classes, "accuracy": accuracy, "sha256": sha256}
    return Outcome(said, facts)


def _train(
    classifier: Classifier, stream: Stream, asked: ExtractorSettings, progress: Progress
) -> None:
    optimizer = torch.optim.Adam(classifier.parameters(), asked.learning_rate)
    # At least one, for sources smaller than a batch.
    steps = max(1, asked.epochs * stream.records // asked.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    # Endless: batches straddle epochs.
    for step, records in enumerate(stream.batches(0, asked.batch_size)):
        if step == steps:
            break
        labels = torch.from_numpy(records.labels)
        loss = functional.cross_entropy(classifier(scaled(records.images)), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        progress(step + 1, steps)
    classifier.eval()


def _once(stream: Stream) -> Iterator[tuple[Tensor, Tensor]]:
    for records in stream.once(BATCH_IMAGES):
        yield scaled(records.images), torch.from_numpy(records.labels)


def _classes(source: str, stream: Stream) -> int:
    """How many classes there are; raise DataError where a label is missing."""
    labels = np.concatenate([records.labels for records in stream.once(BATCH_IMAGES)])
    if labels.min() < 0:
        raise DataError(
            f"{source}: {int((labels < 0).sum()):,} of {len(labels):,} images have no label (cls): "
            "an extractor needs labelled ones"
        )
    # Labels are class numbers from 0, so the greatest one decides.
    classes = int(labels.max()) + 1
    if not 2 <= classes <= MOST_CLASSES:
        raise DataError(
            f"{source} has {classes:,} classes: an extractor takes 2 to {MOST_CLASSES:,}"
        )
    return classes
