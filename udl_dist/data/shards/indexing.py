"""Builds an index: walks each shard once, groups its members by key, takes checksums of images.

A record is a run of members with one key; it holds one image and perhaps a label (`cls`, a whole
number). Other members are counted and never opened: what could run code (`.pkl`, `.pyd`, `.pth`)
stays bytes in the tar. A record that cannot be read is a fault, which the index lists by name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

import google_crc32c
import numpy as np
import xxhash

from udl_dist.core.files import whole_file
from udl_dist.data.shards.index import (
    AGAIN,
    MAGIC,
    NAME,
    PREAMBLE,
    ROW,
    VERSION,
    About,
    Fault,
    Index,
    Shard,
    read_header,
)
from udl_dist.data.shards.naming import LABEL
from udl_dist.data.shards.reading import opened
from udl_dist.data.shards.records import Hashed, grouped, label_or_fault, refusal
from udl_dist.data.shards.tar import REPACK, Damage, Member, salvage
from udl_dist.errors import DataError
from udl_dist.storage.uris import is_remote, split

MOST_LISTED = 1000  # faults of a shard that the index names; all are counted

Progress = Callable[[int, int], None]


class Part(NamedTuple):
    """What an index holds of one shard; a file of its own until all shards are done."""

    shard: Shard
    rows: bytes
    keys: bytes
    faults: Sequence[Fault] = ()


def index_shards(  # noqa: PLR0913  (two paths, five options by name)
    paths: Sequence[str | Path],
    where: Path | None = None,
    about: About | None = None,
    progress: Progress | None = None,
    base: str = "",
    stamped: bool = True,
    skip: bool = False,
) -> Index:
    """Index shards, given by path or URI, into the file `where`; open it.

    `where` is by default in the folder of the first shard; `progress(done, total)` counts shards.
    Each shard becomes a part file at once, so an interrupted run continues, and memory holds one
    shard per thread. `base` is the folder of shards named without one; `stamped` records mtimes,
    which differ for equal bytes. Raises DataError that lists every fault; `skip` leaves those
    records out.
    """
    shards, about = [str(path) for path in paths], about or About()
    where = where or Path(shards[0]).absolute().parent / NAME
    base = base or str(where.absolute().parent)
    in_base = {split(shard)[0] for shard in shards} == {base}
    folder = where.with_name(f".{where.name}.parts")
    # Remote shards wait for answers, local ones for a core.
    threads = 16 if is_remote(shards[0]) else os.cpu_count() or 1
    with _held(folder) as waited:
        if not (waited and where.exists()):  # else another process has just written it
            with ThreadPoolExecutor(threads, thread_name_prefix="index") as pool:
                parts = []
                for part in pool.map(
                    lambda shard: _part(shard, folder, in_base, about, stamped), shards
                ):
                    parts.append(part)
                    if progress:
                        progress(len(parts), len(shards))
            if not skip:
                _refuse_faults(shards, parts)
            write_index(where, about, parts)
        shutil.rmtree(folder, ignore_errors=True)
    return Index.open(where, base)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Lock a folder of parts against other processes; yields whether this had to wait."""
    lock = folder.with_name(f"{folder.name}.lock")
    waited = False
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # freed by the system at a kill
        except OSError:
            waited = True
            fcntl.flock(file, fcntl.LOCK_EX)
        folder.mkdir(exist_ok=True)
        yield waited
        # A waiting process holds the deleted file, then finds the index written.
        lock.unlink(missing_ok=True)


def _refuse_faults(shards: Sequence[str], parts: Sequence[Path]) -> None:
    """Raise DataError if records were left out; the parts stay, so a second try is quick."""
    faults, left_out = list[tuple[str, Fault]](), 0
    for shard, path in zip(shards, parts, strict=True):
        part = read_part(path)
        left_out += part.shard.left_out
        faults += [(shard, fault) for fault in part.faults]
    if left_out:
        raise refusal(faults, left_out)


def _part(path: str, folder: Path, in_base: bool, about: About, stamped: bool) -> Path:
    """The part file of one shard: that of an interrupted run if the shard is the same, or new."""
    raw, naming = about.shape is not None, about.naming
    with opened(path, empty=True) as (data, stamp):
        name = split(path)[1] if in_base else path
        # All that a part depends on.
        same = f"{VERSION} {name!r} {len(data)} {stamp} {raw} {naming}"
        target = folder / f"{xxhash.xxh3_128_hexdigest(same.encode())}.part"
        # A damaged part is simply built again.
        with contextlib.suppress(DataError, FileNotFoundError):
            read_part(target)
            return target
        shard = Shard(name, len(data), 0, 0, "", 0, stamp if stamped else "")
        write_part(target, _walked(shard, Hashed(data), about))
    return target


