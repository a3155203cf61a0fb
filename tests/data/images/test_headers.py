"""What the first bytes of an image say, field by field and up to each limit."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.data.loader.made import encoded, pixels
from udl_dist.data.images.coding import encode
from udl_dist.data.images.headers import HIGHEST_LIMIT, MOST_PIXELS, Header, bare_png, read_header
from udl_dist.errors import DataError

GRAY = pixels(1, 20, 24)  # 24 wide, 20 high
COLOUR = pixels(1, 20, 24, 3)
CLEAR = Image.fromarray(COLOUR).convert("RGBA")
CLEAR.putpixel((0, 0), (0, 0, 0, 0))

HEADERS = {
    "gray png": (encoded(GRAY), Header("png", 24, 20, True)),
    "colour png": (encoded(COLOUR), Header("png", 24, 20, True)),
    "png with alpha": (encoded(CLEAR), Header("png", 24, 20)),
    "png of 16 bits": (encoded(GRAY.astype(np.uint16)), Header("png", 24, 20)),
    "png with a comment": (
        encoded(GRAY, dpi=(72, 72)),
        Header("png", 24, 20, True, bare=False),
    ),
    "png with a transparent colour": (
        encoded(Image.fromarray(COLOUR), transparency=(1, 2, 3)),
        Header("png", 24, 20, bare=False),
    ),
    "gray jpeg": (encoded(GRAY, "JPEG"), Header("jpeg", 24, 20, True, 1)),
    "colour jpeg": (encoded(COLOUR, "JPEG"), Header("jpeg", 24, 20, True, 3)),
    "progressive jpeg": (
        encoded(COLOUR, "JPEG", progressive=True),
        Header("jpeg", 24, 20, True, 3),
    ),
    "cmyk jpeg": (
        encoded(Image.fromarray(COLOUR).convert("CMYK"), "JPEG"),
        Header("jpeg", 24, 20, False, 4),
    ),
    "lossy webp": (encoded(COLOUR, "WEBP"), Header("webp", 24, 20, True)),
    "lossless webp": (encoded(COLOUR, "WEBP", lossless=True), Header("webp", 24, 20, True)),
    "lossless webp with alpha": (encoded(CLEAR, "WEBP", lossless=True), Header("webp", 24, 20)),
    "lossy webp with alpha": (encoded(CLEAR, "WEBP"), Header("webp", 24, 20)),
    "gray npy": (encode(GRAY[None], "npy", 90), Header("npy", 24, 20)),
    "colour npy": (encode(COLOUR.transpose(2, 0, 1), "npy", 90), Header("npy", 24, 20)),
    "one pixel": (encoded(GRAY[:1, :1]), Header("png", 1, 1, True)),
}


@pytest.mark.parametrize("name", HEADERS)
def test_each_kind_says_its_size_and_whether_the_fast_decoders_take_it(name: str) -> None:
    data, header = HEADERS[name]
    assert read_header(data) == header


def jpeg(kind: int, count: int, value: int) -> bytes:
    """A JPEG whose EXIF block gives the orientation as `count` values of a TIFF type."""
    entry = struct.pack("<HHIH", 0x0112, kind, count, value)
    tiff = b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(6)
    segment = b"Exif\0\0" + tiff
    data = encoded(GRAY, "JPEG")
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_above_four_swaps_the_sides(orientation: int) -> None:
    header = read_header(jpeg(3, 1, orientation))
    assert header == Header("jpeg", 24, 20, True, 1, orientation)
    assert header.upright == ((24, 20) if orientation <= 4 else (20, 24))


@pytest.mark.parametrize(("kind", "count", "value"), [(3, 1, 0), (3, 1, 9), (4, 1, 6), (3, 2, 6)])
def test_an_unusual_orientation_is_left_to_pillow(kind: int, count: int, value: int) -> None:
    assert read_header(jpeg(kind, count, value)) == Header("jpeg", 24, 20, False, 1)


def test_pixels_are_counted_up_to_the_limit() -> None:
    assert read_header(encoded(GRAY), 24 * 20).pixels == 480
    with pytest.raises(DataError, match=r"24 x 20 pixels, more than most_pixels = 479$"):
        read_header(encoded(GRAY), 479)
    assert (MOST_PIXELS, HIGHEST_LIMIT) == (33_554_432, 67_108_864)
    assert (Image.MAX_IMAGE_PIXELS or 0) > HIGHEST_LIMIT, "Pillow warns above this"


def test_a_jpeg_may_have_a_hundred_scans() -> None:
    data = encoded(COLOUR, "JPEG", progressive=True)
    scan, scans = data.index(b"\xff\xda"), data.count(b"\xff\xda")
    more = data[:scan] + data[scan : scan + 2] * (100 - scans) + data[scan:]
    assert read_header(more).kind == "jpeg"
    with pytest.raises(DataError, match="a JPEG of more than 100 scans"):
        read_header(more[:scan] + data[scan : scan + 2] + more[scan:])
    # A baseline file has one scan; these bytes may stand in a comment.
    assert read_header(encoded(GRAY, "JPEG") + b"\xff\xda" * 200).kind == "jpeg"


def test_a_png_without_the_chunks_that_change_no_pixel_is_otherwise_the_same() -> None:
    text = b"a comment"
    chunk = struct.pack(">I", len(text)) + b"tEXt" + text
    chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
    for data in (encoded(GRAY), encoded(COLOUR)):
        end = len(data) - 12  # of the last chunk, IEND
        assert bare_png(data[:33] + chunk * 2 + data[33:end] + chunk + data[end:]) == data


def test_a_png_has_a_limited_number_of_chunks() -> None:
    data = encoded(GRAY)
    chunks, at = 0, 8
    while at < len(data):
        chunks, at = chunks + 1, at + 12 + int.from_bytes(data[at : at + 4], "big")
    empty = struct.pack(">I4sI", 0, b"tEXt", zlib.crc32(b"tEXt"))
    assert not read_header(data[:33] + empty * (16_384 - chunks) + data[33:]).bare
    with pytest.raises(DataError, match="a PNG of more than 16384 parts"):
        read_header(data[:33] + empty * (16_385 - chunks) + data[33:])


def test_a_jpeg_has_a_limited_number_of_parts_before_its_image() -> None:
    data = encoded(GRAY, "JPEG")
    frame, at, segments = data.index(b"\xff\xc0"), 2, 1
    while at < frame:
        segments, at = segments + 1, at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    filled = data[:2] + b"\xff" * (16_384 - segments) + data[2:]
    assert read_header(filled) == read_header(data)
    with pytest.raises(DataError, match="more than 16384 parts before its image"):
        read_header(filled[:2] + b"\xff" + filled[2:])


@pytest.mark.parametrize("marker", [0x01, 0xD0, 0xD7, 0xD8])
def test_markers_without_a_length_are_passed_by(marker: int) -> None:
    data = encoded(GRAY, "JPEG")
    assert read_header(data[:2] + bytes((0xFF, marker)) + data[2:]) == read_header(data)
    with pytest.raises(DataError, match="cut off"):  # the end mark is none of them
        read_header(data[:2] + b"\xff\xd9" + data[2:])


@pytest.mark.parametrize("name", [b"IHDR", b"IHDX"])
@pytest.mark.parametrize("length", [13, 14])
def test_a_png_begins_with_its_header(name: bytes, length: int) -> None:
    content = struct.pack(">IIBBBBB", 24, 20, 8, 0, 0, 0, 0) + bytes(length - 13)
    chunk = struct.pack(">I", length) + name + content
    data = encoded(GRAY)
    checked = data[:8] + chunk + struct.pack(">I", zlib.crc32(name + content)) + data[33:]
    if (name, length) == (b"IHDR", 13):
        assert read_header(checked) == read_header(data)
    else:
        with pytest.raises(DataError, match="a PNG without a header"):
            read_header(checked)


@pytest.mark.parametrize("size", [29, 30])
def test_an_extended_webp_has_30_bytes_at_least(size: int) -> None:
    sides = (299).to_bytes(3, "little") + (70_000).to_bytes(3, "little")
    data = (b"RIFF\x10\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + sides)[:size]
    if size == 30:
        assert read_header(data) == Header("webp", 300, 70_001)
    else:
        with pytest.raises(DataError, match="a damaged WebP"):
            read_header(data)


def test_a_webp_is_whole_to_its_last_byte() -> None:
    data = encoded(COLOUR, "WEBP")
    with pytest.raises(DataError, match="a truncated WebP"):
        read_header(data[:-1])


def test_the_sides_of_a_lossy_webp_have_14_bits_below_those_of_scaling() -> None:
    data = bytearray(encoded(COLOUR, "WEBP"))
    data[26:30] = struct.pack("<HH", 0x8000 | 5000, 0x4000 | 6500)
    assert read_header(bytes(data)) == Header("webp", 5000, 6500, True)


@pytest.mark.parametrize("marker", [*{*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}])
def test_every_frame_header_of_a_jpeg_has_its_size(marker: int) -> None:
    """SOF0 to SOF15; DHT, JPG and DAC, which have markers between theirs, are passed over."""
    others = b"".join(struct.pack(">BBHH", 0xFF, other, 4, 0) for other in (0xC4, 0xC8, 0xCC))
    frame = struct.pack(">BBHBHHB", 0xFF, marker, 11, 8, 20, 24, 1) + bytes(3)
    header = read_header(b"\xff\xd8" + others + frame + b"\xff\xd9", HIGHEST_LIMIT)
    assert (header.kind, header.width, header.height) == ("jpeg", 24, 20)
