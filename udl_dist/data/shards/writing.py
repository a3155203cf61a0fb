"""Writing an index: complete or absent, from the kept part of each shard; its layout is in
`index`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import xxhash

from udl_dist.data.shards.index import (
    AGAIN,
    MAGIC,
    PREAMBLE,
    VERSION,
    About,
    Fault,
    Shard,
    read_header,
)
from udl_dist.errors import DataError
from udl_dist.storage.uris import split


class Part(NamedTuple):
    """What an index will hold of one shard."""

    shard: Shard
    rows: bytes
    keys: bytes
    faults: list[Fault]


def write_index(path: Path, about: About, parts: list[Path]) -> None:
    """Join the parts of shards, in order, into one index: complete or absent, and never held in
    memory.
    """
    fingerprint = xxhash.xxh3_128()
    shards, faults = [], list[tuple[str, Fault]]()
    for part in parts:
        shard, _, keys, found = read_part(part)
        shards.append(shard)
        faults += [(shard.name, fault) for fault in found]
        fingerprint.update(
            f"{split(shard.name)[1]!r} {shard.shard_bytes} {shard.rows_hash}\n".encode() + keys
        )
    header = json.dumps(
        {
            "about": dataclasses.asdict(about),
            "fingerprint": fingerprint.hexdigest(),
            "faults": faults,
            "shards": [dataclasses.astuple(shard) for shard in shards],
        }
    ).encode()
    with written(path) as file:
        _write_header(file, header)
        for part in parts:
            file.write(read_part(part).rows)
        for part in parts:
            file.write(read_part(part).keys)


def write_part(
    path: Path, shard: Shard, rows: bytes, keys: bytes, faults: Sequence[Fault] = ()
) -> None:
    """Keep what the index will hold of one shard: complete or absent."""
    body = rows + keys
    header = {
        "shard": dataclasses.astuple(shard),
        "rows": len(rows),
        "checksum": xxhash.xxh3_64_hexdigest(body),
        "faults": list(faults),
    }
    with written(path) as file:
        _write_header(file, json.dumps(header).encode())
        file.write(body)


def read_part(path: Path) -> Part:
    """What `write_part` kept of a shard; raise DataError if it is damaged."""
    header, start = read_header(path)
    with path.open("rb") as file:
        file.seek(start)
        body = file.read()
    if xxhash.xxh3_64_hexdigest(body) != header["checksum"]:
        raise DataError(f"index {str(path)!r} is damaged: {AGAIN}")
    faults = [Fault(*fault) for fault in header["faults"]]
    return Part(Shard(*header["shard"]), body[: header["rows"]], body[header["rows"] :], faults)


@contextlib.contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name when its last byte is on disk, or not at all."""
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_header(file: IO[bytes], header: bytes) -> None:
    preamble = PREAMBLE.pack(MAGIC, VERSION, len(header), xxhash.xxh3_64_intdigest(header))
    file.write(preamble + header + bytes(-(len(preamble) + len(header)) % 64))
