"""The file `index.udl`: where each record of a set of shards lies, its checksum, its label and its
key.

    preamble   8 bytes magic, u32 version, u32 bytes of the header, u64 XXH3-64 of the header;
    little endian throughout
    header     JSON: the shards, the classes, where the images come from, and a fingerprint of all
    that follows
    rows       32 bytes a record, from the next multiple of 64, shard after shard
    keys       the keys of all records, UTF-8, without separators

Opening reads the header alone, so it costs what the number of shards costs. The rows of a shard are
checked when the shard is first read. The checksum of a payload is CRC32C: it fits the row, any
burst of up to 32 bits is caught for certain, and processors and object stores compute it
themselves. Knows the layout and nothing of tars or images.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from udl_dist.data.images.headers import Shape
from udl_dist.data.shards.naming import KeyDot, Naming
from udl_dist.errors import DataError
from udl_dist.storage.uris import is_remote, joined, name_of, split

NAME = "index.udl"
MAGIC, VERSION = b"UDLINDEX", 3
# versions that are still read: they know no digest of whole shards, and left nothing out
OLDER = (2,)
PREAMBLE = struct.Struct("<8sIIQ")
ROW = np.dtype(
    [
        ("offset", "<u8"),
        ("length", "<u4"),
        ("checksum", "<u4"),
        ("key_hash", "<u8"),
        ("key_end", "<u4"),
        ("label", "<i4"),
    ]
)
AGAIN = "delete the index and build it again"
NAMED = 3  # faults that a refusal names
SKIP = "data.damaged = skip leaves out what cannot be read, udl check --fix writes a clean copy"


class Fault(NamedTuple):
    """Something that keeps a record, or what may be one, from being read."""

    at: int  # byte
    what: str
    cure: str


@dataclass(frozen=True)
class About:
    """Where images come from and how they were packed."""

    source: str = ""
    license: str = ""
    classes: tuple[str, ...] = ()  # the names of labels 0, 1, …
    format: str = ""  # of every record, if `pack` wrote them
    shape: Shape | None = None  # C, H, W of every record, likewise
    left_out: int = 0  # images that `pack` was told to skip
    image: str = ""  # which members are images, and where their keys end: see Naming
    key_dot: KeyDot = "first"

    @property
    def naming(self) -> Naming:
        return Naming(self.image, self.key_dot)


@dataclass(frozen=True)
class Shard:
    """A tar: its name beside the index (or its path or address), its state, and what the index
    holds of it.
    """

    name: str
    shard_bytes: int
    records: int
    key_bytes: int
    rows_hash: str
    ignored: int  # members that belong to no record or are never read
    stamp: str = ""  # when it was written, or its ETag: another one says that it may have changed
    digest: str = ""  # XXH3-128 of all its bytes
    left_out: int = 0  # records that could not be indexed


class Index:
    """An opened index; `open` is the way in. Rows stay on disk and are mapped."""

    def __init__(
        self,
        path: Path,
        about: About,
        shards: tuple[Shard, ...],
        fingerprint: str,
        rows_start: int,
        base: str = "",
    ) -> None:
        self.path, self.about, self.shards, self.fingerprint = path, about, shards, fingerprint
        self.base = base or str(path.parent)
        self.faults: tuple[tuple[str, Fault], ...] = ()
        self.starts = np.cumsum([0] + [shard.records for shard in shards])
        self.records = int(self.starts[-1])
        self._key_starts = np.cumsum([0] + [shard.key_bytes for shard in shards])
        expected = rows_start + self.records * ROW.itemsize + int(self._key_starts[-1])
        if path.stat().st_size != expected:
            raise DataError(
                f"index {str(path)!r} has {path.stat().st_size} bytes instead of {expected}:"
                f" {AGAIN}"
            )
        self._rows_start, self._keys_at = rows_start, rows_start + self.records * ROW.itemsize
        self.rows: NDArray[Any] = self._mapped() if self.records else np.empty(0, ROW)
        self._checked = np.zeros(len(shards), bool)

    def _mapped(self) -> NDArray[Any]:
        """All rows, of which only those are read that are asked for: without advice the kernel
        reads on, 4,000 rows for each one, and the first look at a large index takes seconds.
        """
        with self.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        mapped.madvise(mmap.MADV_RANDOM)
        return np.frombuffer(mapped, ROW, self.records, self._rows_start)

    def read_rows(self, start: int, stop: int) -> NDArray[Any]:  # -> [stop - start]
        """A copy of some rows, for whoever goes through many: mapped ones would stay in the memory
        of the process.
        """
        return np.fromfile(
            self.path, ROW, stop - start, offset=self._rows_start + start * ROW.itemsize
        )

    @classmethod
    def open(cls, where: Path | str, base: str = "") -> Index:
        """Open an index file, or the one in a folder; raise DataError if it is missing, damaged or
        too new or old.

        Shards are looked for beside it, or below `base` if the file is a copy.
        """
        path = Path(where)
        path = path / NAME if path.is_dir() else path
        try:
            header, rows_start = read_header(path)
            shards = tuple(Shard(*entry) for entry in header["shards"])
            if any("/" in shard.name and not _is_whole(shard.name) for shard in shards):
                raise DataError(f"index {str(path)!r} names shards outside its folder: {AGAIN}")
            about = {**header["about"], "classes": tuple(header["about"]["classes"])}
            about["shape"] = tuple(about["shape"]) if about["shape"] else None
            believed = _believable(About(**about), shards)
            index = cls(path.absolute(), believed, shards, header["fingerprint"], rows_start, base)
            index.faults = tuple(
                (str(name), Fault(*fault)) for name, fault in header.get("faults", ())
            )
            return index
        except OSError as error:
            raise DataError(
                f"index {str(path)!r} cannot be read ({error.strerror}): {AGAIN}"
            ) from None
        except (
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            raise DataError(
                f"index {str(path)!r} has a header that makes no sense: {AGAIN}"
            ) from error

    @property
    def left_out(self) -> int:
        """How many records could not be indexed."""
        return sum(shard.left_out for shard in self.shards)

    def shard_of(self, records: NDArray[np.int64]) -> NDArray[np.int64]:  # [B] -> [B]
        """The number of the shard in which each record lies."""
        return np.searchsorted(self.starts, records, side="right") - 1

    def shard_path(self, shard: int) -> str:
        """The path or address of a shard; names in an index beside its shards are relative to
        it.
        """
        name = self.shards[shard].name
        if _is_whole(name):
            return name
        return joined(self.base, name) if is_remote(self.base) else f"{self.base}/{name}"

    def key(self, record: int) -> str:
        """The WebDataset key of a record."""
        shard = int(self.shard_of(np.array([record]))[0])
        first = record == self.starts[shard]
        start, end = (
            0 if first else int(self.rows["key_end"][record - 1]),
            int(self.rows["key_end"][record]),
        )
        with self.path.open("rb") as file:
            file.seek(self._keys_at + int(self._key_starts[shard]) + start)
            return file.read(max(0, min(end, self.shards[shard].key_bytes) - start)).decode(
                "utf-8", "replace"
            )

    def check_rows(self, shard: int) -> None:
        """Raise DataError if the rows of a shard are damaged; costs a few microseconds, once."""
        if self._checked[shard]:
            return
        rows = self.read_rows(int(self.starts[shard]), int(self.starts[shard + 1]))
        if xxhash.xxh3_64_hexdigest(rows.data) != self.shards[shard].rows_hash:
            name = self.shards[shard].name
            raise DataError(
                f"index {str(self.path)!r}: its rows of shard {name!r} are damaged: {AGAIN}"
            )
        self._checked[shard] = True


def refusal(faults: Sequence[tuple[str, Fault]], total: int) -> DataError:
    """The refusal of shards with records that cannot be read: (shard, fault) of the first ones, and
    how many in all.
    """
    if total == 1:
        shard, (at, what, cure) = faults[0]
        return DataError(f"shard {name_of(shard)!r} at byte {at}: {what}: {cure}; or {SKIP}")
    each = "; ".join(
        f"{split(shard)[1]!r} at byte {at}: {what}" for shard, (at, what, _) in faults[:NAMED]
    )
    more = f"; and {total - NAMED:,} more (udl check lists all)" if total > NAMED else ""
    cures = {fault.cure for _, fault in faults}
    cure = f"{cures.pop()}; or {SKIP}" if len(cures) == 1 else SKIP
    return DataError(
        f"{name_of(split(faults[0][0])[0])!r} has {total:,} things that cannot be read:"
        f" {each}{more}: {cure}"
    )


def _is_whole(name: str) -> bool:
    """Whether a shard's name is a path or an address that stands alone."""
    return name.startswith("/") or "://" in name or Path(name).is_absolute()


