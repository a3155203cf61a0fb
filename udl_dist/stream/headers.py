"""What an image claims to be, read from its first bytes: kind, width and height, before anything is decoded.

The kinds are an allow-list. Knows no decoder, so a bomb is refused at the cost of its header.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from typing import NamedTuple

from udl_dist.errors import DataError

MOST_PIXELS = 2**24  # 16.7 megapixels: 4096 x 4096
PNG = b"\x89PNG\r\n\x1a\n"
NPY = b"\x93NUMPY"


class Header(NamedTuple):
    """What the first bytes say; sizes in pixels. `plain` is set for a PNG that needs no special care."""

    kind: str  # png, jpeg, webp or npy
    width: int
    height: int
    plain: bool = False  # 8-bit gray or RGB, no transparency, not turned, complete, every chunk checked


def read_header(data: bytes) -> Header:
    """The header of an encoded image; raise DataError if it is no allowed kind, cut off, or larger than 2^24 pixels."""
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
    if header.width * header.height > MOST_PIXELS:
        raise DataError(f"has {header.width} x {header.height} pixels; {MOST_PIXELS} are the most that is decoded")
    return header


def _sniff(data: bytes) -> Header | None:
    if data.startswith(PNG):
        return _png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    return _npy(data) if data.startswith(NPY) else None


def _png(data: bytes) -> Header:
    """Walk the chunks: sizes from the first, and whether all of them are whole and of the plain sort."""
    length, name, width, height, depth, colour = struct.unpack_from(">I4sIIBB", data, 8)
    if name != b"IHDR" or length != 13:
        raise DataError("is a PNG without a header")
    plain, at = depth == 8 and colour in (0, 2), 8
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise DataError("is a truncated PNG")
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise DataError(f"is a damaged PNG (its part {name!r} does not match its checksum)")
        plain &= name not in (b"tRNS", b"eXIf", b"acTL")
        at = end
        if at == len(data) and name != b"IEND":
            raise DataError("is a truncated PNG")
    return Header("png", width, height, plain)


def _jpeg(data: bytes) -> Header:
    """Walk the segments up to the frame header (SOF0 to SOF15 without DHT, JPG and DAC), which holds the size."""
    at = 2
    while True:
        if data[at] != 0xFF:
            raise DataError("is a damaged JPEG")
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return Header("jpeg", width, height)
        alone = marker == 0x01 or 0xD0 <= marker <= 0xD8
        at += 2 if alone else 2 + max(2, struct.unpack_from(">H", data, at + 2)[0])


def _webp(data: bytes) -> Header:
    name = data[12:16]
    if name == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header("webp", width & 0x3FFF, height & 0x3FFF)
    if name == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return Header("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if name == b"VP8X":
        packed = struct.unpack_from("<II", data[24:30] + b"\0\0", 0)  # two numbers of 24 bits
        return Header("webp", (packed[0] & 0xFFFFFF) + 1, (packed[0] >> 24 | (packed[1] & 0xFFFF) << 8) + 1)
    raise DataError("is a damaged WebP")


def _npy(data: bytes) -> Header:
    shape = read_npy(data)[0]
    if len(shape) == 2:
        return Header("npy", shape[1], shape[0])
    rows, columns = shape[1:] if shape[0] in (1, 3) else shape[:2]
    return Header("npy", columns, rows)


def read_npy(data: bytes) -> tuple[tuple[int, ...], int]:
    """Shape and start of the pixels of a uint8 image as npy; raise DataError for any other array."""
    import numpy as np

    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except Exception as error:  # the header is a Python literal, and its parsers may raise anything
        raise DataError("is a damaged npy image") from error
    if dtype != np.uint8 or fortran or len(shape) not in (2, 3):
        raise DataError(f"is an npy of shape {shape} and type {dtype}, not an image of uint8 in C order")
    if len(data) - stream.tell() != math.prod(shape):
        raise DataError(f"is an npy of shape {shape} with {len(data) - stream.tell()} bytes of pixels")
    if len(shape) == 3 and not {shape[0], shape[2]} & {1, 3}:
        raise DataError(f"is an npy of shape {shape}; an image has 1 or 3 channels, first or last")
    return shape, stream.tell()
