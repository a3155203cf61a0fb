"""Building an index: each shard is walked once, its members grouped by WebDataset's keys, each image's checksum taken.

A record is a run of members with one key; it holds one image and perhaps a label (`cls`, a whole number). Anything else
of a record is passed by and counted, never opened: what could run code (`.pkl`, `.pyd`, `.pth`) stays bytes in the tar.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from udl_dist.errors import DataError
from udl_dist.stream.index import NAME, ROW, About, Index, Shard, shown, write_index
from udl_dist.stream.tar import LONGEST_NAME, Member, damaged, open_shard, walk

IMAGES = (b"jpg", b"jpeg", b"png", b"webp", b"npy", b"raw")
LABEL = b"cls"
LARGEST_IMAGE = 2**28  # bytes, encoded
# webdataset's skip_meta, on bytes.
META = re.compile(rb"__[^/]*__($|/)")

Progress = Callable[[int, int], None]


class Indexed(NamedTuple):
    """What the index holds of one shard."""

    shard: Shard
    rows: NDArray[Any]  # of ROW
    keys: bytes


def index_shards(paths: list[Path], where: Path | None = None, about: About | None = None,
                 progress: Progress | None = None, threads: int = 2) -> Index:  # fmt: skip
    """Index shards and write the index to the file `where` (beside the first shard if it is not named); open it.

    `progress(done, total)` counts shards. Raises DataError, with shard, byte and key, at the first thing out of order.
    """
    about = about or About()
    where = where or paths[0].absolute().parent / NAME
    beside = {path.absolute().parent for path in paths} == {where.absolute().parent}
    found: list[Indexed] = []
    with ThreadPoolExecutor(threads) as pool:
        for indexed in pool.map(lambda path: index_shard(path, beside, about.shape is not None), paths):
            found.append(indexed)
            if progress:
                progress(len(found), len(paths))
    shards, rows, keys = zip(*found, strict=True)
    write_index(where, about, list(shards), list(rows), list(keys))
    return Index.open(where)


def index_shard(path: Path, beside: bool, raw: bool) -> Indexed:
    """Walk one shard; `raw` says that the shape of bare pixels is known, so that `.raw` members are images."""
    rows: list[tuple[int, int, int, int, int, int]] = []
    keys, seen, ignored, end = bytearray(), set[bytes](), 0, 0
    with open_shard(path) as data:
        shard_bytes = len(data)
        for key, members, others in _records(path, data):
            ignored += others
            if key is None:
                continue
            if key in seen:
                raise damaged(path, members[0][1].offset, f"key {shown(key)} comes a second time")
            seen.add(key)
            offset, length, label, unread = _image_and_label(path, data, key, members, raw)
            ignored, end = ignored + unread, end + len(key)
            checksum = checksum_of(data[offset : offset + length])
            rows.append((offset, length, checksum, xxhash.xxh3_64_intdigest(key), end, label))
            keys += key
    if not rows:
        raise DataError(f"shard {str(path)!r} holds no record: leave it out")
    table = np.array(rows, ROW)
    name = path.name if beside else str(path.absolute())
    shard = Shard(name, shard_bytes, len(rows), end, xxhash.xxh3_64_hexdigest(table.tobytes()), ignored)
    return Indexed(shard, table, bytes(keys))


def key_and_extension(name: bytes) -> tuple[bytes, bytes] | None:
    """Key and lower-case extension of a member's name; None if it has none or is meta.

    The same as webdataset's base_plus_ext, `^((?:.*/|)[^.]+)[.]([^/]*)$`: a key may hold folders and ends at the first
    dot of the file name; a hidden file takes its folder for the key. That pattern needs 0.3 s for 4 kB of slashes.
    """
    folder, slash, file = name.rpartition(b"/")
    stem, dot, extension = file.partition(b".")
    keyless = not stem and (not slash or b"." in folder.rpartition(b"/")[2])
    return None if not dot or keyless or META.match(name) else (folder + slash + stem, extension.lower())


def checksum_of(payload: bytes) -> int:
    """CRC32C of a payload."""
    import google_crc32c

    return int(google_crc32c.value(payload))


def _records(path: Path, data: mmap.mmap) -> Iterator[tuple[bytes | None, list[tuple[bytes, Member]], int]]:
    """Group members by key: (key, [(extension, member)], members without a key since the last record)."""
    current: bytes | None = None
    members: list[tuple[bytes, Member]] = []
    others = 0
    for member in walk(path, data):
        found = key_and_extension(member.name)
        if found is None:
            others += 1
            continue
        key, extension = found
        if key != current and members:
            yield current, members, others
            members, others = [], 0
        current = key
        members.append((extension, member))
    yield current if members else None, members, others


def _image_and_label(path: Path, data: mmap.mmap, key: bytes, members: list[tuple[bytes, Member]],
                     raw: bool) -> tuple[int, int, int, int]:  # fmt: skip
    """Offset and length of the record's image, its label (-1: none), and how many members are not read."""
    at = members[0][1].offset
    if len(key) > LONGEST_NAME:
        raise damaged(path, at, f"a key of {len(key)} bytes")
    images = [(extension, member) for extension, member in members if extension in IMAGES]
    labels = [member for extension, member in members if extension == LABEL]
    if len(images) != 1:
        kinds = ", ".join(shown(extension) for extension, _ in (images or members)[:8])
        raise damaged(path, at, f"key {shown(key)} has {len(images)} images, not one ({kinds})")
    if len(labels) > 1:
        raise damaged(path, at, f"key {shown(key)} has {len(labels)} labels")
    extension, image = images[0]
    if extension == b"raw" and not raw:
        raise damaged(path, at, f"key {shown(key)} is raw pixels, whose shape only an index by `udl pack` knows")
    if not 0 < image.length <= LARGEST_IMAGE:
        raise damaged(path, image.offset, f"the image of key {shown(key)} has {image.length} bytes")
    label = _label(path, data, key, labels[0]) if labels else -1
    return image.offset, image.length, label, len(members) - len(images) - len(labels)


def _label(path: Path, data: mmap.mmap, key: bytes, member: Member) -> int:
    text = data[member.offset : member.offset + min(member.length, 32)].strip()
    if not re.fullmatch(rb"-?\d{1,9}", text):
        raise damaged(path, member.offset, f"the label of key {shown(key)} is {shown(text)}, no whole number")
    return max(-1, int(text))
