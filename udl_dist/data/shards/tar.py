"""Finds the members of a tar by a bounded walk over its headers; extracts nothing.

Python's tarfile and webdataset read a bad header as the end of the archive and silently lose the
rest. Here every header must match its checksum, every member must lie within the file, and the end
mark must be there. Only regular members are listed; links, devices and sparse members are damage.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

BLOCK = 512
LONGEST_EXTENSION = 2**20  # bytes of a long name or a PAX header
LONGEST_NAME = 4096
MOST_HEADERS = 2**24  # in a shard, folders and extensions included
SLICE = 2**16  # bytes read at a time in a search for a header
ZEROS = bytes(BLOCK)
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7z", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
REPACK = "copy the shard again, or write it again as a plain tar"
FILES = (b"0", b"\0", b"7")  # regular; as old tars wrote it; contiguous
EXTENSIONS = (b"L", b"K", b"x", b"g")  # they describe the next member; g: all that follow
BARE = (b"1", b"2", b"3", b"4", b"5", b"6")  # without content, whatever their size field says
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
    """The bytes of a shard: a mapped file, or a window that moves forward over an object."""

    def __len__(self) -> int: ...

    def __getitem__(self, span: slice, /) -> bytes: ...


class Member(NamedTuple):
    """A regular member; its content is `length` bytes from byte `offset` of the shard on."""

    name: bytes
    offset: int
    length: int


class Damage(NamedTuple):
    """What is wrong with a shard, and at which byte."""

    at: int
    what: str


class _BadHeader(Exception):
    """What is wrong with a header.

    `after`: where the next header is, None if unknown; `nameless`: the next member's name is lost.
    """

    def __init__(self, what: str, after: int | None = None, nameless: bool = False) -> None:
        self.what, self.after, self.nameless = what, after, nameless


def salvage(data: Data) -> Iterator[Member | Damage]:
    """The regular members in order, and the damage between them.

    After damage the walk continues at the next block whose checksum is that of a header. It never
    goes back, so the time is linear, and it skips the content of members with a valid header, so
    the members of a tar inside the tar are not listed.
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
                length = int((extended or {}).get(b"size", length))
                _check_fits(at, length, total)
                if extended is not None:
                    yield Member(extended.get(b"path") or name_of(header), at + BLOCK, length)
            if kind not in EXTENSIONS:
                extended = {}
            at = _after(at, length)
        # Not raised further: the records before and after the damage are whole.
        except _BadHeader as bad:
            yield Damage(at, bad.what)
            nameless = bad.nameless
            if bad.after is None:
                at = _next_header(data, at + BLOCK)
                # A name that fills its field may be the cut form of a long name that is lost.
                nameless |= b"\0" not in data[at : at + 100]
            else:
                at = bad.after
            if at >= total:
                return
            extended = None if nameless else {}
    yield Damage(at, f"more than {MOST_HEADERS} members")


def name_of(header: bytes) -> bytes:
    """The name in a header, with the prefix that ustar keeps apart."""
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _after(at: int, length: int) -> int:
    """Where the header after a member begins: content is padded to whole blocks."""
    return at + BLOCK + (length + BLOCK - 1) // BLOCK * BLOCK


def _read_header(header: bytes, at: int, total: int) -> tuple[bytes, int]:
    """Kind and length of a member, if its header is valid and allowed."""
    if len(header) < BLOCK:
        raise _BadHeader("is cut off (no end mark)" if at else "is not a tar", total)
    if not _matches_checksum(header):
        packed = header.startswith(COMPRESSED)
        first = "is compressed: positions within it cannot be found" if packed else "is not a tar"
        # Signs of a long name, which the next member then has lost: its kind, or the name that GNU
        # tar and Python give to such a header. One of them may be the damaged byte.
        name = header[:100]
        nameless = (
            header[156:157] in EXTENSIONS
            or name.startswith(b"././@LongLink")
            or b"PaxHeader" in name
        )
        raise _BadHeader("a header does not match its checksum" if at else first, nameless=nameless)
    kind, length = header[156:157], _number(header[124:136])
    if length is None or length < 0:
        raise _BadHeader("a member has no valid size")
    length = 0 if kind in BARE else length
    if kind not in FILES:  # a PAX header may replace the size of a file, which is checked later
        _check_kind(kind, length, _after(at, length))
        _check_fits(at, length, total)
    return kind, length


