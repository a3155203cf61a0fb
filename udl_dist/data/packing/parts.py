"""Which folders or shards of a source are train, val and test, by their usual names. What is
ambiguous is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from udl_dist.errors import DataError
from udl_dist.storage.uris import name_of, split

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
WITHIN = re.compile(rf"(?<![a-z])({'|'.join(PARTS)})(?![a-z])", re.IGNORECASE)


def part_named(folder: str) -> str:
    """The part that a folder's name stands for; "" if it stands for none."""
    return PARTS.get(folder.lower(), "")


def divided(where: str, folders: Iterable[str], beside: Iterable[str]) -> dict[str, str]:
    """The folder of each part; empty if no folder is called like one, so that all of it is for
    training.

    `beside` are further images or shards that lie there. Raises DataError if it could be meant in
    two ways.
    """
    parts, others = dict[str, str](), list(beside)
    for folder in sorted(folders):
        part = part_named(folder)
        if not part:
            others.append(folder)
        elif part in parts:
            raise DataError(
                f"folder {where!r} has {parts[part]!r} and {folder!r}, both of them {part}:"
                " keep one"
            )
        else:
            parts[part] = folder
    if not parts:
        return {}
    if "train" not in parts:
        one = next(iter(parts.values()))
        raise DataError(
            f"folder {where!r} holds {_listed(parts.values())} and no training images: name "
            f"{f'{where}/{one}'!r} as the source if it is to be trained on"
        )
    if others:
        train = f"{where}/{parts['train']}"
        raise DataError(
            f"folder {where!r} has {others[0]!r} beside {_listed(parts.values())}, a class or a"
            f" part? Move it away, or name {train!r} as the source and another folder as"
            " data.held_out"
        )
    return parts


def refuse_nested(where: str, names: Sequence[str]) -> None:
    """Raise DataError if images lie in parts one folder deeper than they are looked for."""
    folders = {tuple(name.split("/")[:2]) for name in names if name.count("/") > 1}
    if len({part_named(below) for _, below in folders} - {""}) < 2:
        return
    top = sorted({above for above, _ in folders})
    found = _listed({below for _, below in folders if part_named(below)})
    if len(top) == 1:
        raise DataError(f"{found} lie below {top[0]!r}: name {f'{where}/{top[0]}'!r} as the source")
    raise DataError(
        f"folder {where!r} has {found} below {top[0]!r}: move the images to train/CLASS,"
        " val/CLASS …"
    )


def divided_by_name(shards: Sequence[str]) -> dict[str, list[str]]:
    """The shards of one folder by the part that their names tell; empty if they are all of one.

    Raises DataError if some may be held out and it is not clear which are for training.
    """
    parts: dict[str, list[str]] = {}
    for shard in shards:
        found = WITHIN.search(split(shard)[1])
        parts.setdefault(part_named(found[1]) if found else "", []).append(shard)
    if len(parts) < 2 or set(parts) == {"", "train"}:
        return {}
    if "" in parts or "train" not in parts:
        held = next(part for part in parts if part not in ("", "train"))
        one, other = (
            parts[held][0],
            next(listed[0] for part, listed in parts.items() if part != held),
        )
        raise DataError(
            f"{name_of(split(one)[0])!r} holds {split(one)[1]!r} beside {split(other)[1]!r}: which"
            " are for training? Name those by a pattern as the source, and the others as"
            " data.held_out"
        )
    return parts


def _listed(names: Iterable[str]) -> str:
    return " and ".join(repr(name) for name in sorted(names))
