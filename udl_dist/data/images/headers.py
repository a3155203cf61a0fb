"""What an image claims to be, read from its first bytes: kind, width and height, before anything is
decoded.

The kinds are an allow-list. Knows no decoder, so a bomb is refused at the cost of its header,
whatever it would unfold to. Every walk goes forward through bytes that are there.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from typing import Literal, NamedTuple

from udl_dist.errors import DataError

Shape = tuple[int, int, int]  # C, H, W
Fit = Literal["crop", "pad"]
Format = Literal["png", "jpeg", "webp", "npy", "raw"]

# Pixels that are decoded of one image unless a setting `most_pixels` says otherwise: 33.5
# megapixels, 100 MB as RGB.
MOST_PIXELS = 2**25
# A JPEG that libjpeg decodes at an eighth of its size, row by row, may have as many times more: 268
# megapixels.
SCALED = 8
SMALL = 2**18  # pixels that any limit lets pass
MOST_SCANS = 100  # of a progressive JPEG: each costs a pass over all pixels, and ten is usual
# chunks of a PNG, segments and fill bytes of a JPEG: 33.5 megapixels in 8 kB chunks are 12,000
MOST_PARTS = 2**14
ORIENTATION = 0x0112  # EXIF tag
PNG = b"\x89PNG\r\n\x1a\n"
BARE_CHUNKS = frozenset((b"IHDR", b"IDAT", b"IEND"))
ODD_CHUNKS = frozenset((b"tRNS", b"eXIf", b"acTL"))  # transparent, perhaps turned, animated
PNG_START = struct.Struct(">I4sIIBB")
PNG_CHUNK = struct.Struct(">I4s")
LIMIT_IN_WORDS = (
    f"pixels decoded of one image, at most; a JPEG, decoded at the scale needed, may have {SCALED}"
    " times as many"
)
HIGHEST_LIMIT = 2**26  # Pillow warns of more than 89 megapixels
CRC = struct.Struct(">I")
NPY = b"\x93NUMPY"


class Header(NamedTuple):
    """What the first bytes say; sizes in pixels as stored. `plain` is set for what the quick
    decoders may be given.
    """

    kind: str  # png, jpeg, webp or npy
    width: int
    height: int
    # 8 bit, gray or colour, no transparency; PNG, WebP: not turned; PNG: complete, chunks checked
    plain: bool = False
    components: int = 0  # of a JPEG: 1 gray, 3 colour, 4 CMYK
    orientation: int = 1  # of a plain JPEG, as EXIF says: 1 upright … 8
    bare: bool = True  # PNG: holds nothing but header, pixels and end
    # a plain JPEG whose decoding at a part of its size takes that part of the memory
    scalable: bool = False

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height once the image is turned upright."""
        return (self.height, self.width) if self.orientation > 4 else (self.width, self.height)


def read_header(data: bytes, most_pixels: int = MOST_PIXELS) -> Header:
    """The header of an encoded image; raise DataError if it is no allowed kind, cut off, or too
    large to be decoded.
    """
    if not data:
        raise DataError("is empty")
    try:
        header = _sniff(data)
    except (struct.error, IndexError):
        raise DataError("is cut off within its header") from None
    if header is None:
        raise DataError("is no PNG, JPEG, WebP or npy image")
    if header.width < 1 or header.height < 1:
        raise DataError(f"claims {header.width} x {header.height} pixels")
    if header.pixels > most_pixels * (SCALED if header.scalable else 1):
        raise too_large(header, most_pixels)
    return header


def too_large(header: Header, most_pixels: int) -> DataError:
    """The refusal of an image that would take too much memory."""
    times = f" (times {SCALED}, as a JPEG)" if header.scalable else ""
    return DataError(
        f"has {header.width} x {header.height} pixels, more than most_pixels ="
        f" {most_pixels:,}{times}"
    )


def _sniff(data: bytes) -> Header | None:
    if data.startswith(PNG):
        return _png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    return _npy(data) if data.startswith(NPY) else None


def _png(data: bytes) -> Header:
    """Walk the chunks: sizes from the first, and whether all of them are whole and of the plain
    sort.
    """
    length, name, width, height, depth, colour = PNG_START.unpack_from(data, 8)
    if name != b"IHDR" or length != 13:
        raise DataError("is a PNG without a header")
    plain, bare, at = depth == 8 and colour in (0, 2), True, 8
    for _ in range(MOST_PARTS):
        length, name = PNG_CHUNK.unpack_from(data, at)
        end = at + 12 + length
        if end > len(data):
            raise DataError("is a truncated PNG")
        if zlib.crc32(data[at + 4 : end - 4]) != CRC.unpack_from(data, end - 4)[0]:
            raise DataError(f"is a damaged PNG (its part {name!r} does not match its checksum)")
        if name not in BARE_CHUNKS:
            plain, bare = plain and name not in ODD_CHUNKS, False
        at = end
        if name == b"IEND":
            return Header("png", width, height, plain, bare=bare)
        if at == len(data):
            raise DataError("is a truncated PNG")
    raise DataError(f"is a PNG of more than {MOST_PARTS} parts")


