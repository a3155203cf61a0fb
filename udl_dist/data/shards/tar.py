"""Where the members of a tar lie: a bounded walk over its headers that never extracts, and never
overlooks damage.

Python's tarfile and webdataset take a bad header for the end of the archive and lose the rest
without a word; here every header must match its checksum, every member must lie within the file,
and the end mark must be there. Regular members alone are named; links, devices and sparse members
are refused. `walk` stops at the first thing out of order, `salvage` goes on behind it. Both read
forward in small slices. Knows nothing of images and keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from udl_dist.errors import DataError

BLOCK = 512
LONGEST_EXTENSION = 2**20  # bytes of a long name or a PAX header
LONGEST_NAME = 4096
MOST_HEADERS = 2**24  # of a shard, folders and extensions included
SLICE = 2**16  # bytes looked at together where headers are searched
ZEROS = bytes(BLOCK)
REPACK = "copy the shard again, or write it anew as a plain tar"
FILES = (b"0", b"\0", b"7")
EXTENSIONS = (b"L", b"K", b"x", b"g")  # of the member that follows; g: of all that follow
BARE = (b"1", b"2", b"3", b"4", b"5", b"6")  # no content follows, whatever their size says
KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
    b"M": "a part of a file on another volume",
}


class Data(Protocol):
    """The bytes of a shard, wherever they are: a map of a file, or a window that moves forward."""

    def __len__(self) -> int: ...

    def __getitem__(self, span: slice, /) -> bytes: ...


class Member(NamedTuple):
    """A regular member: its name as bytes, and where its content lies, in bytes from the start of
    the shard.
    """

    name: bytes
    offset: int
    length: int


class Damage(NamedTuple):
    """Something out of order, and the byte where."""

    at: int
    what: str


class _Disorder(Exception):
    """What is out of order with a header, where the next one is (None: to be searched), and whether
    a name is lost.
    """

    def __init__(self, what: str, after: int | None = None, nameless: bool = False) -> None:
        self.what, self.after, self.nameless = what, after, nameless


def walk(name: Path | str, data: Data) -> Iterator[Member]:
    """The regular members in order; raise DataError with shard, byte and reason at the first thing
    out of order.
    """
    for found in salvage(data):
        if isinstance(found, Damage):
            raise damaged(name, found.at, found.what)
        yield found


def salvage(data: Data) -> Iterator[Member | Damage]:
    """The regular members in order, and whatever is out of order between them.

    Behind damage it goes on at the next block that is a header by its checksum. It never goes back,
    so the time is linear, and never looks into a member whose header is whole, so a tar within a
    tar is not taken for members.
    """
    at, total = 0, len(data)
    extended: dict[bytes, bytes] | None = {}  # None: the name of the member that follows is lost
    for _ in range(MOST_HEADERS):
        try:
            header = data[at : at + BLOCK]
            if header == ZEROS:
                return _check_end(data, at)
            kind, length = _read_header(header, at, total)
            if kind in EXTENSIONS:
                found = _extension(data, at, kind, length)
                extended = None if extended is None else extended | found
            elif kind in FILES:
                length = _length(extended or {}, length)
                _check_fits(at, length, total)
                if extended is not None:
                    yield Member(extended.get(b"path") or name_of(header), at + BLOCK, length)
            if kind not in EXTENSIONS:
                extended = {}
            at = _after(at, length)
        except _Disorder as disorder:
            yield Damage(at, disorder.what)
            nameless = disorder.nameless
            if disorder.after is None:
                at = _next_header(data, at + BLOCK)
                # cut to fit, perhaps: a long name came before it
                nameless |= b"\0" not in data[at : at + 100]
            else:
                at = disorder.after
            if at >= total:
                return
            extended = None if nameless else {}
    yield Damage(at, f"more than {MOST_HEADERS} members")


def damaged(name: Path | str, at: int, what: str) -> DataError:
    """The refusal of a shard, with the byte where it is out of order."""
    return DataError(f"shard {str(name)!r} at byte {at}: {what}: {REPACK}")


def name_of(header: bytes) -> bytes:
    """The name that stands in a header, its prefix included."""
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _after(at: int, length: int) -> int:
    """Where the header behind a member lies."""
    return at + BLOCK + (length + BLOCK - 1) // BLOCK * BLOCK


def _read_header(header: bytes, at: int, total: int) -> tuple[bytes, int]:
    """Kind and length of a member whose header is whole and allowed."""
    if len(header) < BLOCK:
        raise _Disorder("is cut off (no end mark)" if at else "is no tar", total)
    if not _matches_checksum(header):
        packed = (
            header[:2] == b"\x1f\x8b"
            or header[:3] in (b"BZh", b"\xfd7z")
            or header[:4] == b"\x28\xb5\x2f\xfd"
        )
        first = "is compressed: positions within it cannot be found" if packed else "is no tar"
        name = header[:100]
        nameless = (
            header[156:157] in EXTENSIONS
            or name.startswith(b"././@LongLink")
            or b"PaxHeader" in name
        )
        raise _Disorder("a header does not match its checksum" if at else first, nameless=nameless)
    kind, length = header[156:157], _number(header[124:136])
    if length is None or length < 0:
        raise _Disorder("a member has no valid size")
    length = 0 if kind in BARE else length
    if kind not in FILES:  # a file's own size may still be overruled by a PAX header
        _check_kind(kind, length, _after(at, length))
        _check_fits(at, length, total)
    return kind, length


def _check_kind(kind: bytes, length: int, after: int) -> None:
    """Folders and volume labels are passed by; what is unknown could hide a record, so it is
    refused.
    """
    if kind in KINDS:
        raise _Disorder(f"holds {KINDS[kind]}, which is never read", after)
    if kind in EXTENSIONS:
        if length > LONGEST_EXTENSION:
            raise _Disorder(f"an extended header of {length} bytes", after, nameless=True)
    elif kind not in (b"5", b"V"):
        raise _Disorder(f"holds a member of unknown kind {kind!a}", after)


def _matches_checksum(header: bytes) -> bool:
    """The sum of all bytes, its own field taken as blanks; some old writers summed them as
    signed.
    """
    said, unsigned = _number(header[148:156]), sum(header) - sum(header[148:156]) + 8 * 32
    return said == unsigned or said == unsigned - 256 * sum(
        byte > 127 for byte in header[:148] + header[156:]
    )


def _check_fits(at: int, length: int, total: int) -> None:
    if at + BLOCK + length > total:
        raise _Disorder(
            f"a member of {length} bytes reaches past the end at {total} (cut off)", total
        )


def _check_end(data: Data, at: int) -> None:
    """The end mark is two blocks of zeros; after it only zeros may follow, or members would be
    lost.
    """
    for start in range(at, len(data), SLICE):
        part = data[start : start + SLICE]
        if start == at and len(part) < 2 * BLOCK:
            raise _Disorder("half an end mark (cut off)", len(data))
        if part.count(0) != len(part):
            raise _Disorder("something follows the end mark or a header is wiped")
        if len(part) < SLICE:  # a stream does not know its length before
            return


def _next_header(data: Data, start: int) -> int:
    """The next block that is a header by its checksum, else the end of the shard."""
    for begin in range(start, len(data) - BLOCK + 1, SLICE):
        part = data[begin : begin + SLICE]
        for at in range(0, len(part) - BLOCK + 1, BLOCK):
            # The first bytes of the field are digits or blanks: most blocks of an image fail here,
            # at no cost.
            if (
                part[at]
                and part[at + 149] in b"01234567 "
                and _matches_checksum(part[at : at + BLOCK])
            ):
                return begin + at
    return len(data)


def _number(field: bytes) -> int | None:
    """A number field: octal digits, or binary with the highest bit set; None if it is neither."""
    if field[:1] in (b"\x80", b"\xff"):
        value = int.from_bytes(field[1:], "big")
        return value if field[0] == 0x80 else value - (1 << 8 * (len(field) - 1))
    digits = field.split(b"\0", 1)[0].strip()
    return (
        int(digits, 8)
        if digits and digits.translate(None, b"01234567") == b""
        else (None if digits else 0)
    )


def _length(extended: dict[bytes, bytes], length: int) -> int:
    overruled = extended.get(b"size")
    if overruled is None:
        return length
    if not overruled.isdigit() or len(overruled) > 20:
        raise _Disorder("a PAX header with an invalid size")
    return int(overruled)


def _extension(data: Data, at: int, kind: bytes, length: int) -> dict[bytes, bytes]:
    """Name and size that a GNU long name or a PAX header gives to the member that follows."""
    content = data[at + BLOCK : at + BLOCK + length]
    if kind == b"K":  # the target of a link
        return {}
    try:
        found = {b"path": content.split(b"\0", 1)[0]} if kind == b"L" else _pax(content)
    except ValueError as error:
        raise _Disorder(str(error), _after(at, length), nameless=kind == b"x") from None
    if kind == b"g" and found:
        raise _Disorder("a global header sets names or sizes", _after(at, length))
    if len(found.get(b"path", b"")) > LONGEST_NAME:
        raise _Disorder(f"a name of {len(found[b'path'])} bytes", _after(at, length), nameless=True)
    return found


def _pax(content: bytes) -> dict[bytes, bytes]:
    """The entries `LENGTH KEY=VALUE` of a PAX header, with the lengths checked; raise ValueError
    with what is wrong.
    """
    found, start = {}, 0
    while start < len(content):
        digits, space, _ = content[start : start + 20].partition(b" ")
        size = int(digits) if space and digits.isdigit() else 0
        entry = content[start + len(digits) + 1 : start + size - 1]
        key, equals, value = entry.partition(b"=")
        if not equals or content[start + size - 1 : start + size] != b"\n":
            raise ValueError("a damaged PAX header")
        if key.startswith(b"GNU.sparse"):
            raise ValueError(f"holds {KINDS[b'S']}, which is never read")
        found[key] = value
        start += size
    return {key: value for key, value in found.items() if key in (b"path", b"size")}
