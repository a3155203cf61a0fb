"""Reads kind, width and height of an image from its first bytes, before anything is decoded.

The kinds are an allow-list, and a decompression bomb is refused at the cost of its header. Headers
are parsed here because a library costs too much: of a JPEG of 64 px, 2 µs here and 22 µs by Pillow,
as much as its decoding. Every loop goes forward through bytes that exist.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from udl_dist.errors import DataError

Shape = tuple[int, int, int]  # C, H, W
Fit = Literal["crop", "pad"]
Format = Literal["png", "jpeg", "webp", "npy", "raw"]

# Default of `most_pixels`, the pixels decoded of one image: 33.5 megapixels, 100 MB as RGB.
MOST_PIXELS = 2**25
# A JPEG that libjpeg decodes at an eighth of its size, row by row, may have 8 times as many: 268
# megapixels.
SCALED = 8
SMALL = 2**18  # pixels below any limit
MOST_SCANS = 100  # of a progressive JPEG: each costs a pass over all pixels, and ten is usual
# chunks of a PNG, segments and fill bytes of a JPEG: 33.5 megapixels in 8 kB chunks are 12,000
MOST_PARTS = 2**14
ORIENTATION = 0x0112  # EXIF tag
PNG = b"\x89PNG\r\n\x1a\n"  # its first 8 bytes, fixed
BARE_CHUNKS = frozenset((b"IHDR", b"IDAT", b"IEND"))
SPECIAL_CHUNKS = frozenset((b"tRNS", b"eXIf", b"acTL"))  # transparent, rotated, animated
PNG_START = struct.Struct(">I4sIIBB")  # length, IHDR, width, height, depth, colour
PNG_CHUNK = struct.Struct(">I4s")  # length and name; content and CRC follow
LIMIT_IN_WORDS = (
    f"pixels decoded of one image, at most; a JPEG, decoded at the scale needed, may have {SCALED}"
    " times as many"
)
HIGHEST_LIMIT = 2**26  # Pillow warns of more than 89 megapixels
CRC = struct.Struct(">I")
NPY = b"\x93NUMPY"


class Header(NamedTuple):
    """What the first bytes say; sizes in pixels as stored."""

    kind: str  # png, jpeg, webp or npy
    width: int
    height: int
    # The fast decoders can decode it: 8 bit, gray or colour, opaque; PNG and WebP: not rotated;
    # PNG: complete, chunks checked.
    plain: bool = False
    components: int = 0  # of a JPEG: 1 gray, 3 colour, 4 CMYK
    orientation: int = 1  # of a plain JPEG, as EXIF says: 1 upright … 8
    bare: bool = True  # PNG: holds nothing but header, pixels and end
    # a plain JPEG whose decoding at a smaller scale takes less memory
    scalable: bool = False

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height of the image turned upright."""
        return (self.height, self.width) if self.orientation > 4 else (self.width, self.height)


def read_header(data: bytes, most_pixels: int = MOST_PIXELS) -> Header:
    """The header of an image; raise DataError if it is of no known kind, cut off or too large."""
    if not data:
        raise DataError("is empty")
    parse = next((parse for start, parse in PARSERS.items() if data.startswith(start)), None)
    if parse is None or (parse is _webp and data[8:12] != b"WEBP"):
        raise DataError("is not a PNG, JPEG, WebP or npy image")
    try:
        header = parse(data)
    except (struct.error, IndexError):
        raise DataError("is cut off within its header") from None
    if header.width < 1 or header.height < 1:
        raise DataError(f"claims {header.width} x {header.height} pixels")
    if header.pixels > most_pixels * (SCALED if header.scalable else 1):
        raise too_large(header, most_pixels)
    return header


def too_large(header: Header, most_pixels: int) -> DataError:
    """The error for an image that would take too much memory."""
    times = f" (times {SCALED}, as a JPEG)" if header.scalable else ""
    return DataError(
        f"has {header.width} x {header.height} pixels, more than most_pixels ="
        f" {most_pixels:,}{times}"
    )


def _png(data: bytes) -> Header:
    """Check all chunks: the first has the size, and each shows whether the image is plain."""
    length, name, width, height, depth, colour = PNG_START.unpack_from(data, 8)
    if name != b"IHDR" or length != 13:
        raise DataError("is a PNG without a header")
    plain, bare, at = depth == 8 and colour in (0, 2), True, 8  # 0: gray, 2: RGB
    for _ in range(MOST_PARTS):
        length, name = PNG_CHUNK.unpack_from(data, at)
        end = at + 12 + length  # length, name and checksum have 4 bytes each
        if end > len(data):
            raise DataError("is a truncated PNG")
        if zlib.crc32(data[at + 4 : end - 4]) != CRC.unpack_from(data, end - 4)[0]:
            raise DataError(f"is a damaged PNG (its part {name!r} does not match its checksum)")
        if name not in BARE_CHUNKS:
            plain, bare = plain and name not in SPECIAL_CHUNKS, False
        at = end
        if name == b"IEND":
            return Header("png", width, height, plain, bare=bare)
        if at == len(data):
            raise DataError("is a truncated PNG")
    raise DataError(f"is a PNG of more than {MOST_PARTS} parts")


