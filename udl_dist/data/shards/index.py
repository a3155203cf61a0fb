"""The file `index.udl`: position, checksum, label and key of each record in a set of shards.

    preamble   8 bytes magic, u32 version, u32 header bytes, u64 XXH3-64 of the header
    header     JSON: shards, classes, source of the images, fingerprint of rows and keys
    rows       32 bytes per record, from the next multiple of 64, shard after shard
    keys       the keys of all records, UTF-8, without separators

All numbers are little endian. Opening reads only the header, so its cost follows the number of
shards, not of records. The rows of a shard are checked when the shard is first read. A payload's
checksum is CRC32C: it detects every burst of up to 32 bits, and processors compute it in hardware.
"""

from __future__ import annotations

import json
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from udl_dist.data.images.headers import Shape
from udl_dist.data.shards.naming import KeyDot, Naming
from udl_dist.errors import DataError
from udl_dist.storage.uris import is_remote, joined

NAME = "index.udl"
MAGIC, VERSION = b"UDLINDEX", 3
OLDER = (2,)  # still read: their shards have no `digest` and no `left_out`
PREAMBLE = struct.Struct("<8sIIQ")
ROW = np.dtype(
    [
        ("offset", "<u8"),  # of the image in its shard, in bytes
        ("length", "<u4"),  # in bytes
        ("checksum", "<u4"),  # CRC32C of the image
        ("key_hash", "<u8"),  # XXH3-64: selections and chance need no keys
        ("key_end", "<u4"),  # within the keys of its shard; it begins where the one before ends
        ("label", "<i4"),  # -1: none
    ]
)
AGAIN = "delete the index and build it again"
# A header with a valid checksum may still be hostile: each of these was provoked.
HOSTILE = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)


class Fault(NamedTuple):
    """Why a record, or damage that may hide one, cannot be read."""

    at: int  # byte
    what: str
    cure: str


@dataclass(frozen=True)
class About:
    """Where images come from and how they were packed."""

    source: str = ""
    license: str = ""
    classes: tuple[str, ...] = ()  # the names of labels 0, 1, …
    format: str = ""  # of every record, if `pack` wrote the shards
    shape: Shape | None = None  # C, H, W of every record, likewise
    left_out: int = 0  # images that `pack` skipped, as its settings allow
    image: str = ""  # extension of the images, and where keys end: see Naming
    key_dot: KeyDot = "first"

    @property
    def naming(self) -> Naming:
        return Naming(self.image, self.key_dot)


@dataclass(frozen=True)
class Shard:
    """A tar, by its name in the index's folder or by its path or URI, and what the index has."""

    name: str
    shard_bytes: int
    records: int
    key_bytes: int
    rows_hash: str
    ignored: int  # members that belong to no record or are never read
    stamp: str = ""  # mtime or ETag: a different one means that the shard may have changed
    digest: str = ""  # XXH3-128 of all its bytes
    left_out: int = 0  # records that could not be indexed


