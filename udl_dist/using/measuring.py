"""The images of an evaluation in parts, and what each family takes of a part: in this process or in
a worker of Ray.

Parts depend on the images alone, so whoever makes them, in whatever number, makes the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udl_dist.data.loader.opening import open_left_out, open_streams
from udl_dist.data.loader.order import share
from udl_dist.data.loader.reader import Stream
from udl_dist.data.loader.records import Records
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.settings import cache_folder
from udl_dist.errors import TrainingError, UsageError
from udl_dist.evaluation import extractor as extractors
from udl_dist.evaluation import families
from udl_dist.evaluation.family import (
    HELD_OUT,
    LEFT_OUT,
    TRAIN,
    Family,
    Seen,
    Subject,
    Taken,
    joined,
)
from udl_dist.evaluation.settings import FigureSettings
from udl_dist.models.inputs import scaled
from udl_dist.models.model import BATCH_IMAGES, Model
from udl_dist.training.loop import to_batch
from udl_dist.using.remembered import Remembered
from udl_dist.using.sources import open_stream

MOST_PARTS = 64
MOST_DECODED_BYTES = 2**28  # 10,000 images of 64 px in colour take half of it


@dataclass(frozen=True)
class Part:
    """What was taken of a part, by family, and whether its worker has met records that others stood
    in for.
    """

    taken: dict[str, Taken]
    damaged: bool


class Measuring:
    """A model, the images it is measured on, and the families of figures that can be had of
    both.
    """

    def __init__(self, model: Model, asked: FigureSettings) -> None:
        self.model, self.asked = model, asked
        self.streams = _streams(model, asked)
        limits = {TRAIN: asked.train_images}
        self.images = {
            which: min(limits.get(which, asked.images) or stream.records, stream.records)
            for which, stream in self.streams.items()
        }
        sample, sampled_from = _sampler(model, asked.prior)
        labelled = TRAIN in self.streams and all(
            _labelled(stream) for stream in self.streams.values()
        )
        extractor = extractors.find(
            asked.extractor, model.shape, model.device, asked.trust_extractor
        )
        experiment = model.origin.experiment
        left_out = experiment.data.without_labels if experiment and LEFT_OUT in self.streams else ()
        subject = Subject(
            model.method,
            model.shape,
            model.latent_dim,
            asked,
            extractor,
            sample,
            sampled_from,
            labelled,
            left_out,
            {which: self._images(which) for which in self.streams},
        )
        self.families, self.notes = families.chosen(subject, self.images[HELD_OUT])
        if not self.families:
            raise UsageError(f"{model.origin.folder} has no figures: {'; '.join(self.notes)}")

    def know(self, names: Collection[str]) -> None:
        """The references of these families are there already: nothing is to be taken for them."""
        for family in self.families:
            family.known = family.name in names

    def parts(self) -> list[tuple[str, int]]:
        """Every part that is to be made: of which images, and its number."""
        needed = [which for which in self.streams if self._taking(which)]
        return [(which, number) for which in needed for number in range(self._count(which))]

    def part(self, which: str, number: int) -> Part:
        """What the families take of one part; raise TrainingError for what is not finite."""
        taken: dict[str, list[Taken]] = {family.name: [] for family in self._taking(which)}
        with torch.no_grad():
            for start, records in self._records(which, number):
                seen = Seen(
                    to_batch(records, 0, self.model.device), torch.from_numpy(records.labels), start
                )
                for family in self._taking(which):
                    taken[family.name].append(family.take(which, seen))
        whole = {name: joined(batches) for name, batches in taken.items()}
        for name, one in whole.items():
            self._refuse_odd_numbers(name, one)
        return Part(whole, bool(self.streams[which].damage))

    def remembered(self) -> Remembered:
        """Where the references of these images are kept."""
        experiment, model = self.model.origin.experiment, self.model
        streams = {
            which: [
                stream.fingerprint,
                stream.seed,
                self.images[which],
                self._count(which),
                BATCH_IMAGES,
            ]
            for which, stream in self.streams.items()
        }
        about = {"streams": streams, "shape": model.shape, "device": model.device.type}
        return Remembered(
            cache_folder(experiment.data.cache if experiment else "") / "references", about
        )

    def _images(self, which: str) -> Callable[[], Iterator[Tensor]]:
        """Passes over the images that are measured."""
        count = self.images[which]
        parts = range(self._count(which))
        return passes(
            lambda: (records for number in parts for _, records in self._records(which, number)),
            count * math.prod(self.model.shape),
        )

    @property
    def damaged(self) -> bool:
        """Whether this process has met records that others stood in for."""
        return any(stream.damage for stream in self.streams.values())

    def _taking(self, which: str) -> list[Family]:
        return [family for family in self.families if family.goes_through(which)]

    def _count(self, which: str) -> int:
        return max(1, min(MOST_PARTS, -(-self.images[which] // BATCH_IMAGES)))

    def _records(self, which: str, number: int) -> Iterator[tuple[int, Records]]:
        """The batches of a part and the images before each: all once, or as many as are wanted in
        random order.
        """
        stream, parts = self.streams[which], self._count(which)
        start, stop = share(self.images[which], number, parts)
        if self.images[which] == stream.records:
            for records in stream.once(BATCH_IMAGES, number, parts):
                yield start, records
                start += len(records.images)
            return
        for records in stream.batches(start, BATCH_IMAGES):
            yield start, _first(records, stop - start)
            start += BATCH_IMAGES
            if start >= stop:
                return

    def _refuse_odd_numbers(self, name: str, taken: Taken) -> None:
        for what, value in (taken.sums | taken.rows).items():
            if not bool(value.isfinite().all()):
                raise TrainingError(
                    f"{self.model.origin.line()}: {name} ({what}) has numbers that are not finite: "
                    "use another checkpoint"
                )


def passes(
    batches: Callable[[], Iterator[Records]], total_bytes: int
) -> Callable[[], Iterator[Tensor]]:
    """Passes over the same images, [B, C, H, W] in [-1, 1]; they are decoded once where they fit
    into memory.
    """
    kept: list[NDArray[np.uint8]] = []

    def once() -> Iterator[Tensor]:
        if kept:
            yield from map(scaled, kept)
            return
        decoded = []
        for records in batches():
            if total_bytes <= MOST_DECODED_BYTES:
                decoded.append(records.images.copy())
            yield scaled(records.images)
        kept.extend(decoded)

    return once


def _streams(model: Model, asked: FigureSettings) -> dict[str, Stream]:
    """The images that are measured, and, where they can be had, those the model learned from and
    those left out.
    """
    experiment = model.origin.experiment
    found: dict[str, Stream | None] = {}
    if experiment:
        plain = replace(experiment.data, random_crop=1.0, flip=False, readers=asked.readers)
        prepared, seed = prepare(plain), experiment.train.seed
        found[TRAIN], found[HELD_OUT] = open_streams(prepared, seed)
        found[LEFT_OUT] = None if asked.data else open_left_out(prepared, seed)
    if asked.data:
        found[HELD_OUT] = open_stream(model, asked.data, asked.readers, asked.seed)
    if found.get(HELD_OUT) is None:
        raise UsageError(
            f"{model.origin.folder} holds no images out that can be measured: name some with --data"
        )
    return {which: stream for which in (HELD_OUT, LEFT_OUT, TRAIN) if (stream := found.get(which))}


def _sampler(model: Model, prior: str) -> tuple[Callable[[Tensor], Tensor] | None, str]:
    """What draws images for random keys, and where its latents come from; raise UsageError for a
    mixture not there.
    """
    own, mixture = model.method.can("sample"), model.mixture
    if prior == "mixture" and mixture is None:
        raise UsageError(
            f"{model.origin.folder} has no mixture to draw from: run udl fit-prior first"
        )
    if mixture is not None and (prior == "mixture" or (prior == "auto" and not own)):
        return (
            lambda keys: model.method.decode(mixture.draw(keys.cpu()).float().to(model.device)),
            f"a mixture of {len(mixture.weights)} Gaussians over codes",
        )
    return (model.method.sample, "the method's own prior") if own else (None, "nothing")


def _labelled(stream: Stream) -> bool:
    """Whether the first image has a label: those of a source have them all, or none."""
    records = next(iter(stream.once(1)))
    return int(records.labels[0]) >= 0


def _first(records: Records, count: int) -> Records:
    """The first `count` of a batch."""
    return replace(
        records,
        images=records.images[:count],
        records=records.records[:count],
        keys=records.keys[:count],
        record_keys=records.record_keys[:count],
        labels=records.labels[:count],
    )