def bare_png(data: bytes) -> bytes:
    """A checked plain PNG without the chunks that change no pixel."""
    bare, at, name = [data[:8]], 8, b""
    while name != b"IEND":
        length, name = PNG_CHUNK.unpack_from(data, at)
        if name in BARE_CHUNKS:
            bare.append(data[at : at + 12 + length])
        at += 12 + length
    return b"".join(bare)


def _jpeg(data: bytes) -> Header:
    """Read the segments up to the frame header (SOF0 to SOF15 without DHT, JPG and DAC)."""
    exif, at, marker = list[bytes](), 0, 0
    for marker, at in _segments(data, 2):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            break
        if marker == 0xE1 and data.startswith(b"Exif\0", at + 4):
            exif.append(data[at + 10 : at + 2 + struct.unpack_from(">H", data, at + 2)[0]])
    depth, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
    if marker & 3 == 2 and data.count(b"\xff\xda") > MOST_SCANS:  # SOF2, 6, 10, 14: progressive
        raise DataError(f"is a JPEG of more than {MOST_SCANS} scans")
    orientation = (_orientation(exif[0]) if len(exif) == 1 else 0) if exif else 1  # 0: unknown
    plain = depth == 8 and components in (1, 3) and orientation > 0
    # for a small image it does not matter, and the search costs a twentieth of its decoding
    large = width * height > SMALL and marker in (0xC0, 0xC1)  # baseline, extended
    scalable = plain and large and _components_of_scan(data, at) == components
    return Header("jpeg", width, height, plain, components, orientation or 1, scalable=scalable)


def _segments(data: bytes, at: int) -> Iterator[tuple[int, int]]:
    """(marker, place) of the segments of a JPEG from `at` on."""
    for _ in range(MOST_PARTS):
        if data[at] != 0xFF:
            raise DataError("is a damaged JPEG")
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        yield marker, at
        alone = marker == 0x01 or 0xD0 <= marker <= 0xD8  # TEM, RST0 to 7, SOI: no length
        at += 2 if alone else 2 + max(2, struct.unpack_from(">H", data, at + 2)[0])
    raise DataError(f"is a JPEG of more than {MOST_PARTS} parts before its image")


def _components_of_scan(data: bytes, at: int) -> int:
    """How many components the first scan behind `at` has; 0 if it cannot be found."""
    # With fewer than all, as in progressive files, libjpeg holds all coefficients in memory.
    try:
        return next(data[start + 4] for marker, start in _segments(data, at) if marker == 0xDA)
    except (DataError, struct.error, IndexError):
        return 0


def _orientation(exif: bytes) -> int:
    """The orientation in a TIFF block; 0 if Pillow has to look for it."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])  # Intel, Motorola
    if order is None:
        return 0
    try:
        at = struct.unpack_from(order + "I", exif, 4)[0]
        for entry in range(struct.unpack_from(order + "H", exif, at)[0]):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", exif, at + 2 + 12 * entry)
            if tag == ORIENTATION:
                return value if kind == 3 and count == 1 and 1 <= value <= 8 else 0  # 3: a short
    except struct.error:
        pass
    return 0  # it may be elsewhere, in XMP


def _webp(data: bytes) -> Header:
    if struct.unpack_from("<I", data, 4)[0] + 8 > len(data):  # RIFF: the size of what follows
        raise DataError("is a truncated WebP")
    name, plain = data[12:16], True
    if name == b"VP8 ":  # lossy: 14 bits each, the upper two are a scale
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    elif name == b"VP8L":  # lossless: 14 bits each, less one
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        plain = not bits >> 28 & 1  # its alpha bit
    elif name == b"VP8X" and len(data) >= 30:  # extended: alpha, EXIF, animation
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        plain = False
    else:
        raise DataError("is a damaged WebP")
    return Header("webp", width, height, plain)


def _npy(data: bytes) -> Header:
    shape = read_npy(data)[0]
    if len(shape) == 2:
        return Header("npy", shape[1], shape[0])
    rows, columns = shape[1:] if shape[0] in (1, 3) else shape[:2]
    return Header("npy", columns, rows)


def read_npy(data: bytes) -> tuple[tuple[int, ...], int]:
    """Shape and start of the pixels of a uint8 image as npy; raise DataError for another array."""
    import numpy as np

    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        name = f"read_array_header_{1 if version == (1, 0) else 2}_0"  # numpy's public readers
        shape, fortran, dtype = getattr(np.lib.format, name)(stream)
    except Exception as error:
        # numpy parses the header as Python literals, so damage may raise anything
        raise DataError("is a damaged npy image") from error
    if dtype != np.uint8 or fortran or len(shape) not in (2, 3):
        raise DataError(
            f"is an npy of shape {shape} and type {dtype}, not an image of uint8 in C order"
        )
    if len(data) - stream.tell() != math.prod(shape):
        raise DataError(
            f"is an npy of shape {shape} with {len(data) - stream.tell()} bytes of pixels"
        )
    if len(shape) == 3 and not {shape[0], shape[2]} & {1, 3}:
        raise DataError(f"is an npy of shape {shape}; an image has 1 or 3 channels, first or last")
    return shape, stream.tell()


PARSERS: dict[bytes, Callable[[bytes], Header]] = {
    PNG: _png,
    b"\xff\xd8\xff": _jpeg,  # SOI and the first byte of the next marker
    b"RIFF": _webp,  # also of WAV and AVI: see `read_header`
    NPY: _npy,
}
