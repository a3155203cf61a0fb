"""One shard that can only be read from start to end, as records: opened here, taken apart by
webdataset's own reader.

Members that are no image and no label are passed by unread: what could run code is never opened,
nor is anything decoded by webdataset.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from udl_dist.data.loader.guard import Guard
from udl_dist.data.shards.index import shown
from udl_dist.data.shards.naming import IMAGES, LABEL, Naming, kind_of
from udl_dist.errors import DataError
from udl_dist.storage.fetching import Limits
from udl_dist.storage.pipes import Pipe
from udl_dist.storage.places import scheme_of
from udl_dist.storage.web import Body, url_name

LONGEST_LABEL = 32
PLAIN = Naming()


class Entry(NamedTuple):
    """One record, or what is wrong where one should be."""

    key: bytes
    payload: bytes
    label: int = -1
    fault: str = ""


def entries(shard: str, limits: Limits, naming: Naming = PLAIN) -> Iterator[Entry]:
    """The records of a shard in order; a shard that breaks off ends with a fault that says
    where.
    """
    name = name_of_shard(shard)
    try:
        source = (
            Pipe(shard.partition(":")[2], limits)
            if scheme_of(shard) == "pipe"
            else Body(shard, limits)
        )
    except DataError as error:
        yield Entry(b"", b"", fault=str(error))
        return
    records = 0
    try:
        for entry in _taken_apart(
            name, Guard(name, source, lambda member: is_read(member, naming)), naming
        ):
            yield entry
            records += 1
    finally:
        source.close()
    if not records:
        yield Entry(b"", b"", fault=f"shard {name!r} holds no record: leave it out")


def name_of_shard(shard: str) -> str:
    """What messages call a shard, and a resume compares: a URL without its query, a pipe with its
    command.
    """
    return shard if scheme_of(shard) == "pipe" else url_name(shard)


def is_read(name: bytes, naming: Naming = PLAIN) -> bool:
    """Whether a member is read at all: an image or a label."""
    found = naming.parts(name)
    return found is not None and (
        found[1] == LABEL or bool(naming.images([found[1]])) or kind_of(found[1]) in IMAGES
    )


def _taken_apart(name: str, guard: Guard, naming: Naming) -> Iterator[Entry]:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    files = tar_file_expander(
        [{"url": name, "stream": guard}],
        select_files=lambda file: is_read(os.fsencode(file), naming),
    )
    samples = group_by_keys(files, keys=lambda name: _key_and_extension(name, naming))
    while True:
        try:
            sample = next(samples, None)
        except Exception as error:
            # webdataset, tarfile: whatever they raise, what the guard found is why
            yield Entry(
                b"", b"", fault=guard.fault or f"shard {name!r}: {_one_line(error)}: write it anew"
            )
            return
        if sample is None:
            return
        yield _entry(name, sample, naming)


def _key_and_extension(name: str, naming: Naming) -> tuple[str | None, str | None]:
    """As webdataset's base_plus_ext, by our own rule: its pattern takes seconds for some names."""
    found = naming.parts(os.fsencode(name))
    return (os.fsdecode(found[0]), os.fsdecode(found[1])) if found else (None, None)


def _entry(name: str, sample: dict[str, Any], naming: Naming) -> Entry:
    """A sample of webdataset's as a record of ours: one image, perhaps a label."""
    key = os.fsencode(sample["__key__"])
    images = naming.images(
        os.fsencode(kind) for kind in sample if not kind.startswith("__") and kind != "cls"
    )
    where = f"shard {name!r}, key {shown(key)}"
    if len(images) != 1:
        return Entry(key, b"", fault=f"{where} has {len(images)} images, not one")
    if kind_of(images[0]) == b"raw":
        return Entry(
            key, b"", fault=f"{where} is raw pixels, whose shape only an index by `udl pack` knows"
        )
    label = sample.get("cls", b"-1")[: LONGEST_LABEL + 1].strip()
    if not re.fullmatch(rb"-?\d{1,9}", label):
        return Entry(key, b"", fault=f"{where}: its label is {shown(label)}, no whole number")
    return Entry(key, sample[os.fsdecode(images[0])], max(-1, int(label)))


def _one_line(error: Exception) -> str:
    return " ".join(str(error.args[0] if error.args else type(error).__name__).split())[:200]
