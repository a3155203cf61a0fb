"""Loads planned records into a batch of pixels: read, verified, decoded, cropped, mirrored.

Safe for any number of threads; the result depends only on the plan. A damaged record stops the
run, or another record replaces it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from udl_dist.core.rng import chain
from udl_dist.data.images.coding import copy_bare, decode_into
from udl_dist.data.images.fitting import F64, crops
from udl_dist.data.images.headers import HIGHEST_LIMIT, read_header
from udl_dist.data.loader import order
from udl_dist.data.loader.dataset import Dataset
from udl_dist.data.loader.decoded import MakeRows, nothing_decoded
from udl_dist.data.loader.records import I64, Allocate, KeysAhead, Records, StageSeconds
from udl_dist.data.settings import DataSettings
from udl_dist.data.shards.index import Index
from udl_dist.data.shards.reading import Loaded
from udl_dist.errors import DataError
from udl_dist.storage.uris import name_of

TRIES = 100  # substitutes for one damaged record, each as likely damaged as any


class RecordSource(Protocol):
    """A data set, or a reader that fetches its records ahead."""

    def load(self, numbers: I64) -> Loaded: ...


@dataclass(frozen=True)
class BatchPlan:
    """Which records a batch has: numbers over all data sets, and the epoch of each."""

    numbers: I64  # [B]
    epochs: I64  # [B]
    augmented: bool
    ahead: KeysAhead | None = None


class Loader:
    """Loads plans over data sets; number k of set i is `starts[i] + k` of all."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        settings: DataSettings,
        seed: int,
        allocate: Allocate,
        decoded: MakeRows = nothing_decoded,
    ) -> None:
        self.datasets, self.settings, self.seed, self._allocate = datasets, settings, seed, allocate
        self.starts = np.cumsum([0] + [dataset.records for dataset in datasets])
        # Numbers in reports count the records of the index, chosen or not: they lead to a shard.
        self._record_starts = np.cumsum([0] + [dataset.index.records for dataset in datasets])
        self.spent = StageSeconds()
        self.decoded = decoded(int(self.starts[-1]), settings.shape)

    def load(self, plan: BatchPlan, sources: Sequence[RecordSource]) -> Records:
        """Load one batch; raise DataError for a damaged record, unless another may replace it."""
        batch = Records.empty(
            len(plan.numbers),
            self.settings.shape,
            self._allocate,
            self.decoded.on_device,
            plan.ahead,
        )
        sets = self._sets(plan.numbers)
        for number in sorted(set(sets.tolist())):
            rows = np.flatnonzero(sets == number)
            batch.damaged.update(self._fill(batch, rows, plan, number, sources[number]))
        for row in sorted(batch.damaged):
            self._replace(batch, row, plan)
        if plan.augmented and self.settings.flip:
            # After all else: decoded rows stay as they are, and mirrored in half of the epochs.
            flipped = order.flips(batch.keys)
            if batch.on_device:
                batch.on_device.flipped[:] = flipped
            else:
                batch.images[flipped] = batch.images[flipped, :, :, ::-1]
        # The key of a record that replaces another was not known ahead.
        return replace(batch, ahead=None) if batch.damaged else batch

    def samples(self, plan: BatchPlan, sources: Sequence[RecordSource]) -> list[dict[str, Any]]:
        """Records as webdataset's samples, not decoded; raise DataError for a damaged one."""
        samples = list[dict[str, Any]]()
        for number in self._sets(plan.numbers).tolist():
            dataset = self.datasets[number]
            place = plan.numbers[len(samples) :][:1] - self.starts[number]
            loaded = sources[number].load(place)
            if loaded.faults:
                raise DataError(loaded.faults[0])
            samples.append(_sample(dataset.index, int(dataset.chosen(place)[0]), loaded))
        return samples

    def keys_ahead(self, numbers: I64, epochs: I64) -> I64:
        """The random keys of records in these epochs, before they are loaded. 2 x [B] -> [B]"""
        sets, keys = self._sets(numbers), np.empty_like(numbers)
        for number in set(sets.tolist()):
            rows = np.flatnonzero(sets == number)
            dataset = self.datasets[number]
            records = dataset.chosen(numbers[rows] - self.starts[number])
            # Not verified, which takes a pass over each shard's rows: loading does so.
            hashes = dataset.index.rows["key_hash"][records]
            keys[rows] = _keys(self._seed(number), hashes, epochs[rows])
        return keys

    def _seed(self, number: int) -> int:
        # Keys of two data sets may be equal, so each set has its own seed.
        return self.seed if number == 0 else chain(self.seed, number)

    def _sets(self, numbers: I64) -> I64:
        """The data set of each number. [B] -> [B]"""
        return np.searchsorted(self.starts, numbers, side="right") - 1

    def _fill(
        self, batch: Records, rows: I64, plan: BatchPlan, number: int, source: RecordSource
    ) -> dict[int, str]:
        """Load the rows of a batch that are of data set `number`; return the damage by row."""
        began = time.perf_counter()
        dataset, numbers = self.datasets[number], plan.numbers[rows]
        records = dataset.chosen(numbers - self.starts[number])
        here = self.decoded.has(numbers)
        new = np.flatnonzero(~here)
        loaded = source.load(numbers[new] - self.starts[number]) if len(new) else None
        # Of all records, also those whose pixels are here: labels and keys are of the index.
        about = dataset.shards.rows(records) if loaded is None or here.any() else loaded.rows
        began = self.spent.add("read", began)
        batch.records[rows] = records + self._record_starts[number]
        batch.labels[rows] = about["label"]
        # A field of rows is strided, so slower to mix.
        hashes, seed = np.ascontiguousarray(about["key_hash"]), self._seed(number)
        batch.record_keys[rows] = order.record_keys(seed, hashes)
        batch.keys[rows] = (
            _keys(seed, hashes, plan.epochs[rows])
            if plan.ahead is None
            else plan.ahead.keys[plan.ahead.start + rows]
        )
        if batch.on_device:
            batch.on_device.places[rows] = np.where(numbers < self.decoded.rows, numbers, -1)
            batch.on_device.stored[rows] = here
        elif here.any():
            self.decoded.take(numbers[here], batch.images, rows[here])
        faults = dict[int, str]()
        if loaded is not None:
            faults = self._decode(batch, rows[new], plan.augmented, dataset, loaded)
            good = np.delete(new, list(faults)) if faults else new
            if batch.on_device:
                # What is damaged has no pixels to store.
                batch.on_device.places[rows[new[[*faults]]]] = -1
            else:
                self.decoded.put(numbers[good], batch.images, rows[good])
            for place in faults.keys() - loaded.faults.keys():
                where = dataset.shards.where(int(records[new[place]]))
                faults[place] = (
                    f"{where}: the image {faults[place]}: pack the images again without it"
                )
        self.spent.add("decode", began)
        # The first of the batch, so that a rerun reports the same one.
        if faults and self.settings.damaged == "stop":
            raise DataError(faults[min(faults)])
        return {int(rows[new[place]]): line for place, line in faults.items()}

    def _decode(
        self, batch: Records, rows: I64, augmented: bool, dataset: Dataset, loaded: Loaded
    ) -> dict[int, str]:
        """Decode into the rows of the batch; return what is wrong, by place in `loaded`."""
        settings, about = self.settings, dataset.index.about
        cut: F64 | None = None
        if augmented and settings.random_crop < 1:
            cut = crops(batch.keys[rows], settings.random_crop)
        stored = about.shape == settings.shape and about.format in ("npy", "raw")
        # Pixels that are stored as the batch needs them are only copied.
        if stored and cut is None and not loaded.faults:
            # All rows, the usual case, are written in place; a copy of the batch would cost more.
            whole = len(rows) == len(batch.images)
            images = batch.images if whole else np.empty_like(batch.images[rows])
            # If not, all rows are decoded below, also those it has written.
            if copy_bare(loaded.payloads, images):
                if not whole:
                    batch.images[rows] = images
                return {}
        raw_shape, faults = about.shape if about.format == "raw" else None, dict(loaded.faults)
        for place, (row, payload) in enumerate(zip(rows.tolist(), loaded.payloads, strict=True)):
            if place in faults:
                continue
            crop, most = None if cut is None else cut[place], settings.most_pixels
            try:
                decode_into(batch.images[row], payload, settings.fit, raw_shape, crop, most)
            except DataError as error:
                faults[place] = str(error)
        return faults

    def _replace(self, batch: Records, row: int, plan: BatchPlan) -> None:
        """Replace a damaged record by another, by a rule that depends only on the record."""
        numbers, damaged = plan.numbers.copy(), int(plan.numbers[row])
        for attempt in range(TRIES):
            # From this record alone: the same one at any world size and after a resume.
            numbers[row] = order.substitute(damaged, attempt, int(self.starts[-1]))
            number = int(self._sets(numbers[row : row + 1])[0])
            other = replace(plan, numbers=numbers, ahead=None)
            # From the data set itself: a reader ahead has not been asked for this record.
            if not self._fill(batch, np.array([row]), other, number, self.datasets[number]):
                return
        others = f"(and so are {TRIES} others that might replace it)"
        raise DataError(f"{batch.damaged[row]} {others}")


def _keys(seed: int, hashes: NDArray[Any], epochs: I64) -> I64:
    """The keys of records in their epochs. [B] hashes of their names, [B] -> [B]"""
    keys = np.empty(len(hashes), np.int64)
    for epoch in set(epochs.tolist()):
        within = epochs == epoch
        keys[within] = order.keys(seed, epoch, hashes[within])
    return keys


def _sample(index: Index, record: int, loaded: Loaded) -> dict[str, Any]:
    payload, label = loaded.payloads[0], int(loaded.rows["label"][0])
    kind = "raw" if index.about.format == "raw" else read_header(payload, HIGHEST_LIMIT).kind
    shard = name_of(index.shard_path(int(index.shard_of(np.array([record]))[0])))
    sample: dict[str, Any] = {"__key__": index.key(record), "__url__": shard}
    sample["jpg" if kind == "jpeg" else kind] = payload
    return {**sample, "cls": str(label).encode()} if label >= 0 else sample
