"""Where the members of a tar lie: a bounded walk over its headers that never extracts, and never overlooks damage.

Python's tarfile and webdataset take a bad header for the end of the archive and lose the rest without a word; here
every header must match its checksum, every member must lie within the file, and the end mark must be there. Regular
members alone are named; links, devices and sparse members are refused. Knows nothing of images and keys.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from udl_dist.errors import DataError

BLOCK = 512
LONGEST_EXTENSION = 2**20  # bytes of a long name or a PAX header
LONGEST_NAME = 4096
ZEROS = bytes(BLOCK)
REPACK = "copy the shard again, or write it anew as a plain tar"
KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe",
         b"S": "a sparse file", b"M": "a part of a file on another volume"}  # fmt: skip


class Member(NamedTuple):
    """A regular member: its name as bytes, and where its content lies, in bytes from the start of the shard."""

    name: bytes
    offset: int
    length: int


def open_shard(path: Path) -> mmap.mmap:
    """Map a shard into memory, read only; raise DataError if it is missing, empty or no file."""
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise DataError(f"shard {str(path)!r} is empty: copy it again, or leave it out")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise DataError(f"shard {str(path)!r} is missing: check the path, or copy the shard again") from None
    except (OSError, ValueError) as error:
        raise DataError(f"shard {str(path)!r} cannot be read ({getattr(error, 'strerror', error)})") from None


def walk(path: Path, data: mmap.mmap) -> Iterator[Member]:
    """The regular members in order; raise DataError with shard, byte and reason at the first thing out of order."""
    at, extended = 0, {}
    while True:
        header = data[at : at + BLOCK]
        if header == ZEROS:
            return _check_end(path, data, at)
        kind, length = _check_header(path, header, at, len(data))
        if kind in (b"L", b"x"):
            extended.update(_extension(path, data, at, kind, length))
        elif kind == b"g" and b"size=" in data[at + BLOCK : at + BLOCK + min(length, LONGEST_EXTENSION)]:
            raise damaged(path, at, "a global header sets sizes")
        elif kind in (b"0", b"\0", b"7"):
            length = _length(path, at, extended.get(b"size"), length)
            _check_fits(path, at, length, len(data))
            yield Member(extended.get(b"path", _name(header)), at + BLOCK, length)
        if kind not in (b"L", b"x", b"g", b"K"):
            extended = {}
        at += BLOCK + (length + BLOCK - 1) // BLOCK * BLOCK


def damaged(path: Path, at: int, what: str) -> DataError:
    """The refusal of a shard, with the byte where it is out of order."""
    return DataError(f"shard {str(path)!r} at byte {at}: {what}: {REPACK}")


def _check_header(path: Path, header: bytes, at: int, total: int) -> tuple[bytes, int]:
    """Kind and length of a member whose header is whole and allowed."""
    if len(header) < BLOCK:
        raise damaged(path, at, "is cut off (no end mark)" if at else "is no tar")
    if not _matches_checksum(header):
        packed = header[:2] == b"\x1f\x8b" or header[:3] in (b"BZh", b"\xfd7z") or header[:4] == b"\x28\xb5\x2f\xfd"
        first = "is compressed: positions within it cannot be found" if packed else "is no tar"
        raise damaged(path, at, "a header does not match its checksum" if at else first)
    kind, length = header[156:157], _number(header[124:136])
    if kind in KINDS:
        raise damaged(path, at, f"holds {KINDS[kind]}, which is never read")
    if length is None or length < 0:
        raise damaged(path, at, "a member has no valid size")
    length = 0 if kind == b"5" else length
    if kind in (b"L", b"K", b"x", b"g") and length > LONGEST_EXTENSION:
        raise damaged(path, at, f"an extended header of {length} bytes")
    if kind not in (b"0", b"\0", b"7"):  # a file's own size may still be overruled by a PAX header
        _check_fits(path, at, length, total)
    return kind, length


def _matches_checksum(header: bytes) -> bool:
    """The sum of all bytes, its own field taken as blanks; some old writers summed them as signed."""
    said, unsigned = _number(header[148:156]), sum(header) - sum(header[148:156]) + 8 * 32
    return said == unsigned or said == unsigned - 256 * sum(byte > 127 for byte in header[:148] + header[156:])


def _check_fits(path: Path, at: int, length: int, total: int) -> None:
    if at + BLOCK + length > total:
        raise damaged(path, at, f"a member of {length} bytes reaches past the end at {total} (cut off)")


def _check_end(path: Path, data: mmap.mmap, at: int) -> None:
    """The end mark is two blocks of zeros; after it only zeros may follow, or members would be lost."""
    if len(data) - at < 2 * BLOCK:
        raise damaged(path, at, "half an end mark (cut off)")
    for start in range(at, len(data), 2**20):
        part = data[start : start + 2**20]
        if part.count(0) != len(part):
            raise damaged(path, start, "something follows the end mark or a header is wiped")


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _number(field: bytes) -> int | None:
    """A number field: octal digits, or binary with the highest bit set; None if it is neither."""
    if field[:1] in (b"\x80", b"\xff"):
        value = int.from_bytes(field[1:], "big")
        return value if field[0] == 0x80 else value - (1 << 8 * (len(field) - 1))
    digits = field.split(b"\0", 1)[0].strip()
    return int(digits, 8) if digits and digits.translate(None, b"01234567") == b"" else (None if digits else 0)


def _length(path: Path, at: int, overruled: bytes | None, length: int) -> int:
    if overruled is None:
        return length
    if not overruled.isdigit() or len(overruled) > 20:
        raise damaged(path, at, "a PAX header with an invalid size")
    return int(overruled)


def _extension(path: Path, data: mmap.mmap, at: int, kind: bytes, length: int) -> dict[bytes, bytes]:
    """Name and size that a GNU long name or a PAX header gives to the member that follows."""
    content = data[at + BLOCK : at + BLOCK + length]
    found = {b"path": content.split(b"\0", 1)[0]} if kind == b"L" else _pax(path, at, content)
    if len(found.get(b"path", b"")) > LONGEST_NAME:
        raise damaged(path, at, f"a name of {len(found[b'path'])} bytes")
    return found


def _pax(path: Path, at: int, content: bytes) -> dict[bytes, bytes]:
    """The entries `LENGTH KEY=VALUE` of a PAX header, with the lengths checked."""
    found, start = {}, 0
    while start < len(content):
        digits, space, _ = content[start : start + 20].partition(b" ")
        size = int(digits) if space and digits.isdigit() else 0
        entry = content[start + len(digits) + 1 : start + size - 1]
        key, equals, value = entry.partition(b"=")
        if not equals or content[start + size - 1 : start + size] != b"\n":
            raise damaged(path, at, "a damaged PAX header")
        if key.startswith(b"GNU.sparse"):
            raise damaged(path, at, f"holds {KINDS[b'S']}, which is never read")
        found[key] = value
        start += size
    return {key: value for key, value in found.items() if key in (b"path", b"size")}
