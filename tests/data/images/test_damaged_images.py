"""Whatever is cut, flipped or made up, both ways of decoding say DataError, and soon."""

import io
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tests.data.loader.made import encoded, pixels
from udl_dist.data.images.coding import decode, decode_into, encode
from udl_dist.data.images.headers import Shape
from udl_dist.errors import DataError

SMALL = pixels(1, 24, 20, 3)
KINDS = {
    "png": encoded(SMALL),
    "gray png": encoded(SMALL[..., 0]),
    "transparent png": encoded(Image.fromarray(SMALL).convert("RGBA")),
    "jpeg": encoded(SMALL, "JPEG"),
    "gray jpeg": encoded(SMALL[..., 0], "JPEG"),
    "progressive jpeg": encoded(SMALL, "JPEG", progressive=True),
    "cmyk jpeg": encoded(Image.fromarray(SMALL).convert("CMYK"), "JPEG"),
    "webp": encoded(SMALL, "WEBP"),
    "lossless webp": encoded(SMALL, "WEBP", lossless=True),
    "npy": encode(np.ascontiguousarray(SMALL.transpose(2, 0, 1)), "npy", 90),
}


Way = Callable[[bytes, Shape], None]


def exact(data: bytes, shape: Shape) -> None:
    assert decode(data, shape, "crop").shape == shape


def quick(data: bytes, shape: Shape) -> None:
    decode_into(np.empty(shape, np.uint8), data, "crop")


WAYS = [exact, quick]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_cut_at_any_byte_is_refused(kind: str, way: Way) -> None:
    data = KINDS[kind]
    way(data, (3, 8, 8))
    for length in range(len(data)):
        with pytest.raises(DataError) as caught:
            way(data[:length], (3, 8, 8))
        assert str(caught.value).isprintable() and len(str(caught.value)) < 200
    way(data + b"\0\xff\xd8 what follows an image is not read" * (kind != "npy"), (3, 8, 8))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_gives_an_image_or_a_refusal(kind: str, way: Way) -> None:
    refused = 0
    for at in range(len(KINDS[kind])):
        data = bytearray(KINDS[kind])
        data[at] ^= 1 << at % 8
        try:
            way(bytes(data), (1, 8, 8))
        except DataError as error:
            assert str(error).isprintable()
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "jpeg" in kind])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_that_ends_too_soon_is_refused_though_it_ends_well(
    channels: int, kind: str, way: Way
) -> None:
    data = KINDS[kind]
    start = data.index(b"\xff\xda")
    middle = start + (len(data) - start) // 2
    with pytest.raises(DataError, match="truncated JPEG|damaged JPEG"):
        way(data[:middle] + b"\xff\xd9", (channels, 8, 8))


@pytest.mark.parametrize("way", WAYS)
def test_rubbish_between_a_whole_jpeg_and_its_end_mark_is_no_damage(way: Way) -> None:
    way(KINDS["jpeg"][:-2] + b"\0\1\2\3" * 5 + b"\xff\xd9", (3, 8, 8))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!DOCTYPE html><html><body>404</body></html>",
        b"\xff\xd8",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe1\0",
        b"\xff\xd8" + b"\xff" * 5000,
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\xff\xff\xff\xffWEBPVP8 ",
        b"\x93NUMPY\x01\0\xff\xff{",
    ],
)
def test_no_image_is_refused(data: bytes, way: Way) -> None:
    with pytest.raises(DataError):
        way(data, (3, 8, 8))


def test_a_process_that_meets_bombs_stays_small() -> None:
    code = """
import io, resource, sys, numpy as np
from udl_dist.errors import DataError
from udl_dist.data.images.coding import decode, decode_into
bomb, fine = sys.stdin.buffer.read().split(b"~~")
row = np.empty((1, 28, 28), np.uint8)
decode_into(row, fine, "crop"), decode(fine, (1, 28, 28), "crop")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for way in (lambda: decode_into(row, bomb, "crop"), lambda: decode(bomb, (1, 28, 28), "crop")):
    try:
        way()
        sys.exit("decoded")
    except DataError:
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    stream = io.BytesIO()
    Image.new("L", (13_390, 13_390)).save(stream, "PNG", compress_level=1)
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=stream.getvalue() + b"~~" + KINDS["gray png"],
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert int(done.stdout) < 10_000  # kilobytes