def bare_png(data: bytes) -> bytes:
    """A PNG whose chunks were walked, without those that change no pixel of a plain one."""
    kept, at, name = [data[:8]], 8, b""
    while name != b"IEND":
        length, name = PNG_CHUNK.unpack_from(data, at)
        if name in BARE_CHUNKS:
            kept.append(data[at : at + 12 + length])
        at += 12 + length
    return b"".join(kept)


def _jpeg(data: bytes) -> Header:
    """Walk the segments up to the frame header (SOF0 to SOF15 without DHT, JPG and DAC), which
    holds the size.
    """
    at, exif = 2, b""
    several = False
    for _ in range(MOST_PARTS):
        if data[at] != 0xFF:
            raise DataError("is a damaged JPEG")
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            break
        alone = marker == 0x01 or 0xD0 <= marker <= 0xD8
        length = 0 if alone else max(2, struct.unpack_from(">H", data, at + 2)[0])
        if marker == 0xE1 and data.startswith(b"Exif\0", at + 4):
            several, exif = several or bool(exif), data[at + 10 : at + 2 + length]
        at += 2 + length
    else:
        raise DataError(f"is a JPEG of more than {MOST_PARTS} parts before its image")
    depth, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
    if marker & 3 == 2 and data.count(b"\xff\xda") > MOST_SCANS:
        raise DataError(f"is a JPEG of more than {MOST_SCANS} scans")
    orientation = 0 if several else _orientation(exif)
    plain = depth == 8 and components in (1, 3) and orientation > 0
    # Of a small image it does not matter, and to look would cost a twentieth of its decoding.
    large = width * height > SMALL and marker in (0xC0, 0xC1)
    in_one_scan = large and _components_of_scan(data, at) == components
    return Header(
        "jpeg", width, height, plain, components, orientation or 1, scalable=plain and in_one_scan
    )


def _components_of_scan(data: bytes, at: int) -> int:
    """How many components the first scan behind the frame header at `at` has; 0 if it cannot be
    found.

    With fewer than all, as in progressive files, libjpeg holds the coefficients of the whole image
    in memory.
    """
    for _ in range(MOST_PARTS):
        if data[at : at + 1] != b"\xff" or len(data) < at + 5:
            return 0
        if data[at + 1] == 0xDA:
            return data[at + 4]
        at += 1 if data[at + 1] == 0xFF else 2 + max(2, struct.unpack_from(">H", data, at + 2)[0])
    return 0


def _orientation(exif: bytes) -> int:
    """The orientation in a TIFF block, 1 if there is no block; 0 if it is not where and as one
    expects it.
    """
    if not exif:
        return 1
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 0
    try:
        at = struct.unpack_from(order + "I", exif, 4)[0]
        for entry in range(struct.unpack_from(order + "H", exif, at)[0]):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", exif, at + 2 + 12 * entry)
            if tag == ORIENTATION:
                return value if kind == 3 and count == 1 and 1 <= value <= 8 else 0
    except struct.error:
        return 0
    return 0  # it may stand elsewhere, in XMP: Pillow knows


def _webp(data: bytes) -> Header:
    if struct.unpack_from("<I", data, 4)[0] + 8 > len(data):
        raise DataError("is a truncated WebP")
    name = data[12:16]
    if name == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header("webp", width & 0x3FFF, height & 0x3FFF, plain=True)
    if name == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return Header(
            "webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, plain=not bits >> 28 & 1
        )
    if name == b"VP8X":
        packed = struct.unpack_from("<II", data[24:30] + b"\0\0", 0)  # two numbers of 24 bits
        return Header(
            "webp", (packed[0] & 0xFFFFFF) + 1, (packed[0] >> 24 | (packed[1] & 0xFFFF) << 8) + 1
        )
    raise DataError("is a damaged WebP")


def _npy(data: bytes) -> Header:
    shape = read_npy(data)[0]
    if len(shape) == 2:
        return Header("npy", shape[1], shape[0])
    rows, columns = shape[1:] if shape[0] in (1, 3) else shape[:2]
    return Header("npy", columns, rows)


def read_npy(data: bytes) -> tuple[tuple[int, ...], int]:
    """Shape and start of the pixels of a uint8 image as npy; raise DataError for any other
    array.
    """
    import numpy as np

    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(stream)
    except Exception as error:
        # numpy parses the header as Python's literals, and damage may raise anything
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
