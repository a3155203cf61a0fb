"""Opens the streams of a prepared source, in any process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from udl_dist.data.loader.dataset import Dataset
from udl_dist.data.loader.decoded import MakeRows, nothing_decoded
from udl_dist.data.loader.reader import Stream
from udl_dist.data.loader.records import Allocate, unpinned
from udl_dist.data.loader.selection import Wanted, none_left, refuse_absent, select
from udl_dist.data.settings import DataSettings, cache_folder
from udl_dist.data.shards.index import NAME, Index
from udl_dist.data.shards.reading import RemoteAccess
from udl_dist.errors import DataError
from udl_dist.storage.objects import Object, download, exists
from udl_dist.storage.range_cache import RangeCache
from udl_dist.storage.uris import is_remote, joined, name_of, split


@dataclass(frozen=True)
class Prepared:
    """Where the indexes of a run are: text and numbers, so that other machines can get it."""

    settings: DataSettings
    train: tuple[str, ...]  # path or URI of the index of each source
    held_out: tuple[str, ...]  # likewise; "" where a fraction of `train` or nothing is held out
    fractions: tuple[float, ...]  # part of each source held out by hash; 0: none


def open_streams(
    prepared: Prepared,
    seed: int,
    allocate: Allocate = unpinned,
    most_held_out: int = 0,
    decoded: MakeRows = nothing_decoded,
) -> tuple[Stream, Stream | None]:
    """The training stream and the held-out one of a prepared source, None if nothing is held out.

    `allocate` makes the memory of a batch, so that it can be pinned. At most `most_held_out`
    images are held out, the same ones for every seed; 0: all of them. `decoded` makes the place of
    decoded images; without it each epoch decodes again.
    """
    settings, opener = prepared.settings, _Opener(prepared.settings)
    # Of a hashed fraction, what is left out here is what `_held_out` selects.
    without, train = settings.without_labels, []
    for where, fraction in zip(prepared.train, prepared.fractions, strict=True):
        # Where the source has a held-out set of its own, all of the training set is trained on.
        part = "train" if fraction else "all"
        wanted = Wanted(part, fraction, settings.keys, settings.limit, without)
        train.append(opener.required(where, wanted))
    # A misspelt class would silently leave nothing out.
    refuse_absent([dataset.index for dataset in train], without)
    # Weights are for training alone: validation counts each image once.
    stream = Stream(train, settings, seed, settings.weights, allocate, decoded)
    held_out = [opener.required(*each) for each in _held_out(prepared)]
    if not held_out:
        return stream, None
    total = sum(part.records for part in held_out)
    if 0 < most_held_out < total:
        # In proportion, or the first sets would be all that validation sees.
        held_out = [part.part(max(1, most_held_out * part.records // total)) for part in held_out]
    return stream, Stream(held_out, settings, seed, (), allocate, decoded)


def open_left_out(prepared: Prepared, seed: int) -> Stream | None:
    """The held-out images of the classes that training never saw; None if there are none."""
    settings, opener = prepared.settings, _Opener(prepared.settings)
    if not settings.without_labels:
        return None
    found = [
        dataset
        for where, wanted in _held_out(prepared)
        if (dataset := opener.dataset(where, replace(wanted, labels_are="all there is")))
    ]
    return Stream(found, settings, seed) if found else None


def _held_out(prepared: Prepared) -> Iterator[tuple[str, Wanted]]:
    """The index of each held-out set, and what is selected of it."""
    settings, without = prepared.settings, prepared.settings.without_labels
    for where, other, fraction in zip(
        prepared.train, prepared.held_out, prepared.fractions, strict=True
    ):
        if other:
            yield other, Wanted(labels=without)
        elif fraction:
            yield where, Wanted("held_out", fraction, settings.keys, labels=without)


# One index may be opened as two data sets, of its training and its held-out records.
class _Opener:
    """Opens the data sets of a run, which share indexes and the access to object storage."""

    def __init__(self, settings: DataSettings) -> None:
        self._cache, self._access = cache_folder(settings.cache), RemoteAccess(settings.storage)
        if settings.storage_cache_bytes:
            self._access.cache = RangeCache(self._cache / "ranges", settings.storage_cache_bytes)
        self._indexes: dict[str, Index] = {}

    def dataset(self, where: str, wanted: Wanted) -> Dataset | None:
        """The wanted records of an index; None if there are none."""
        index = self._indexes.get(where) or open_index(where, self._cache)
        self._indexes[where] = index
        selection, name = select(index, wanted, self._cache)
        if selection is not None and not len(selection):
            return None
        return Dataset(index, selection, name, self._access)

    def required(self, where: str, wanted: Wanted) -> Dataset:
        """The wanted records of an index; raise DataError if there are none."""
        if dataset := self.dataset(where, wanted):
            return dataset
        index = self._indexes[where]
        source = index.about.source or name_of(split(index.shard_path(0))[0])
        if not wanted.keys and not wanted.labels:
            raise none_left(wanted.part == "held_out", wanted.fraction, index.records, source)
        cause = "data.keys" if wanted.keys else "data.without_labels"
        raise DataError(
            f"{cause} leaves none of the {index.records:,} images in {source!r} here: change it,"
            " or data.held_out_fraction"
        )


def index_in_folder(folder: str) -> str:
    """Path or URI of the index in a folder of shards; "" if there is none."""
    # A local path is asked of the disk, a URI by one HEAD request.
    remote = is_remote(folder)
    where = joined(folder, NAME) if remote else f"{folder}/{NAME}"
    return where if (exists(where) if remote else os.path.exists(where)) else ""


def open_index(where: str, cache: Path) -> Index:
    """Open an index by path or URI; one in object storage is copied to the cache."""
    if not is_remote(where):
        return Index.open(where)
    blob = Object(where)
    writing = xxhash.xxh3_128_hexdigest(f"{where} {blob.stamp} {blob.size}".encode())
    # Named by its stamp, so that an index that is written again is a new copy.
    copy = cache / "indexes" / f"{writing}.udl"
    if not copy.exists():
        # The rows of an index are mapped, which object storage cannot offer.
        copy.parent.mkdir(parents=True, exist_ok=True)
        download(where, copy)
    # Its shards are named relative to where it came from, not to the cache.
    return Index.open(copy, split(where)[0])