def _walked(shard: Shard, data: Hashed, about: About) -> Part:
    """The part of a shard after a walk through all of it."""
    rows: list[tuple[int, int, int, int, int, int]] = []
    keys, seen, read = bytearray(), set[bytes](), 0
    faults, members = list[Fault](), [0]
    # With a known shape of bare pixels, `.raw` members are images.
    raw = about.shape is not None
    for found in grouped(_counting(salvage(data), members), about.naming) if len(data) else ():
        if isinstance(found, Damage):
            faults.append(Fault(found.at, found.what, REPACK))
            continue
        label = label_or_fault(data, found, raw, seen)
        if isinstance(label, Fault):
            faults.append(label)
            continue
        image = found.images[0][1]
        keys += found.key
        checksum = checksum_of(data[image.offset : image.offset + image.length])
        key_hash = xxhash.xxh3_64_intdigest(found.key)
        rows.append((image.offset, image.length, checksum, key_hash, len(keys), label))
        # The image and its label are read; every other member of the record counts as ignored.
        read += 1 + (found.last(LABEL) is not None)
    if not rows and not faults:
        faults = [Fault(0, "holds no record" if len(data) else "is empty", "leave it out")]
    packed = np.array(rows, ROW).tobytes()
    walked = dataclasses.replace(
        shard,
        records=len(rows),
        key_bytes=len(keys),
        rows_hash=xxhash.xxh3_64_hexdigest(packed),
        ignored=members[0] - read,
        digest=data.hexdigest(),  # last: it hashes what the walk has skipped
        left_out=len(faults),
    )
    return Part(walked, packed, bytes(keys), faults[:MOST_LISTED])


def _counting(found: Iterable[Member | Damage], members: list[int]) -> Iterator[Member | Damage]:
    for each in found:
        members[0] += isinstance(each, Member)
        yield each


def checksum_of(payload: bytes) -> int:
    """CRC32C of a payload."""
    return int(google_crc32c.value(payload))


def write_index(path: Path, about: About, parts: Sequence[Path]) -> None:
    """Join part files, in order, into one index. One part at a time is in memory."""
    # Three passes over the parts instead of one, as rows and keys may exceed the memory.
    fingerprint = xxhash.xxh3_128()
    shards, faults = [], list[tuple[str, Fault]]()
    for part in map(read_part, parts):
        shard = part.shard
        shards.append(dataclasses.astuple(shard))
        faults += [(shard.name, fault) for fault in part.faults]
        # Names without folders, and no time: the same shards elsewhere have the same fingerprint.
        name = split(shard.name)[1]
        fingerprint.update(f"{name!r} {shard.shard_bytes} {shard.rows_hash}\n".encode())
        fingerprint.update(part.keys)
    header = {
        "about": dataclasses.asdict(about),
        "fingerprint": fingerprint.hexdigest(),
        "faults": faults,
        "shards": shards,
    }
    with whole_file(path) as file:
        _write_header(file, header)
        file.writelines(part.rows for part in map(read_part, parts))
        file.writelines(part.keys for part in map(read_part, parts))


def write_part(path: Path, part: Part) -> None:
    """Write the part file of one shard."""
    header = {
        "shard": dataclasses.astuple(part.shard),
        "rows": len(part.rows),
        "checksum": xxhash.xxh3_64_hexdigest(part.rows + part.keys),
        "faults": part.faults,
    }
    with whole_file(path) as file:
        _write_header(file, header)
        file.write(part.rows + part.keys)


def read_part(path: Path) -> Part:
    """The content of a part file; raise DataError if it is damaged."""
    header, start = read_header(path)
    body = path.read_bytes()[start:]
    if xxhash.xxh3_64_hexdigest(body) != header["checksum"]:
        raise DataError(f"index {str(path)!r} is damaged: {AGAIN}")
    faults, rows = [Fault(*fault) for fault in header["faults"]], header["rows"]
    return Part(Shard(*header["shard"]), body[:rows], body[rows:], faults)


def _write_header(file: IO[bytes], content: Mapping[str, Any]) -> None:
    header = json.dumps(content).encode()
    preamble = PREAMBLE.pack(MAGIC, VERSION, len(header), xxhash.xxh3_64_intdigest(header))
    file.write(preamble + header + bytes(-(len(preamble) + len(header)) % 64))