def shown(name: bytes | str) -> str:
    """A name that came out of a shard, safe to print within a line: escaped, and cut if it is
    long.
    """
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    return ascii(text if len(text) <= 60 else text[:50] + "...")


def _believable(about: About, shards: tuple[Shard, ...]) -> About:
    """`about`, if it and the shards are of the right types and ranges; raise ValueError if not."""
    if not shards:
        raise ValueError("no shard")
    for shard in shards:
        counts = (shard.shard_bytes, shard.records, shard.key_bytes, shard.ignored, shard.left_out)
        if not all(type(count) is int and 0 <= count < 2**62 for count in counts):
            raise ValueError("a count that is none")
        if not (
            isinstance(shard.name, str)
            and shard.name.isprintable()
            and isinstance(shard.rows_hash + shard.stamp + shard.digest, str)
        ):
            raise ValueError("a name that is none")
    texts = (about.source, about.license, about.format, about.image, about.key_dot, *about.classes)
    if not all(isinstance(text, str) for text in texts) or type(about.left_out) is not int:
        raise ValueError("facts that are none")
    if about.shape and not (
        len(about.shape) == 3 and all(type(side) is int and side > 0 for side in about.shape)
    ):
        raise ValueError("a shape that is none")
    return about


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header, checked, and where the rows start."""
    with path.open("rb") as file:
        preamble = file.read(PREAMBLE.size)
        if len(preamble) < PREAMBLE.size or preamble[:8] != MAGIC:
            raise DataError(
                f"{str(path)!r} is no index: name a folder of shards, or delete the file"
            )
        _, version, header_bytes, checksum = PREAMBLE.unpack(preamble)
        if version not in (VERSION, *OLDER):
            raise DataError(
                f"index {str(path)!r} has version {version}, this program reads {VERSION}: {AGAIN}"
            )
        header = file.read(header_bytes)
    if xxhash.xxh3_64_intdigest(header) != checksum:
        raise DataError(f"index {str(path)!r} is damaged in its header: {AGAIN}")
    loaded: dict[str, Any] = json.loads(header)
    return loaded, PREAMBLE.size + header_bytes + -(PREAMBLE.size + header_bytes) % 64
