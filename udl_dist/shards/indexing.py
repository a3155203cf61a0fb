"""Building an index: each shard is walked once, its members grouped by WebDataset's keys, each image's checksum taken.

A record is a run of members with one key; it holds one image and perhaps a label (`cls`, a whole number). Anything else
of a record is passed by and counted, never opened: what could run code (`.pkl`, `.pyd`, `.pth`) stays bytes in the tar.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from udl_dist.errors import DataError
from udl_dist.shards.index import NAME, ROW, About, Index, Shard, read_part, shown, write_index, write_part
from udl_dist.shards.reading import opened
from udl_dist.shards.tar import LONGEST_NAME, Data, Member, damaged, walk
from udl_dist.storage.places import is_remote, split

IMAGES = (b"jpg", b"jpeg", b"png", b"webp", b"npy", b"raw")
LABEL = b"cls"
LARGEST_IMAGE = 2**28  # bytes, encoded
# webdataset's skip_meta, on bytes.
META = re.compile(rb"__[^/]*__($|/)")

Progress = Callable[[int, int], None]


def index_shards(paths: Sequence[str | Path], where: Path | None = None, about: About | None = None,
                 progress: Progress | None = None, base: str = "", stamped: bool = True) -> Index:  # fmt: skip
    """Index shards, by path or URI, and write the index to the file `where` (beside the first if not named); open it.

    `progress(done, total)` counts shards. What is found of each shard is kept until the index is whole, so that whoever
    is interrupted goes on where it stopped; no more than a shard a thread is in memory. `base` says where shards lie
    that are named without their folder; `stamped` keeps when each was written, which differs for equal bytes.
    Raises DataError, with shard, byte and key, at the first thing out of order.
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
                    lambda shard: _part(shard, parts_folder, beside, about.shape is not None, stamped), shards
                )
                parts = list(_counted(found, len(shards), progress))
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


def _part(path: str, folder: Path, beside: bool, raw: bool, stamped: bool) -> Path:
    """The kept part of one shard: as it was left by an interrupted run if the shard is the same, else made now."""
    with opened(path) as (data, stamp):
        name = split(path)[1] if beside else path
        key = xxhash.xxh3_128_hexdigest(f"{name!r} {len(data)} {stamp} {raw}".encode())
        kept = folder / f"{key}.part"
        with contextlib.suppress(DataError, FileNotFoundError):
            read_part(kept)
            return kept
        rows, keys, ignored = _rows(path, data, raw)
        shard = Shard(name, len(data), len(rows), int(rows["key_end"][-1]), xxhash.xxh3_64_hexdigest(rows.tobytes()),
                      ignored, stamp if stamped else "")  # fmt: skip
        write_part(kept, shard, rows.tobytes(), keys)
    return kept


def _rows(path: str, data: Data, raw: bool) -> tuple[NDArray[Any], bytes, int]:
    """Walk one shard: its rows, its keys, and how many members are ignored.

    `raw` says that the shape of bare pixels is known, so that `.raw` members are images.
    """
    rows: list[tuple[int, int, int, int, int, int]] = []
    keys, seen, ignored, end = bytearray(), set[bytes](), 0, 0
    for key, members, others in _records(path, data):
        ignored += others
        if key is None:
            continue
        if key in seen:
            raise damaged(path, members[0][1].offset, f"key {shown(key)} comes a second time")
        seen.add(key)
        offset, length, label, unread = _image_and_label(path, data, key, members, raw)
        ignored, end = ignored + unread, end + len(key)
        rows.append((offset, length, checksum_of(data[offset : offset + length]), xxhash.xxh3_64_intdigest(key), end,
                     label))  # fmt: skip
        keys += key
    if not rows:
        raise DataError(f"shard {path!r} holds no record: leave it out")
    return np.array(rows, ROW), bytes(keys), ignored


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


def _records(path: str, data: Data) -> Iterator[tuple[bytes | None, list[tuple[bytes, Member]], int]]:
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


def _image_and_label(path: str, data: Data, key: bytes, members: list[tuple[bytes, Member]],
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


def _label(path: str, data: Data, key: bytes, member: Member) -> int:
    text = data[member.offset : member.offset + min(member.length, 32)].strip()
    if not re.fullmatch(rb"-?\d{1,9}", text):
        raise damaged(path, member.offset, f"the label of key {shown(key)} is {shown(text)}, no whole number")
    return max(-1, int(text))
