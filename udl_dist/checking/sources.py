"""What is to be checked: the shards that a source names, by part, each with the rows that an index has of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from udl_dist.errors import DataError, UdlError
from udl_dist.packing.prepare import list_shards
from udl_dist.stream.index import NAME, About, Index

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Job:
    """One shard: its number among all that are checked, its part, and what indexed it."""

    number: int
    part: str
    path: Path
    index: Index | None = None
    shard: int = -1  # its number in the index

    @property
    def shard_bytes(self) -> int:
        """Bytes that are there; 0 for a shard that is not."""
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def indexed(self) -> int:
        """Records that the index has of it."""
        return self.index.shards[self.shard].records if self.index else 0


@dataclass
class Sources:
    """Every shard of a source, and the indexes that cannot be used, in words."""

    jobs: list[Job] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list)  # (index file, what is wrong with it)
    about: About = field(default_factory=About)


def find(source: str) -> Sources:
    """The shards of a folder, a packed folder, a brace pattern or a list file; raise DataError if there are none."""
    folder = Path(source).expanduser().absolute()
    found = Sources()
    for part in PARTS:
        if (folder / part).is_dir():
            _add(found, part, list_shards(str(folder / part)), True)
    if not found.jobs:
        _add(found, "", _listed(source), folder.is_dir())
    if not found.jobs:
        raise DataError(f"{source!r} names no tar shard: name a folder of them, a brace pattern or a list file")
    return found


def _listed(source: str) -> list[Path]:
    try:
        return list_shards(source)
    except UdlError:
        raise
    except (OSError, ValueError) as error:  # braces that do not match, a list file that is no text
        raise DataError(f"{source!r} is no pattern or list of shards ({error}): put it right") from None


def _add(found: Sources, part: str, shards: list[Path], whole: bool) -> None:
    """Add the shards of a part; with `whole`, those that the index names and the folder lacks as well."""
    known: dict[Path, tuple[Index, int]] = {}
    folders = dict.fromkeys(shard.parent for shard in shards)
    for folder in folders:
        index = _index(found, folder)
        if index is None:
            continue
        found.about = index.about
        known |= {index.shard_path(shard): (index, shard) for shard in range(len(index.shards))}
    missing = [path for path in known if path not in set(shards)] if whole else []
    for path in [*shards, *missing]:
        found.jobs.append(Job(len(found.jobs), part, path, *known.get(path, (None, -1))))
        if path not in known and path.parent in {entry.parent for entry in known}:
            found.broken.append((str(path), "is not in the index that lies beside it: index the folder anew"))


def _index(found: Sources, folder: Path) -> Index | None:
    """The index of a folder; None if there is none, or if it cannot be used, which is kept in words."""
    if not (folder / NAME).exists():
        return None
    try:
        return Index.open(folder)
    except DataError as error:
        found.broken.append((str(folder / NAME), str(error)))
        return None
