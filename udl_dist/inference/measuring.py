"""The images of an evaluation in parts, and what each metric group collects of a part.

Parts depend on the images alone, so any number of processes makes the same ones.
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
from udl_dist.evaluation.groups import choose_groups
from udl_dist.evaluation.metric_group import (
    HELD_OUT,
    LEFT_OUT,
    TRAIN,
    MetricBatch,
    MetricGroup,
    PartialSums,
    Sampler,
    Subject,
)
from udl_dist.evaluation.settings import MetricSettings
from udl_dist.inference.inputs import scaled
from udl_dist.inference.model import BATCH_IMAGES, Model, Prior
from udl_dist.inference.reference_cache import ReferenceCache
from udl_dist.inference.sources import at_most, open_stream
from udl_dist.training.batches import to_batch

# Not the number of workers: sums depend on the parts, and so would the last digits of metrics.
MOST_PARTS = 64
MOST_DECODED_BYTES = 2**28  # 10,000 images of 64 px in colour take half of it


@dataclass(frozen=True)
class MeasuredPart:
    """What the groups collected of a part, by name, and whether damaged records were replaced."""

    collected: dict[str, PartialSums]
    damaged: bool


class Measuring:
    """A model, the images it is measured on, and the metric groups that both allow."""

    def __init__(self, model: Model, asked: MetricSettings) -> None:
        self.model, self.asked = model, asked
        self.streams = _streams(model, asked)
        self.images = {}
        for split, stream in self.streams.items():
            most = asked.train_images if split == TRAIN else asked.images
            self.images[split] = min(most or stream.records, stream.records)
        sample, sampled_from = _sampler(model, asked.prior)
        experiment = model.origin.experiment
        subject = Subject(
            model.method,
            model.shape,
            model.latent_dim,
            asked,
            extractors.find(asked.extractor, model.shape, model.device, asked.trust_extractor),
            sample,
            sampled_from,
            # Probes are fitted to training images and tested on held-out ones: both need labels.
            labelled=TRAIN in self.streams and all(map(_labelled, self.streams.values())),
            left_out=experiment.data.without_labels
            if experiment and LEFT_OUT in self.streams
            else (),
            classes=self.streams[HELD_OUT].classes,
            # PCA goes over the images several times.
            real={split: self._passes(split) for split in self.streams},
        )
        self.groups, self.notes = choose_groups(subject, self.images[HELD_OUT])
        if not self.groups:
            raise UsageError(f"{model.origin.folder} has no metrics: {'; '.join(self.notes)}")

    def know(self, names: Collection[str]) -> None:
        """The references of these groups are known: nothing is to be collected for them."""
        for group in self.groups:
            group.known = group.name in names

    def parts(self) -> list[tuple[str, int]]:
        """Every part that is to be made: its split, and its number."""
        needed = [split for split in self.streams if self._collecting(split)]
        return [(split, number) for split in needed for number in range(self._count(split))]

    def part(self, split: str, number: int) -> MeasuredPart:
        """What the groups collect of one part; raise TrainingError for NaN or infinity."""
        collected: dict[str, list[PartialSums]] = {}
        with torch.no_grad():
            for start, records in self._records(split, number):
                batch = to_batch(records, self.model.device)
                seen = MetricBatch(batch, torch.from_numpy(records.labels), start)
                for group in self._collecting(split):
                    collected.setdefault(group.name, []).append(group.collect(split, seen))
        whole = {name: PartialSums.joined(batches) for name, batches in collected.items()}
        # Named by group and statistic: a NaN in the final metric would not say where it came from.
        for name, one in whole.items():
            for what, value in (one.sums | one.rows).items():
                if not bool(value.isfinite().all()):
                    raise TrainingError(
                        f"{self.model.origin.line()}: {name} ({what}) has numbers that are not "
                        "finite: use another checkpoint"
                    )
        return MeasuredPart(whole, bool(self.streams[split].damage))

    def reference_cache(self) -> ReferenceCache:
        """Where the references of these images are cached."""
        experiment, model = self.model.origin.experiment, self.model
        # Parts and batch size too: they set the order of sums, and a cached reference has to be
        # equal to the bit.
        streams = {
            split: [
                stream.fingerprint,
                stream.seed,
                self.images[split],
                self._count(split),
                BATCH_IMAGES,
            ]
            for split, stream in self.streams.items()
        }
        about = {"streams": streams, "shape": model.shape, "device": model.device.type}
        folder = cache_folder(experiment.data.cache if experiment else "")
        return ReferenceCache(folder / "references", about)

    @property
    def damaged(self) -> bool:
        """Whether this process has replaced damaged records."""
        return any(stream.damage for stream in self.streams.values())

    def _passes(self, split: str) -> Callable[[], Iterator[Tensor]]:
        """Passes over the images of a split that are measured."""

        def batches() -> Iterator[Records]:
            for number in range(self._count(split)):
                for _, records in self._records(split, number):
                    yield records

        return passes(batches, self.images[split] * math.prod(self.model.shape))

    def _collecting(self, split: str) -> list[MetricGroup]:
        return [group for group in self.groups if group.goes_through(split)]

    def _count(self, split: str) -> int:
        return max(1, min(MOST_PARTS, -(-self.images[split] // BATCH_IMAGES)))

    def _records(self, split: str, number: int) -> Iterator[tuple[int, Records]]:
        """The batches of a part, and the images before each: all once, or some in random order."""
        count, parts = self.images[split], self._count(split)
        start, _ = share(count, number, parts)
        for records in at_most(self.streams[split], count, number, parts):
            yield start, records
            start += len(records.images)


def passes(
    batches: Callable[[], Iterator[Records]], total_bytes: int
) -> Callable[[], Iterator[Tensor]]:
    """Passes over the same images, [B, C, H, W] in [-1, 1], decoded once if they fit in memory."""
    decoded: list[NDArray[np.uint8]] = []

    def once() -> Iterator[Tensor]:
        if decoded:
            yield from map(scaled, decoded)
            return
        images = []
        for records in batches():
            if total_bytes <= MOST_DECODED_BYTES:
                images.append(records.images.copy())
            yield scaled(records.images)
        decoded.extend(images)

    return once


def _streams(model: Model, asked: MetricSettings) -> dict[str, Stream]:
    """Held-out images, and, where they can be had, left-out and training images."""
    experiment = model.origin.experiment
    found: dict[str, Stream | None] = {}
    if experiment:
        # Images as they are, not as training augments them.
        data = replace(experiment.data, random_crop=1.0, flip=False, readers=asked.readers)
        prepared, seed = prepare(data), experiment.train.seed
        found[TRAIN], found[HELD_OUT] = open_streams(prepared, seed)
        # Another source of images knows nothing of the classes that training left out.
        found[LEFT_OUT] = None if asked.data else open_left_out(prepared, seed)
    if asked.data:
        found[HELD_OUT] = open_stream(model, asked.data, asked.readers, asked.seed)
    if found.get(HELD_OUT) is None:
        raise UsageError(
            f"{model.origin.folder} holds no images out that can be measured: name some with --data"
        )
    splits = (HELD_OUT, LEFT_OUT, TRAIN)
    return {split: stream for split in splits if (stream := found.get(split))}


def _sampler(model: Model, prior: Prior) -> tuple[Sampler | None, str]:
    """What draws images for random keys, and where its latents come from."""
    if mixture := model.mixture_for(prior):

        def sample(keys: Tensor, labels: Tensor | None) -> Tensor:
            drawn = mixture.draw(keys.cpu()).float().to(model.device)
            return model.method.decode_codes(drawn, labels)

        return sample, f"a mixture of {len(mixture.weights)} Gaussians over codes"
    if not model.method.can("sample"):
        return None, "nothing"
    return model.method.sample, "the method's own prior"


def _labelled(stream: Stream) -> bool:
    """Whether the first image has a label: those of a source have them all, or none."""
    return int(next(iter(stream.once(1))).labels[0]) >= 0
