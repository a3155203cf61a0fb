"""The index of the shards that a source names: next to them or in the cache, made if missing."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from udl_dist.data.loader.opening import index_in_folder, open_index
from udl_dist.data.packing.finding import ignored_tars, list_shards
from udl_dist.data.settings import IndexSettings, cache_folder
from udl_dist.data.shards.index import NAME, About, Index
from udl_dist.data.shards.indexing import Progress, index_shards
from udl_dist.data.shards.naming import Naming
from udl_dist.data.shards.records import refusal
from udl_dist.errors import DataError, UsageError
from udl_dist.storage.objects import remove, upload
from udl_dist.storage.uris import is_remote, is_web, joined, name_of, sibling, split

PLAIN = About()


@dataclass(frozen=True)
class Indexed:
    """What was indexed."""

    index: str
    shards: int
    records: int
    total_bytes: int
    ignored: int  # members that belong to no record or are never read
    left_out: int  # records that cannot be read
    passed_by: int  # hidden files and folders with the name of a shard
    fingerprint: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return vars(self)

    def lines(self) -> list[str]:
        """The counts for people."""
        notes = {
            "members are ignored": self.ignored,
            "unreadable records are left out": self.left_out,
            "hidden files and folders named like shards are ignored": self.passed_by,
        }
        return [
            f"indexed {self.records:,} records in {self.shards:,} shards of"
            f" {self.total_bytes / 1e6:,.1f} MB, in {self.seconds:.1f} s: {name_of(self.index)!r}"
            + "".join(f"; {count:,} {note}" for note, count in notes.items() if count)
        ]


def index(source: str, settings: IndexSettings, progress: Progress | None = None) -> Indexed:
    """Index what `source` names, next to the shards if they fill their folder.

    Raises UsageError if it names no shards, DataError for damage in them.
    """
    began = time.monotonic()
    shards = list_shards(source)
    if not shards:
        raise UsageError(
            f"{source!r} names no tar shards: give a folder of them, a pattern, a list or s3://..."
        )
    cache = cache_folder(settings.cache)
    about = About(image=settings.image, key_dot=settings.key_dot)
    if settings.again:
        # Only the packing knows the shape of bare pixels and the names of classes.
        about = _forget(shards, cache, about)
    skip = settings.damaged == "skip"
    folder = split(shards[0])[0]
    # Only when asked for: training never writes into a bucket of images.
    if is_remote(folder) and _fills_folder(shards) and not index_in_folder(folder):
        _upload_index(shards, cache, progress, about, skip)
    where = index_of(shards, cache, progress, about, skip, asked=True)
    found = open_index(where, cache)
    refuse_left_out(found, skip)
    return Indexed(
        where,
        len(found.shards),
        found.records,
        sum(shard.shard_bytes for shard in found.shards),
        sum(shard.ignored for shard in found.shards),
        found.left_out,
        ignored_tars(source),
        found.fingerprint,
        time.monotonic() - began,
    )


def refuse_left_out(index: Index, skip: bool) -> None:
    """Raise DataError if records were left out of an index and the settings do not skip them."""
    if index.left_out and not skip:
        folder = index.shard_path(0)
        faults = [(sibling(folder, split(name)[1]), fault) for name, fault in index.faults]
        raise refusal(faults, index.left_out)


def index_of(
    shards: list[str],
    cache: Path,
    progress: Progress | None = None,
    about: About = PLAIN,
    skip: bool = False,
    asked: bool = False,
) -> str:
    """Where the index of shards is, next to them or in the cache; made if it is missing.

    An index whose `about` has unusual rules for records is written next to the shards only if the
    user `asked` for an index. `skip` leaves out what cannot be read.
    """
    folder, usual = split(shards[0])[0], about.naming == PLAIN.naming
    fills = _fills_folder(shards)
    # An index of the folder is of all its shards: a pattern of some has its own in the cache.
    found = index_in_folder(folder) if fills else ""
    path = None
    if found:
        # One with other rules for records stays, and the cache gets another.
        index = open_index(found, cache)
        if usual or index.about.naming == about.naming:
            _refuse_others(index, shards)
            return found
    elif fills and not is_remote(folder) and (usual or asked) and os.access(folder, os.W_OK):
        path = Path(folder) / NAME
    # A read-only folder is no error.
    path = path or in_cache(shards, cache, about.naming)
    if not path.exists():
        index_shards(shards, path, about, progress, skip=skip)
    return str(path)


def in_cache(shards: list[str], cache: Path, naming: Naming = PLAIN.naming) -> Path:
    """Where the cache has, or will have, the index of exactly these shards as they are now.

    Remote shards are not looked at: their ETags are in the index.
    """
    # Names, sizes and times on disk: a shard that was replaced has another index.
    states = [] if naming == PLAIN.naming else [repr(naming)]
    for shard in shards:
        if is_remote(shard):
            states.append(shard)
            continue
        try:
            status = os.stat(shard)
        except OSError:
            raise DataError(
                f"shard {shard!r} is missing: check the path, or copy the shard again"
            ) from None
        states.append(f"{shard!r} {status.st_size} {status.st_mtime_ns}")
    return _cached(states, cache)


def _upload_index(
    shards: list[str], cache: Path, progress: Progress | None, about: About, skip: bool
) -> None:
    """Index remote shards and put the index next to them, so that it is made only once."""
    folder = split(shards[0])[0]
    # Written here first: an upload of the whole file cannot be cut off halfway.
    path = _cached([folder, *shards], cache)
    index_shards(shards, path, about, progress, base=folder, skip=skip)
    upload(path, joined(folder, NAME))
    path.unlink()


def _forget(shards: list[str], cache: Path, about: About) -> About:
    """Delete the index that `index_of` would find; return `about` with its facts of packing."""
    folder = split(shards[0])[0]
    if _fills_folder(shards) and (found := index_in_folder(folder)):
        # It may be damaged, which is why it is made again.
        with contextlib.suppress(DataError):
            known = open_index(found, cache).about
            if known.shape:
                about = replace(known, image=about.image, key_dot=about.key_dot)
        if is_remote(folder):
            remove(found)
        else:
            os.unlink(found)
    # Also the cached one, or it would be found again.
    in_cache(shards, cache, about.naming).unlink(missing_ok=True)
    return about


def _fills_folder(shards: list[str]) -> bool:
    """Whether the shards are all tars of one folder: only then its index may lie in it."""
    # A web server cannot list a folder.
    return not is_web(shards[0]) and shards == list_shards(split(shards[0])[0])


def _cached(states: list[str], cache: Path) -> Path:
    name = xxhash.xxh3_128_hexdigest("\n".join(states).encode())
    return writable(cache / "indexes") / f"{name}.udl"


def _refuse_others(index: Index, shards: list[str]) -> None:
    """Raise DataError if the index names other shards, or, on disk, other sizes of them."""
    folder = split(shards[0])[0]
    indexed = {shard.name: shard.shard_bytes for shard in index.shards}
    # Sizes only on disk: of remote shards each would cost a request, and a read compares them.
    there = {split(shard)[1] for shard in shards}
    for name in sorted(indexed.keys() | there):
        if name not in there:
            what = "is in the index but not in the folder"
        elif name not in indexed:
            what = "is not in the index"
        elif is_remote(folder) or (size := os.stat(f"{folder}/{name}").st_size) == indexed[name]:
            continue
        else:
            what = f"has {size} bytes, its index says {indexed[name]}"
        raise DataError(
            f"shard {name_of(folder)}/{name} {what}: put the right file there, or run"
            " udl index --again"
        )


def writable(folder: Path) -> Path:
    """Make a folder if it is missing; raise UsageError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write to {str(folder)!r} ({error.strerror}): set data.cache"
        ) from None
    return folder
