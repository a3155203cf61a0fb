"""The index of the shards that a source names: found beside them or in the cache, or made."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from udl_dist.errors import DataError, UsageError
from udl_dist.packing.finding import list_shards
from udl_dist.packing.settings import IndexSettings
from udl_dist.shards.index import NAME, Index
from udl_dist.shards.indexing import Progress, index_shards
from udl_dist.storage.places import is_remote, joined, name_of, split
from udl_dist.stream.opening import index_beside, open_index
from udl_dist.stream.settings import cache_folder


@dataclass(frozen=True)
class Indexed:
    """What was indexed."""

    index: str
    shards: int
    records: int
    total_bytes: int
    ignored: int  # members that belong to no record or are never read
    fingerprint: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain values."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """The figures for people."""
        passed_by = f"; {self.ignored:,} members are not read" if self.ignored else ""
        return [f"indexed {self.records:,} records in {self.shards:,} shards of {self.total_bytes / 1e6:,.1f} MB, "
                f"in {self.seconds:.1f} s: {name_of(self.index)!r}{passed_by}"]  # fmt: skip


def index(source: str, settings: IndexSettings, progress: Progress | None = None) -> Indexed:
    """Index what `source` names, beside the shards if they fill their folder; what is there already is looked up.

    Raises UsageError if it names no shards, DataError for what is out of order in them.
    """
    began = time.monotonic()
    shards = list_shards(source)
    if not shards:
        raise UsageError(f"{source!r} names no tar shards: give a folder of them, a pattern, a list or s3://...")
    cache = cache_folder(settings.cache)
    if settings.again:
        _forget(shards, cache)
    if is_remote(shards[0]) and _fills_folder(shards) and not index_beside(split(shards[0])[0]):
        _upload_index(shards, cache, progress)
    where = index_of(shards, cache, progress)
    found = open_index(where, cache)
    return Indexed(where, len(found.shards), found.records, sum(shard.shard_bytes for shard in found.shards),
                   sum(shard.ignored for shard in found.shards), found.fingerprint,
                   time.monotonic() - began)  # fmt: skip


def index_of(shards: list[str], cache: Path, progress: Progress | None = None) -> str:
    """Where the index of shards is: beside them if they fill their folder and it can be written, else in the cache."""
    folder = split(shards[0])[0]
    if is_remote(folder):
        return _index_of_remote(shards, cache, progress)
    if _fills_folder(shards):
        beside = Path(folder) / NAME
        if beside.exists():
            _refuse_others(Index.open(beside), shards)
            return str(beside)
        if os.access(folder, os.W_OK):
            return str(index_shards(shards, beside, progress=progress).path)
    path = in_cache(shards, cache)
    return str(path if path.exists() else index_shards(shards, path, progress=progress).path)


def _index_of_remote(shards: list[str], cache: Path, progress: Progress | None) -> str:
    folder = split(shards[0])[0]
    if _fills_folder(shards) and (beside := index_beside(folder)):
        _refuse_others(open_index(beside, cache), shards)
        return beside
    path = in_cache(shards, cache)
    if not path.exists():
        index_shards(shards, path, progress=progress)
    return str(path)


def in_cache(shards: list[str], cache: Path) -> Path:
    """Where the cache has the index of just these shards as they are now, or will have it; DataError if one is missing.

    Of shards in object storage it is not asked how they are now: their ETags are in the index.
    """
    if is_remote(shards[0]):
        return _cached(shards, cache)
    try:
        states = [f"{shard!r} {status.st_size} {status.st_mtime_ns}"
                  for shard, status in zip(shards, map(os.stat, shards), strict=True)]  # fmt: skip
    except OSError:
        missing = next((shard for shard in shards if not Path(shard).exists()), shards[0])
        raise DataError(f"shard {missing!r} is missing: check the path, or copy the shard again") from None
    return _cached(states, cache)


def _upload_index(shards: list[str], cache: Path, progress: Progress | None) -> None:
    """Index shards in object storage and put the index beside them, so that nobody has to make it again."""
    from udl_dist.storage.objects import upload

    folder = split(shards[0])[0]
    path = _cached([folder, *shards], cache)
    index_shards(shards, path, progress=progress, base=folder)
    upload(path, joined(folder, NAME))
    path.unlink()


def _forget(shards: list[str], cache: Path) -> None:
    """Take away the index that `index_of` would find."""
    folder = split(shards[0])[0]
    if is_remote(folder):
        from udl_dist.storage.objects import remove

        if _fills_folder(shards) and (beside := index_beside(folder)):
            remove(beside)
    elif _fills_folder(shards):
        (Path(folder) / NAME).unlink(missing_ok=True)
    in_cache(shards, cache).unlink(missing_ok=True)


def _fills_folder(shards: list[str]) -> bool:
    """Whether the shards are just the tars of one folder; no other index may be called by the folder's name."""
    return shards == list_shards(split(shards[0])[0])


def _cached(states: list[str], cache: Path) -> Path:
    name = xxhash.xxh3_128_hexdigest("\n".join(states).encode())
    return writable(cache / "indexes") / f"{name}.udl"


def _refuse_others(index: Index, shards: list[str]) -> None:
    """Raise DataError unless the index is of just these shards, as far as can be seen without opening them."""
    folder = split(shards[0])[0]
    known, there = {shard.name for shard in index.shards}, {split(shard)[1] for shard in shards}
    odd = sorted(known ^ there)
    what = "is in the index but not in the folder" if odd and odd[0] in known else "is not in the index"
    if not odd and not is_remote(folder):
        sizes = ((shard.name, shard.shard_bytes, os.stat(Path(folder) / shard.name).st_size) for shard in index.shards)
        differing = [(name, f"has {now} bytes, its index says {then}") for name, then, now in sizes if then != now]
        odd, what = ([differing[0][0]], differing[0][1]) if differing else ([], "")
    if odd:
        raise DataError(f"shard {name_of(folder)}/{odd[0]} {what}: put it right, or run udl index --again")


def writable(folder: Path) -> Path:
    """A folder that is there from now on; raise UsageError if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {str(folder)!r} ({error.strerror}): set data.cache") from None
    return folder
