"""Which shards a check examines, by part, each with the index that names it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from udl_dist.core.config_schema import as_path
from udl_dist.data.images.headers import Shape
from udl_dist.data.loader.opening import index_in_folder, open_index
from udl_dist.data.packing.finding import list_shards
from udl_dist.data.packing.indexes import in_cache
from udl_dist.data.packing.parts import shards_of_parts
from udl_dist.data.shards.index import About, Index, Shard
from udl_dist.errors import DataError
from udl_dist.storage.uris import is_remote, name_of, split


@dataclass(frozen=True)
class ShardJob:
    """One shard to check: its number among all, its part, and its index."""

    number: int
    part: str
    path: str  # or URI
    index: Index | None = None
    shard: int = -1  # its number in the index

    @property
    def indexed_shard(self) -> Shard | None:
        """What the index says of the shard."""
        return self.index.shards[self.shard] if self.index else None

    @property
    def shard_bytes(self) -> int:
        """Size of the shard; 0 for one that is missing, or remote and not indexed."""
        if is_remote(self.path):
            return self.indexed_shard.shard_bytes if self.indexed_shard else 0
        return os.stat(self.path).st_size if os.path.isfile(self.path) else 0


@dataclass
class Sources:
    """Every shard of a source, and the indexes that cannot be used."""

    name: str
    jobs: list[ShardJob] = field(default_factory=list)
    # (index file, what is wrong with it)
    broken: list[tuple[str, str]] = field(default_factory=list)
    about: About = field(default_factory=About)

    def shape_of(self, job: ShardJob) -> Shape | None:
        """The shape of bare pixels in a shard, if an index knows it."""
        return job.index.about.shape if job.index else self.about.shape


def find(source: str, cache: Path) -> Sources:
    """The shards that a source names; raise DataError if there are none.

    Their indexes lie next to them, or, for patterns and lists, in the cache.
    """
    found = Sources(source)
    # As training finds them, so that a check sees what a run would see.
    for part, shards in shards_of_parts(source).items():
        _add(found, part, shards, True, cache)
    if not found.jobs:
        _add(found, "", list_shards(source), is_remote(source) or as_path(source).is_dir(), cache)
    if not found.jobs:
        raise DataError(
            f"{source!r} names no tar shard: name a folder of them, a brace pattern or a list file"
        )
    return found


def _add(found: Sources, part: str, shards: list[str], whole: bool, cache: Path) -> None:
    """Add the shards of a part; of `whole` folders also those that only the index names."""
    known: dict[str, tuple[Index, int]] = {}
    # Each folder once; a dict keeps their order.
    next_to = map(index_in_folder, dict.fromkeys(split(shard)[0] for shard in shards))
    for where in filter(None, [_in_cache(shards, cache), *next_to]):  # a later index overrides
        try:
            index = open_index(where, cache)
        except DataError as error:
            # A broken index is a finding; its shards are examined without it.
            found.broken.append((name_of(where), str(error)))
            continue
        found.about = index.about
        known |= {index.shard_path(shard): (index, shard) for shard in range(len(index.shards))}
    # Of a pattern the others are left out on purpose, so they are not missing.
    missing = [path for path in known if path not in set(shards)] if whole else []
    folders = {split(path)[0] for path in known}
    for path in [*shards, *missing]:
        found.jobs.append(ShardJob(len(found.jobs), part, path, *known.get(path, (None, -1))))
        if path not in known and split(path)[0] in folders:
            found.broken.append((name_of(path), "is not in the index of its folder: index again"))


def _in_cache(shards: list[str], cache: Path) -> str:
    """The index that the cache has of exactly these shards; empty if it has none."""
    if not shards or not (cache / "indexes").is_dir():
        return ""
    try:
        path = in_cache(shards, cache)
    except DataError:  # a shard is missing: its examination says so
        return ""
    return str(path) if path.exists() else ""
