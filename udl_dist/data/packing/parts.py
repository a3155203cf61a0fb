"""Which folders or shards of a source are train, val and test, by their usual names.

What could be meant in two ways is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from udl_dist.core.config_schema import as_path
from udl_dist.data.packing.finding import is_prefix, list_shards, subfolders
from udl_dist.errors import DataError
from udl_dist.storage.uris import is_remote, joined, name_of, split

PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
# A whole word within a file name: "train-000.tar", not "constraint.tar".
WITHIN = re.compile(rf"(?<![a-z])({'|'.join(PARTS)})(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Parts:
    """Where the indexes of a source are, by part; empty if there is no such part."""

    train: str
    val: str = ""
    test: str = ""


def part_named(folder: str) -> str:
    """The part that a folder's name stands for; "" if it stands for none."""
    return PARTS.get(folder.lower(), "")


def divided(where: str, folders: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """The folder of each part; empty if no folder has such a name, so that all is for training.

    `others` are further images or shards in the same place. Raises DataError if the division is
    ambiguous.
    """
    parts, strange = dict[str, str](), list(others)
    for folder in sorted(folders):
        part = part_named(folder)
        if not part:
            strange.append(folder)
        elif part in parts:
            raise DataError(
                f"folder {where!r} has {parts[part]!r} and {folder!r}, both of them {part}:"
                " keep one"
            )
        else:
            parts[part] = folder
    if not parts:
        return {}
    listed = _and(parts.values())
    # A guess would train on held-out images.
    if "train" not in parts:
        one = next(iter(parts.values()))
        raise DataError(
            f"folder {where!r} holds {listed} and no training images: to train on one of them, name"
            f" {f'{where}/{one}'!r} as the source"
        )
    # A class, or a part by an unusual name: both are possible.
    if strange:
        train = f"{where}/{parts['train']}"
        raise DataError(
            f"folder {where!r} has {strange[0]!r} besides {listed}, a class or a part? Move it"
            f" away, or name {train!r} as the source and another folder as data.held_out"
        )
    return parts


def refuse_nested(where: str, names: Sequence[str]) -> None:
    """Raise DataError if images lie in parts one folder deeper than parts are recognised."""
    # CLASS/train/x.png, where train and val would silently become classes' subfolders.
    folders = {tuple(name.split("/")[:2]) for name in names if name.count("/") > 1}
    parts = {below for _, below in folders if part_named(below)}
    # One such name may well be a class or an album.
    if len({part_named(below) for below in parts}) < 2:
        return
    found, top = _and(parts), sorted({above for above, _ in folders})
    if len(top) == 1:
        raise DataError(f"{found} lie below {top[0]!r}: name {f'{where}/{top[0]}'!r} as the source")
    raise DataError(
        f"folder {where!r} has {found} below {top[0]!r}: move the images to train/CLASS,"
        " val/CLASS …"
    )


def shards_of_parts(source: str) -> dict[str, list[str]]:
    """The shards of train, val and test, by folders or names of shards; empty without parts.

    Raises DataError if it is not clear which shards are for training.
    """
    # a pattern followed by a folder's name would be a pattern of other shards
    if not (is_prefix(source) if is_remote(source) else as_path(source).is_dir()):
        return {}
    join = joined if is_remote(source) else lambda folder, name: str(as_path(folder) / name)
    # In object storage every folder costs a list request.
    folders = sorted(subfolders(source), key=lambda folder: not part_named(folder))
    found = dict[str, list[str]]()
    for folder in folders:  # parts first: without them no other folder is listed
        if (part_named(folder) or found) and (shards := list_shards(join(source, folder))):
            found[folder] = shards
    own = list_shards(source)
    if not found:
        return _divided_by_name(own)
    parts = divided(name_of(source), found, [split(shard)[1] for shard in own])
    return {part: found[folder] for part, folder in parts.items()}


def _divided_by_name(shards: Sequence[str]) -> dict[str, list[str]]:
    """The shards of one folder by the part that their names show; empty if all are of one part."""
    parts: dict[str, list[str]] = {}
    for shard in shards:
        found = WITHIN.search(split(shard)[1])
        parts.setdefault(part_named(found[1]) if found else "", []).append(shard)
    # One part only, or names with and without "train": all are for training.
    if len(parts) < 2 or set(parts) == {"", "train"}:
        return {}
    if "" in parts or "train" not in parts:
        held = next(part for part in parts if part not in ("", "train"))
        other = next(listed[0] for part, listed in parts.items() if part != held)
        folder, one = split(parts[held][0])
        raise DataError(
            f"{name_of(folder)!r} holds {one!r} and {split(other)[1]!r}: which are for training?"
            " Name those by a pattern as the source, and the others as data.held_out"
        )
    return parts


def _and(names: Iterable[str]) -> str:
    return " and ".join(repr(name) for name in sorted(names))
