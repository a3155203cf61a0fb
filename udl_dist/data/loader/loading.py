"""From planned records to a batch of pixels: read, checked, decoded, mirrored; damage stops or is
replaced.

Runs in any number of threads at once; what comes out depends on the plan alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udl_dist.core.rng import chain
from udl_dist.data.images.coding import decode_into
from udl_dist.data.images.fitting import Pixels, crops
from udl_dist.data.images.headers import HIGHEST_LIMIT, read_header
from udl_dist.data.loader import order
from udl_dist.data.loader.dataset import ChunkReader, Dataset
from udl_dist.data.loader.records import Allocate, Records, StageSeconds
from udl_dist.data.settings import DataSettings
from udl_dist.data.shards.reading import Loaded
from udl_dist.errors import DataError
from udl_dist.storage.uris import name_of

I64 = NDArray[np.int64]
Source = Dataset | ChunkReader
SMALL = 4096  # pixels
TRIES = 100  # substitutes for one damaged record, each as likely damaged as any


@dataclass(frozen=True)
class BatchPlan:
    """What is to be loaded: numbers over all data sets and the epoch of each."""

    numbers: I64  # [B]
    epochs: I64  # [B]
    augmented: bool


class Loader:
    """Loads plans over data sets; `starts` are the first number of each, and of what would
    follow.
    """

    def __init__(
        self, datasets: Sequence[Dataset], settings: DataSettings, seed: int, allocate: Allocate
    ) -> None:
        self.datasets, self.settings, self.seed, self._allocate = datasets, settings, seed, allocate
        self.starts = np.cumsum([0] + [dataset.records for dataset in datasets])
        self._record_starts = np.cumsum([0] + [dataset.index.records for dataset in datasets])
        self.spent = StageSeconds()

    def load(self, plan: BatchPlan, sources: Sequence[Source]) -> Records:
        """Read, check and decode the records of one batch; raises DataError for a damaged one if it
        is to stop.
        """
        count = len(plan.numbers)
        images = self._allocate((count, *self.settings.shape))
        records, keys, record_keys, labels = np.empty((4, count), np.int64)
        batch = Records(images, records, keys, record_keys, labels)
        if len(self.datasets) == 1:
            self._load_set(batch, plan, 0, sources[0], np.arange(count))
        else:
            sets = np.searchsorted(self.starts, plan.numbers, side="right") - 1
            for number in np.unique(sets).tolist():
                self._load_set(batch, plan, number, sources[number], np.flatnonzero(sets == number))
        if batch.damaged:
            self._replace(batch, plan)
        return batch

    def samples(self, plan: BatchPlan, sources: Sequence[Source]) -> list[dict[str, Any]]:
        """Records as webdataset's samples, checked and not decoded; raises DataError for a damaged
        one.
        """
        samples = []
        for number in plan.numbers.tolist():
            which = int(np.searchsorted(self.starts, number, side="right") - 1)
            place = np.array([number - self.starts[which]])
            loaded, dataset = sources[which].load(place), self.datasets[which]
            if loaded.faults:
                raise DataError(loaded.faults[0])
            record = int(dataset.chosen(place)[0])
            samples.append(_sample(dataset, record, loaded))
        return samples

    def _load_set(
        self, batch: Records, plan: BatchPlan, number: int, source: Source, places: I64
    ) -> None:
        """Fill the places of a batch whose records are of one data set."""
        began = time.perf_counter()
        dataset, numbers = self.datasets[number], plan.numbers[places] - self.starts[number]
        loaded = source.load(numbers)
        began = self.spent.add("read", began)
        batch.records[places] = dataset.chosen(numbers) + self._record_starts[number]
        batch.labels[places] = loaded.rows["label"]
        hashes = loaded.rows["key_hash"].copy()
        # Keys of two data sets may be equal, so each set has a seed of its own.
        seed = self.seed if number == 0 else chain(self.seed, number)
        batch.record_keys[places] = order.record_keys(seed, hashes)
        epochs = plan.epochs[places]
        for epoch in set(epochs.tolist()):
            within = epochs == epoch
            batch.keys[places[within]] = order.keys(seed, epoch, hashes[within])
        faults = self._decode(dataset, batch, plan.augmented, places, loaded)
        self.spent.add("decode", began)
        if faults and self.settings.damaged == "stop":
            raise DataError(faults[min(faults)])
        batch.damaged.update({int(places[place]): line for place, line in faults.items()})

    def _decode(
        self, dataset: Dataset, batch: Records, augmented: bool, places: I64, loaded: Loaded
    ) -> dict[int, str]:
        """Decode into the rows of the batch; what is wrong with which of the loaded."""
        keys, settings, about = batch.keys[places], self.settings, dataset.index.about
        cut = crops(keys, settings.random_crop) if augmented and settings.random_crop < 1 else None
        mirrored = order.flips(keys) if augmented and settings.flip else np.zeros(len(keys), bool)
        if (
            cut is None
            and not loaded.faults
            and about.format in ("npy", "raw")
            and about.shape == settings.shape
        ):
            images = (
                batch.images
                if len(places) == len(batch.images)
                else np.empty_like(batch.images[places])
            )
            if copy_bare(loaded.payloads, images):
                if images is not batch.images:
                    batch.images[places] = images
                flipped = places[mirrored]
                batch.images[flipped] = batch.images[flipped, :, :, ::-1]
                return loaded.faults
        raw_shape, faults = about.shape if about.format == "raw" else None, dict(loaded.faults)
        for place, (row, payload) in enumerate(zip(places.tolist(), loaded.payloads, strict=True)):
            if place in faults:
                continue
            try:
                crop = None if cut is None else cut[place]
                decode_into(
                    batch.images[row],
                    payload,
                    settings.fit,
                    raw_shape,
                    crop,
                    bool(mirrored[place]),
                    settings.most_pixels,
                )
            except DataError as error:
                record = int(batch.records[row] - self._record_starts[self.datasets.index(dataset)])
                faults[place] = (
                    f"{dataset.shards.where(record)}: the image {error}: pack the images again"
                    " without it"
                )
        return faults

    def _replace(self, batch: Records, plan: BatchPlan) -> None:
        """Replace each damaged record by another, by a rule that depends on the record alone."""
        for place in sorted(batch.damaged):
            number = int(plan.numbers[place])
            for attempt in range(TRIES):
                other = np.array([order.substitute(number, attempt, int(self.starts[-1]))])
                single = _single(batch, place)
                chosen = int(np.searchsorted(self.starts, other[0], side="right") - 1)
                self._load_set(
                    single,
                    BatchPlan(other, plan.epochs[place : place + 1], plan.augmented),
                    chosen,
                    self.datasets[chosen],
                    np.array([0]),
                )
                if not single.damaged:
                    break
            else:
                raise DataError(
                    f"{batch.damaged[place]} (and so are {TRIES} others that might replace it)"
                )


def _sample(dataset: Dataset, record: int, loaded: Loaded) -> dict[str, Any]:
    index, payload = dataset.index, loaded.payloads[0]
    kind = "raw" if index.about.format == "raw" else read_header(payload, HIGHEST_LIMIT).kind
    shard = name_of(index.shard_path(int(index.shard_of(np.array([record]))[0])))
    sample: dict[str, Any] = {"__key__": index.key(record), "__url__": shard}
    sample["jpg" if kind == "jpeg" else kind] = payload
    label = int(loaded.rows["label"][0])
    return {**sample, "cls": str(label).encode()} if label >= 0 else sample


def _single(batch: Records, place: int) -> Records:
    """One row of a batch as a batch of its own, of the same memory."""
    one = slice(place, place + 1)
    return Records(
        batch.images[one],
        batch.records[one],
        batch.keys[one],
        batch.record_keys[one],
        batch.labels[one],
    )


def copy_bare(payloads: list[bytes], images: Pixels) -> bool:
    """Copy bare pixels that lie behind equal headers (raw: of no bytes) into a batch; False if they
    are not that.
    """
    if not payloads:
        return True
    pixels = images[0].size
    head = len(payloads[0]) - pixels
    if head < 0 or any(len(payload) != head + pixels for payload in payloads):
        return False
    rows = images.reshape(len(payloads), pixels)
    if pixels < SMALL:  # one copy of all costs less than a call for each
        table = np.frombuffer(b"".join(payloads), np.uint8).reshape(len(payloads), head + pixels)
        rows[:] = table[:, head:]
        return not head or bool((table[:, :head] == table[0, :head]).all())
    first = payloads[0][:head]
    for row, payload in zip(rows, payloads, strict=True):
        row[:] = np.frombuffer(payload, np.uint8, pixels, head)
    return all(payload.startswith(first) for payload in payloads)