class Index:
    """An index file, opened by `Index.open`. Rows stay on disk and are mapped."""

    def __init__(self, path: Path, base: str = "") -> None:
        # All of it comes from the header: no row is touched when an index is opened.
        header, self._rows_start = read_header(path)
        self.path, self.fingerprint = path.absolute(), str(header["fingerprint"])
        self.base = base or str(self.path.parent)
        self.about, self.shards = _validated(header, path)
        self.faults = [(str(name), Fault(*fault)) for name, fault in header.get("faults", ())]
        self.starts = np.cumsum([0] + [shard.records for shard in self.shards])
        self.records = int(self.starts[-1])
        self._key_starts = np.cumsum([0] + [shard.key_bytes for shard in self.shards])
        self._keys_at = self._rows_start + self.records * ROW.itemsize
        expected, size = self._keys_at + int(self._key_starts[-1]), path.stat().st_size
        # A cut copy is noticed here; damage within rows when their shard is first read.
        if size != expected:
            raise DataError(f"index {str(path)!r} has {size} bytes, not {expected}: {AGAIN}")
        self.rows: NDArray[Any] = self._mapped() if self.records else np.empty(0, ROW)
        self._checked = np.zeros(len(self.shards), bool)

    def _mapped(self) -> NDArray[Any]:
        with self.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # Otherwise the kernel reads ahead 4,000 rows for each one used: seconds for a large index.
        mapped.madvise(mmap.MADV_RANDOM)
        return np.frombuffer(mapped, ROW, self.records, self._rows_start)

    def read_rows(self, start: int, stop: int) -> NDArray[Any]:  # -> [stop - start]
        """A copy of some rows, for passes over many: mapped rows would stay in memory."""
        # Through a file: mapped pages would count as memory of this process.
        offset = self._rows_start + start * ROW.itemsize
        return np.fromfile(self.path, ROW, stop - start, offset=offset)

    @classmethod
    def open(cls, where: Path | str, base: str = "") -> Index:
        """Open an index file, or the one in a folder.

        Shards are relative to its folder, or to `base` if the file is a copy. Raises DataError if
        it is missing, damaged, or of a version that is not supported.
        """
        path = Path(where)
        path = path / NAME if path.is_dir() else path
        try:
            return cls(path, base)
        except OSError as error:
            raise DataError(
                f"index {str(path)!r} cannot be read ({error.strerror}): {AGAIN}"
            ) from None
        except HOSTILE as error:
            raise DataError(f"index {str(path)!r} has an invalid header: {AGAIN}") from error

    @property
    def left_out(self) -> int:
        """Number of records that could not be indexed."""
        return sum(shard.left_out for shard in self.shards)

    def shard_of(self, records: NDArray[np.int64]) -> NDArray[np.int64]:  # [B] -> [B]
        """The number of the shard in which each record lies."""
        # "right", so that shards without records are passed over.
        return np.searchsorted(self.starts, records, side="right") - 1

    def shard_path(self, shard: int) -> str:
        """The path or URI of a shard."""
        name = self.shards[shard].name
        if _is_whole(name):
            return name
        return joined(self.base, name) if is_remote(self.base) else f"{self.base}/{name}"

    def key(self, record: int) -> str:
        """The WebDataset key of a record."""
        shard, ends = int(self.shard_of(np.array([record]))[0]), self.rows["key_end"]
        start = 0 if record == self.starts[shard] else int(ends[record - 1])
        # Rows may be damaged where only a message needs the key: never read past the shard's keys.
        length = max(0, min(int(ends[record]), self.shards[shard].key_bytes) - start)
        with self.path.open("rb") as file:
            file.seek(self._keys_at + int(self._key_starts[shard]) + start)
            return file.read(length).decode("utf-8", "replace")

    def check_rows(self, shard: int) -> None:
        """Raise DataError if the rows of a shard are damaged; costs a few microseconds, once."""
        # Two threads may both check, with the same result: no lock is needed.
        if self._checked[shard]:
            return
        rows = self.read_rows(int(self.starts[shard]), int(self.starts[shard + 1]))
        if xxhash.xxh3_64_hexdigest(rows.data) != self.shards[shard].rows_hash:
            name = self.shards[shard].name
            raise DataError(
                f"index {str(self.path)!r}: its rows of shard {name!r} are damaged: {AGAIN}"
            )
        self._checked[shard] = True


def _is_whole(name: str) -> bool:
    """Whether a shard's name is a whole path or URI, not relative to the index."""
    return name.startswith("/") or "://" in name or Path(name).is_absolute()


def shown(name: bytes | str) -> str:
    """A name from a shard, safe to print within a line: escaped, and cut if it is long."""
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    return ascii(text if len(text) <= 60 else text[:50] + "...")


def _validated(header: dict[str, Any], path: Path) -> tuple[About, tuple[Shard, ...]]:
    """The typed content of a header; raise ValueError for wrong types and ranges."""
    shards = tuple(Shard(*entry) for entry in header["shards"])
    entry = {**header["about"], "classes": tuple(header["about"]["classes"])}
    about = About(**{**entry, "shape": tuple(entry["shape"]) if entry["shape"] else None})
    counts, texts = [about.left_out], [about.source, about.license, about.format, about.image]
    texts += [about.key_dot, *about.classes]
    for shard in shards:
        counts += (shard.shard_bytes, shard.records, shard.key_bytes, shard.ignored, shard.left_out)
        texts += (shard.name, shard.rows_hash, shard.stamp, shard.digest)
    sides = about.shape or (1, 1, 1)
    if not (
        shards
        # By type(), since True is an int; 2**62, so that sums stay within 64 bits.
        and all(type(count) is int and 0 <= count < 2**62 for count in counts)
        and all(isinstance(text, str) for text in texts)
        # A line break or an escape sequence in a name would end up in a terminal.
        and all(shard.name.isprintable() for shard in shards)
        and len(sides) == 3
        and all(type(side) is int and side > 0 for side in sides)
    ):
        raise ValueError("wrong types or ranges")
    # Such as ../../secret.tar: an index comes from elsewhere, like its shards.
    if any("/" in shard.name and not _is_whole(shard.name) for shard in shards):
        raise DataError(f"index {str(path)!r} names shards outside its folder: {AGAIN}")
    return about, shards


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header, its checksum verified, and the byte where the rows start."""
    with path.open("rb") as file:
        preamble = file.read(PREAMBLE.size)
        if len(preamble) < PREAMBLE.size or preamble[:8] != MAGIC:
            raise DataError(
                f"{str(path)!r} is not an index: name a folder of shards, or delete the file"
            )
        _, version, header_bytes, checksum = PREAMBLE.unpack(preamble)
        if version not in (VERSION, *OLDER):
            raise DataError(
                f"index {str(path)!r} has version {version}, this program reads {VERSION}: {AGAIN}"
            )
        header = file.read(header_bytes)
    if xxhash.xxh3_64_intdigest(header) != checksum:
        raise DataError(f"index {str(path)!r} is damaged in its header: {AGAIN}")
    # Rows begin at a multiple of 64, a cache line.
    loaded: dict[str, Any] = json.loads(header)
    return loaded, PREAMBLE.size + header_bytes + -(PREAMBLE.size + header_bytes) % 64
