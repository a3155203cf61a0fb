"""The index of the shards that a source names: found beside them or in the cache, or made."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from udl_dist.data.loader.opening import index_beside, open_index
from udl_dist.data.packing.finding import list_shards, passed_by
from udl_dist.data.packing.settings import IndexSettings
from udl_dist.data.settings import cache_folder
from udl_dist.data.shards.index import NAME, About, Index, refusal
from udl_dist.data.shards.indexing import Progress, index_shards
from udl_dist.data.shards.naming import Naming
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
    passed_by: int  # hidden files and folders that are called like shards
    fingerprint: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain values."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """The figures for people."""
        said = f"; {self.ignored:,} members are not read" if self.ignored else ""
        said += f"; {self.left_out:,} that cannot be read are left out" if self.left_out else ""
        said += (
            f"; {self.passed_by:,} files or folders called like shards are passed by"
            if self.passed_by
            else ""
        )
        return [
            f"indexed {self.records:,} records in {self.shards:,} shards of"
            f" {self.total_bytes / 1e6:,.1f} MB, in {self.seconds:.1f} s:"
            f" {name_of(self.index)!r}{said}"
        ]


def index(source: str, settings: IndexSettings, progress: Progress | None = None) -> Indexed:
    """Index what `source` names, beside the shards if they fill their folder; what is there already
    is looked up.

    Raises UsageError if it names no shards, DataError for what is out of order in them.
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
        about = _forget(shards, cache, about)
    skip = settings.damaged == "skip"
    if is_remote(shards[0]) and _fills_folder(shards) and not index_beside(split(shards[0])[0]):
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
        passed_by(source),
        found.fingerprint,
        time.monotonic() - began,
    )


def refuse_left_out(index: Index, skip: bool) -> None:
    """Raise DataError if records were left out of an index and nobody asked for that."""
    if index.left_out and not skip:
        folder = index.shard_path(0)
        raise refusal(
            [(sibling(folder, split(name)[1]), fault) for name, fault in index.faults],
            index.left_out,
        )


def index_of(
    shards: list[str],
    cache: Path,
    progress: Progress | None = None,
    about: About = PLAIN,
    skip: bool = False,
    asked: bool = False,
) -> str:
    """Where the index of shards is: beside them if they fill their folder and it can be written,
    else in the cache.

    `about` says how members become records; one that is not the usual is written beside the shards
    only if an index was `asked` for. `skip` leaves out what cannot be read.
    """
    folder, usual = split(shards[0])[0], about.naming == PLAIN.naming
    fills = _fills_folder(shards)
    beside = index_beside(folder) if fills else ""
    if beside:
        index = open_index(beside, cache)
        if usual or index.about.naming == about.naming:
            _refuse_others(index, shards)
            return beside
    elif fills and not is_remote(folder) and (usual or asked) and os.access(folder, os.W_OK):
        return str(index_shards(shards, Path(folder) / NAME, about, progress, skip=skip).path)
    path = in_cache(shards, cache, about.naming)
    return str(
        path if path.exists() else index_shards(shards, path, about, progress, skip=skip).path
    )


def in_cache(shards: list[str], cache: Path, naming: Naming = PLAIN.naming) -> Path:
    """Where the cache has the index of just these shards as they are now, or will have it;
    DataError if one is missing.

    Of shards in object storage it is not asked how they are now: their ETags are in the index.
    """
    rules = [] if naming == PLAIN.naming else [repr(naming)]
    if is_remote(shards[0]):
        return _cached([*rules, *shards], cache)
    try:
        states = [
            f"{shard!r} {status.st_size} {status.st_mtime_ns}"
            for shard, status in zip(shards, map(os.stat, shards), strict=True)
        ]
    except OSError:
        missing = next((shard for shard in shards if not Path(shard).exists()), shards[0])
        raise DataError(
            f"shard {missing!r} is missing: check the path, or copy the shard again"
        ) from None
    return _cached([*rules, *states], cache)


def _upload_index(
    shards: list[str], cache: Path, progress: Progress | None, about: About, skip: bool
) -> None:
    """Index shards in object storage and put the index beside them, so that nobody has to make it
    again.
    """
    folder = split(shards[0])[0]
    path = _cached([folder, *shards], cache)
    index_shards(shards, path, about, progress, base=folder, skip=skip)
    upload(path, joined(folder, NAME))
    path.unlink()


def _forget(shards: list[str], cache: Path, about: About) -> About:
    """Take away the index that `index_of` would find; what it said of packed images belongs into
    the new one.
    """
    folder = split(shards[0])[0]
    if _fills_folder(shards) and (found := index_beside(folder)):
        with contextlib.suppress(DataError):
            known = open_index(found, cache).about
            about = (
                replace(known, image=about.image, key_dot=about.key_dot) if known.shape else about
            )
    if is_remote(folder):
        if _fills_folder(shards) and (beside := index_beside(folder)):
            remove(beside)
    elif _fills_folder(shards):
        (Path(folder) / NAME).unlink(missing_ok=True)
    in_cache(shards, cache, about.naming).unlink(missing_ok=True)
    return about


def _fills_folder(shards: list[str]) -> bool:
    """Whether the shards are just the tars of one folder; no other index may be called by the
    folder's name.
    """
    return not is_web(shards[0]) and shards == list_shards(split(shards[0])[0])


def _cached(states: list[str], cache: Path) -> Path:
    name = xxhash.xxh3_128_hexdigest("\n".join(states).encode())
    return writable(cache / "indexes") / f"{name}.udl"


def _refuse_others(index: Index, shards: list[str]) -> None:
    """Raise DataError unless the index is of just these shards, as far as can be seen without
    opening them.
    """
    folder = split(shards[0])[0]
    known, there = {shard.name for shard in index.shards}, {split(shard)[1] for shard in shards}
    odd = sorted(known ^ there)
    what = (
        "is in the index but not in the folder"
        if odd and odd[0] in known
        else "is not in the index"
    )
    if not odd and not is_remote(folder):
        sizes = (
            (shard.name, shard.shard_bytes, os.stat(Path(folder) / shard.name).st_size)
            for shard in index.shards
        )
        differing = [
            (name, f"has {now} bytes, its index says {then}")
            for name, then, now in sizes
            if then != now
        ]
        odd, what = ([differing[0][0]], differing[0][1]) if differing else ([], "")
    if odd:
        raise DataError(
            f"shard {name_of(folder)}/{odd[0]} {what}: put it right, or run udl index --again"
        )


def writable(folder: Path) -> Path:
    """A folder that is there from now on; raise UsageError if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write to {str(folder)!r} ({error.strerror}): set data.cache"
        ) from None
    return folder
