"""Building an index: each shard is walked once, its members grouped by WebDataset's keys, each
image's checksum taken.

A record is a run of members with one key; it holds one image and perhaps a label (`cls`, a whole
number). Anything else of a record is passed by and counted, never opened: what could run code
(`.pkl`, `.pyd`, `.pth`) stays bytes in the tar. Records that cannot be read are faults: they are
left out, kept in the index by name, and refused unless that is asked for.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from udl_dist.data.shards.index import (
    NAME,
    ROW,
    VERSION,
    About,
    Fault,
    Index,
    Shard,
    refusal,
    shown,
)
from udl_dist.data.shards.naming import LABEL, Naming
from udl_dist.data.shards.reading import opened
from udl_dist.data.shards.records import Group, Hashed, grouped, label_of, wrong_with
from udl_dist.data.shards.tar import REPACK, Damage, Data, Member, salvage
from udl_dist.data.shards.writing import read_part, write_index, write_part
from udl_dist.errors import DataError
from udl_dist.storage.uris import is_remote, split

MOST_LISTED = 1000  # faults of a shard that the index names; all are counted

Progress = Callable[[int, int], None]


def index_shards(
    paths: Sequence[str | Path],
    where: Path | None = None,
    about: About | None = None,
    progress: Progress | None = None,
    base: str = "",
    stamped: bool = True,
    skip: bool = False,
) -> Index:
    """Index shards, by path or URI, and write the index to the file `where` (beside the first if
    not named); open it.

    `progress(done, total)` counts shards. What is found of each shard is kept until the index is
    whole, so that whoever is interrupted goes on where it stopped; no more than a shard a thread is
    in memory. `base` says where shards lie that are named without their folder; `stamped` keeps
    when each was written, which differs for equal bytes. Raises DataError with all that is out of
    order, each with shard, byte and key; `skip` leaves that out of the index.
    """
    shards, about = [str(path) for path in paths], about or About()
    where = where or Path(shards[0]).absolute().parent / NAME
    base = base or str(where.absolute().parent)
    beside = {split(shard)[0] for shard in shards} == {base}
    parts_folder = where.with_name(f".{where.name}.parts")
    with _held(parts_folder) as waited:
        if not (waited and where.exists()):  # else another process has just written it
            with ThreadPoolExecutor(_threads(shards), thread_name_prefix="index") as pool:
                found = pool.map(
                    lambda shard: _part(shard, parts_folder, beside, about, stamped), shards
                )
                parts = list(_counted(found, len(shards), progress))
            if not skip:
                _refuse_faults(shards, parts)
            write_index(where, about, parts)
        shutil.rmtree(parts_folder, ignore_errors=True)
    return Index.open(where, base)


def _threads(shards: list[str]) -> int:
    return 16 if is_remote(shards[0]) else os.cpu_count() or 1


def _counted(parts: Iterable[Path], total: int, progress: Progress | None) -> Iterator[Path]:
    for done, part in enumerate(parts, 1):
        if progress:
            progress(done, total)
        yield part


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold a folder of parts against other processes; tells whether one had to be waited for."""
    lock = folder.with_name(f"{folder.name}.lock")
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            waited = False
        except OSError:
            fcntl.flock(file, fcntl.LOCK_EX)
            waited = True
        folder.mkdir(exist_ok=True)
        yield waited
        lock.unlink(missing_ok=True)


def _refuse_faults(shards: Sequence[str], parts: Sequence[Path]) -> None:
    """Raise DataError if any record was left out; the parts stay, so that to ask again costs
    nothing.
    """
    faults, left_out = list[tuple[str, Fault]](), 0
    for shard, part in zip(shards, parts, strict=True):
        kept = read_part(part)
        left_out += kept.shard.left_out
        faults += [(shard, fault) for fault in kept.faults]
    if left_out:
        raise refusal(faults, left_out)


