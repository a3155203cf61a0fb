"""What is to be checked: the shards that a source names, by part, each with the rows that an index
has of it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from udl_dist.core.config_schema import as_path
from udl_dist.data.loader.opening import index_beside, open_index
from udl_dist.data.packing.finding import list_shards
from udl_dist.data.packing.indexes import in_cache
from udl_dist.data.packing.parts import shards_of_parts
from udl_dist.data.shards.index import About, Index
from udl_dist.errors import DataError
from udl_dist.storage.places import is_remote, name_of, split


@dataclass(frozen=True)
class Job:
    """One shard: its number among all that are checked, its part, and what indexed it."""

    number: int
    part: str
    path: str  # or URI
    index: Index | None = None
    shard: int = -1  # its number in the index

    @property
    def shard_bytes(self) -> int:
        """Bytes that are there; 0 for a shard that is not."""
        if is_remote(self.path):
            return self.index.shards[self.shard].shard_bytes if self.index else 0
        return os.stat(self.path).st_size if os.path.isfile(self.path) else 0

    @property
    def indexed(self) -> int:
        """Records that the index has of it."""
        return self.index.shards[self.shard].records if self.index else 0


@dataclass
class Sources:
    """Every shard of a source, and the indexes that cannot be used, in words."""

    jobs: list[Job] = field(default_factory=list)
    # (index file, what is wrong with it)
    broken: list[tuple[str, str]] = field(default_factory=list)
    about: About = field(default_factory=About)


def find(source: str, cache: Path) -> Sources:
    """The shards of a folder, a packed folder, a brace pattern or a list file; raise DataError if
    there are none.

    Their indexes lie beside them, or in the cache, where `udl index` puts those of patterns and
    lists.
    """
    found = Sources()
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
    """Add the shards of a part; with `whole`, those that the index names and the folder lacks as
    well.
    """
    known: dict[str, tuple[Index, int]] = {}
    folders = dict.fromkeys(split(shard)[0] for shard in shards)
    # the one beside them knows best
    for where in [_in_cache(shards, cache), *map(index_beside, folders)]:
        index = _opened(found, where, cache) if where else None
        if index is None:
            continue
        found.about = index.about
        known |= {index.shard_path(shard): (index, shard) for shard in range(len(index.shards))}
    missing = [path for path in known if path not in set(shards)] if whole else []
    for path in [*shards, *missing]:
        found.jobs.append(Job(len(found.jobs), part, path, *known.get(path, (None, -1))))
        if path not in known and split(path)[0] in {split(entry)[0] for entry in known}:
            found.broken.append(
                (name_of(path), "is not in the index that lies beside it: index the folder anew")
            )


def _in_cache(shards: list[str], cache: Path) -> str:
    """The index that the cache has of just these shards; empty if it has none."""
    if not shards or not (cache / "indexes").is_dir():
        return ""
    try:
        path = in_cache(shards, cache)
    except DataError:  # a shard is missing, which is found out later
        return ""
    return str(path) if path.exists() else ""


def _opened(found: Sources, where: str, cache: Path) -> Index | None:
    """An index; None if it cannot be used, which is kept in words."""
    try:
        return open_index(where, cache)
    except DataError as error:
        found.broken.append((name_of(where), str(error)))
        return None
