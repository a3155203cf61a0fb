"""From a prepared source to its streams, in whichever process: what travels is `Prepared`, plain
text and numbers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import xxhash

from udl_dist.data.loader.dataset import Dataset
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
    """Where the indexes of a run are: plain text and numbers, so that it travels to other processes
    and machines.
    """

    settings: DataSettings
    train: tuple[str, ...]  # path or URI of the index of each source
    held_out: tuple[str, ...]  # likewise; empty if it is a fraction of `train`, or if there is none
    fractions: tuple[float, ...]  # part of each source held out by hash; 0: none


def open_streams(
    prepared: Prepared, seed: int, allocate: Allocate = unpinned, most_held_out: int = 0
) -> tuple[Stream, Stream | None]:
    """The training stream and the held-out one of a prepared source; None if nothing is held out.

    `allocate` makes the memory of a batch, so that it can be pinned. Held out are `most_held_out`
    images at most, the same ones for every seed; 0: all of them.
    """
    settings = prepared.settings
    cache = cache_folder(settings.cache)
    access = _access(settings, cache)
    train, held_out, without = [], [], settings.without_labels
    indexes = [open_index(where, cache) for where in prepared.train]
    refuse_absent(indexes, without)
    for index, other, fraction in zip(indexes, prepared.held_out, prepared.fractions, strict=True):
        part = "train" if fraction else "all"
        wanted = Wanted(part, fraction, settings.keys, settings.limit, without)
        train.append(_dataset(index, wanted, cache, access))
        if other:
            index, wanted = open_index(other, cache), Wanted(labels=without)
            held_out.append(_dataset(index, wanted, cache, access))
        elif fraction:
            wanted = Wanted("held_out", fraction, settings.keys, labels=without)
            held_out.append(_dataset(index, wanted, cache, access))
    stream = Stream(train, settings, seed, settings.weights, allocate)
    if not held_out:
        return stream, None
    total = sum(part.records for part in held_out)
    if 0 < most_held_out < total:
        held_out = [part.part(max(1, most_held_out * part.records // total)) for part in held_out]
    return stream, Stream(held_out, settings, seed, (), allocate)


def open_left_out(prepared: Prepared, seed: int) -> Stream | None:
    """The held-out images of the classes that training never saw; None if there are none."""
    settings = prepared.settings
    if not settings.without_labels:
        return None
    cache = cache_folder(settings.cache)
    access = _access(settings, cache)
    found = []
    for where, other, fraction in zip(
        prepared.train, prepared.held_out, prepared.fractions, strict=True
    ):
        if not (other or fraction):
            continue
        keys, part = ("", "all") if other else (settings.keys, "held_out")
        wanted = Wanted(
            part, fraction, keys, labels=settings.without_labels, labels_are="all there is"
        )
        index = open_index(other or where, cache)
        selection, name = select(index, wanted, cache)
        if selection is not None and len(selection):
            found.append(Dataset(index, selection, name, access))
    return Stream(found, settings, seed) if found else None


def _access(settings: DataSettings, cache: Path) -> RemoteAccess:
    """How object storage is read, with a local copy of what was read if one is asked for."""
    access = RemoteAccess(settings.storage)
    if settings.storage_cache_bytes:
        access.cache = RangeCache(cache / "ranges", settings.storage_cache_bytes)
    return access


def index_beside(folder: str) -> str:
    """Path or URI of the index that lies in a folder of shards; "" if there is none."""
    if not is_remote(folder):
        where = f"{folder}/{NAME}"
        return where if os.path.exists(where) else ""
    where = joined(folder, NAME)
    return where if exists(where) else ""


def open_index(where: str, cache: Path) -> Index:
    """Open an index by path or URI; of one in object storage a copy is made in the cache."""
    if not is_remote(where):
        return Index.open(where)
    blob = Object(where)
    writing = xxhash.xxh3_128_hexdigest(f"{where} {blob.stamp} {blob.size}".encode())
    copy = cache / "indexes" / f"{writing}.udl"
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        download(where, copy)
    return Index.open(copy, split(where)[0])


def _dataset(index: Index, wanted: Wanted, cache: Path, access: RemoteAccess) -> Dataset:
    """The wanted records of an index; raise DataError that names the cause if there are none."""
    selection, name = select(index, wanted, cache)
    if selection is not None and not len(selection):
        where = index.about.source or name_of(split(index.shard_path(0))[0])
        if not wanted.keys and not wanted.labels:
            raise none_left(wanted.part == "held_out", wanted.fraction, index.records, where)
        cause = "data.keys" if wanted.keys else "data.without_labels"
        raise DataError(
            f"{cause} leaves none of the {index.records:,} images in {where!r} here: change it, or "
            "data.held_out_fraction"
        )
    return Dataset(index, selection, name, access)