def _part(path: str, folder: Path, beside: bool, about: About, stamped: bool) -> Path:
    """The kept part of one shard: as it was left by an interrupted run if the shard is the same,
    else made now.
    """
    raw, naming = about.shape is not None, about.naming
    with opened(path, empty=True) as (data, stamp):
        name = split(path)[1] if beside else path
        key = xxhash.xxh3_128_hexdigest(
            f"{VERSION} {name!r} {len(data)} {stamp} {raw} {naming}".encode()
        )
        kept = folder / f"{key}.part"
        with contextlib.suppress(DataError, FileNotFoundError):
            read_part(kept)
            return kept
        hashed = Hashed(data)
        found = _rows(hashed, raw, naming)
        rows = found.rows.tobytes()
        shard = Shard(
            name,
            len(data),
            len(found.rows),
            len(found.keys),
            xxhash.xxh3_64_hexdigest(rows),
            found.ignored,
            stamp if stamped else "",
            hashed.hexdigest(),
            found.left_out,
        )
        write_part(kept, shard, rows, found.keys, found.faults)
    return kept


class Found(NamedTuple):
    """What an index holds of one shard."""

    rows: NDArray[Any]
    keys: bytes
    ignored: int  # members that belong to no record or are never read
    left_out: int  # records that cannot be read, and damage that may have held one
    faults: list[Fault]  # the first of them


def _rows(data: Data, raw: bool, naming: Naming) -> Found:
    """Walk one shard. `raw` says that the shape of bare pixels is known, so that `.raw` members are
    images.
    """
    if not len(data):
        return Found(np.empty(0, ROW), b"", 0, 1, [Fault(0, "is empty", "leave it out")])
    rows: list[tuple[int, int, int, int, int, int]] = []
    keys, seen, read = bytearray(), set[bytes](), 0
    faults, members = list[Fault](), [0]
    for found in grouped(_counting(salvage(data), members), naming):
        if isinstance(found, Damage):
            faults.append(Fault(found.at, found.what, REPACK))
            continue
        label = _label_of_whole(data, found, raw, seen)
        if isinstance(label, Fault):
            faults.append(label)
            continue
        image = found.images[0][1]
        keys += found.key
        payload = data[image.offset : image.offset + image.length]
        rows.append(
            (
                image.offset,
                image.length,
                checksum_of(payload),
                xxhash.xxh3_64_intdigest(found.key),
                len(keys),
                label,
            )
        )
        read += 1 + (found.last(LABEL) is not None)
    if not rows and not faults:
        faults = [Fault(0, "holds no record", "leave it out")]
    return Found(
        np.array(rows, ROW), bytes(keys), members[0] - read, len(faults), faults[:MOST_LISTED]
    )


def _label_of_whole(data: Data, group: Group, raw: bool, seen: set[bytes]) -> int | Fault:
    """The label of a record, -1 if it has none; or what keeps a group of members from being a
    record.
    """
    wrong = wrong_with(group, raw)
    if group.key in seen:
        wrong = Fault(
            group.members[0][1].offset,
            "comes a second time",
            "keep the members of a record together",
        )
    member = group.last(LABEL)
    found = label_of(data, group) if wrong is None and member else -1
    if found is None and member:
        text = data[member.offset : member.offset + min(member.length, 32)]
        wrong = Fault(
            member.offset,
            f"its label is {shown(text.strip())}, no whole number",
            "write class numbers into .cls, and names elsewhere",
        )
    seen.add(group.key)
    return wrong._replace(what=f"key {shown(group.key)}: {wrong.what}") if wrong else found or 0


def _counting(found: Iterable[Member | Damage], members: list[int]) -> Iterator[Member | Damage]:
    """The same, counting the members."""
    for each in found:
        members[0] += isinstance(each, Member)
        yield each


def checksum_of(payload: bytes) -> int:
    """CRC32C of a payload."""
    import google_crc32c

    return int(google_crc32c.value(payload))