def _check_kind(kind: bytes, length: int, after: int) -> None:
    """Folders and volume labels pass; an unknown kind could hide a record, so it is damage."""
    if kind in KINDS:
        raise _BadHeader(f"holds {KINDS[kind]}, which is never read", after)
    if kind in EXTENSIONS:
        if length > LONGEST_EXTENSION:
            raise _BadHeader(f"an extended header of {length} bytes", after, nameless=True)
    elif kind not in (b"5", b"V"):
        raise _BadHeader(f"holds a member of unknown kind {kind!a}", after)


def _matches_checksum(header: bytes) -> bool:
    """The sum of all bytes, with blanks in the checksum's own field."""
    stored, unsigned = _number(header[148:156]), sum(header) - sum(header[148:156]) + 8 * 32
    # Some old writers summed signed bytes, which gives 256 less for each byte above 127.
    return stored == unsigned or stored == unsigned - 256 * sum(
        byte > 127 for byte in header[:148] + header[156:]
    )


def _check_fits(at: int, length: int, total: int) -> None:
    if at + BLOCK + length > total:
        raise _BadHeader(
            f"a member of {length} bytes reaches past the end at {total} (cut off)", total
        )


def _check_end(data: Data, at: int) -> None:
    """The end mark is two blocks of zeros. Only zeros may follow, or members would be lost."""
    for start in range(at, len(data), SLICE):
        part = data[start : start + SLICE]
        # The rest is read to its end: a header whose bytes were zeroed looks like an end mark.
        if start == at and len(part) < 2 * BLOCK:
            raise _BadHeader("half an end mark (cut off)", len(data))
        if part.count(0) != len(part):
            raise _BadHeader("something follows the end mark or a header is wiped")


def _next_header(data: Data, start: int) -> int:
    """The next block whose checksum is that of a header, else the end of the shard."""
    for begin in range(start, len(data) - BLOCK + 1, SLICE):
        part = data[begin : begin + SLICE]
        for at in range(0, len(part) - BLOCK + 1, BLOCK):
            # The checksum field begins with digits or blanks, which rules out most blocks of an
            # image before their bytes are summed.
            likely = part[at] and part[at + 149] in b"01234567 "
            if likely and _matches_checksum(part[at : at + BLOCK]):
                return begin + at
    return len(data)


def _number(field: bytes) -> int | None:
    """A number field: octal digits, or binary with the highest bit set; None if it is neither."""
    if field[:1] in (b"\x80", b"\xff"):  # GNU: base 256, for 8 GiB and more; 0xff: negative
        value = int.from_bytes(field[1:], "big")
        return value if field[0] == 0x80 else value - (1 << 8 * (len(field) - 1))
    digits = field.split(b"\0", 1)[0].strip()
    # Checked by hand, because int() also takes signs and underscores.
    return None if digits.translate(None, b"01234567") else int(digits or b"0", 8)


def _extension(data: Data, at: int, kind: bytes, length: int) -> dict[bytes, bytes]:
    """Name and size that a GNU long name or a PAX header gives to the next member."""
    content = data[at + BLOCK : at + BLOCK + length]
    if kind == b"K":  # the target of a link
        return {}
    try:
        found = {b"path": content.split(b"\0", 1)[0]} if kind == b"L" else _pax(content)
    except ValueError as error:
        raise _BadHeader(str(error), _after(at, length), nameless=kind == b"x") from None
    # One name or size for all that follow would make one record of them.
    if kind == b"g" and found:
        raise _BadHeader("a global header sets names or sizes", _after(at, length))
    if len(found.get(b"path", b"")) > LONGEST_NAME:
        raise _BadHeader(
            f"a name of {len(found[b'path'])} bytes", _after(at, length), nameless=True
        )
    return found


def _pax(content: bytes) -> dict[bytes, bytes]:
    """Path and size from the entries `LENGTH KEY=VALUE`; raise ValueError with what is wrong."""
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
    size_field = found.get(b"size", b"0")
    if not size_field.isdigit() or len(size_field) > 20:
        raise ValueError("a PAX header with an invalid size")
    return {key: value for key, value in found.items() if key in (b"path", b"size")}
