"""Unusual images are decoded right, damaged ones are named, and bombs cost no memory."""

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.data.loader.made import encoded, pixels
from udl_dist.data.images import decoders, headers
from udl_dist.data.images.coding import copy_bare, decode, encode
from udl_dist.data.images.fitting import fit_pixels
from udl_dist.data.images.headers import Fit, Format, Shape
from udl_dist.errors import DataError

GRAY, COLOUR = (1, 28, 28), (3, 28, 28)


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG as the specification writes it, for kinds that no library here can write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("shape", [GRAY, COLOUR])
@pytest.mark.parametrize("kind", ["png", "npy", "raw", "jpeg", "webp"])
def test_encoded_pixels_come_back(kind: str, shape: Shape) -> None:
    made = np.stack([pixels(channel, 28, 28) for channel in range(shape[0])])
    data = encode(made, kind, 95)  # type: ignore[arg-type]
    assert data == encode(made, kind, 95)  # type: ignore[arg-type]
    back = decode(data, shape, "crop", shape if kind == "raw" else None)
    allowed = 0 if kind in ("png", "npy", "raw") else 60
    assert back.shape == shape and back.dtype == np.uint8
    assert np.abs(back.astype(int) - made).max() <= allowed


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(28, 28), (60, 41), (17, 90)])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_fast_path_gives_the_pixels_of_the_slow_one(
    mode: str,
    kind: str,
    size: tuple[int, int],
    channels: int,
    fit: Fit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = encoded(pixels(1, *size) if mode == "L" else pixels(1, *size, 3), kind)
    fast = decode(data, (channels, 28, 28), fit)
    monkeypatch.setattr(decoders, "_opencv", lambda data, header: None)
    assert np.array_equal(fast, decode(data, (channels, 28, 28), fit))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_plain_images_take_the_fast_path(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "pillow_image", None)
    assert decode(encoded(pixels(1, 28, 28), kind), GRAY, "crop").shape == GRAY


def test_sixteen_bit_gray_is_scaled() -> None:
    wide = np.array([[0, 128, 129, 257], [32896, 65535, 65406, 65407]] * 2, np.uint16)
    assert np.array_equal(decode(encoded(wide), (1, 4, 4), "crop")[0], np.rint(wide / 257))


def test_sixteen_bit_colour_is_scaled() -> None:
    values = np.array([[0, 65535, 32896], [257, 514, 65278]], ">u2")
    data = png(2, 1, 16, 2, b"\0" + values.tobytes())
    back = decode(data, (3, 2, 2), "pad")
    assert np.abs(back[:, 0, :].T.astype(int) - np.rint(values / 257)).max() <= 1


def test_palette_and_two_colours_become_their_colours() -> None:
    colour = pixels(3, 28, 28, 3) // 128 * 255
    palette = Image.fromarray(colour).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    assert (
        np.abs(
            decode(encoded(palette), COLOUR, "crop").astype(int) - colour.transpose(2, 0, 1)
        ).max()
        <= 1
    )
    black_white = Image.fromarray(pixels(4, 28, 28) // 128 * 255).convert("1")
    assert set(np.unique(decode(encoded(black_white), GRAY, "crop"))) == {0, 255}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    image = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 14, 28))
    data = encoded(image.quantize() if mode == "P" else image.convert(mode))
    back = decode(data, GRAY, "crop")[0]
    assert (back[:, :14] == 0).all() and (back[:, 14:] == 255).all()
    data = encoded(
        Image.new("LA", (28, 28), (0, 127)), "WEBP" if mode == "RGBA" else "PNG", lossless=True
    )
    assert abs(int(decode(data, GRAY, "crop").mean()) - 128) <= 1


def test_a_transparent_colour_without_an_alpha_channel_is_laid_on_white() -> None:
    data = encoded(Image.new("RGB", (28, 28), (10, 20, 30)), transparency=(10, 20, 30))
    assert (decode(data, COLOUR, "crop") == 255).all()


def test_cmyk_jpeg_becomes_its_colours() -> None:
    data = encoded(Image.new("CMYK", (28, 28), (0, 255, 255, 0)), "JPEG", quality=95)
    red = decode(data, COLOUR, "crop").reshape(3, -1).mean(1)
    assert red[0] > 245 and (red[1:] < 10).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_turns_the_image_upright(orientation: int, kind: str) -> None:
    upright = np.zeros((28, 28), np.uint8)
    upright[:8, :20] = 255
    transposes = {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_90",
        7: "TRANSVERSE",
        8: "ROTATE_270",
    }
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose[transposes[orientation]])
    exif = Image.Exif()
    exif[headers.ORIENTATION] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    back = decode(encoded(stored.convert("RGB"), kind, exif=exif, **options), GRAY, "crop")[0]
    assert np.abs(back.astype(int) - upright).max() < 100
    assert abs(back.astype(int) - upright).mean() < 4


def test_unreadable_exif_leaves_the_image_as_it_lies() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = encoded(pixels(1, 28, 28), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
        assert decode(data, GRAY, "crop").shape == GRAY


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 1), (2, 3), (4096, 4096)])
def test_any_size_fits(size: tuple[int, int], fit: Fit) -> None:
    image = Image.new("L", size, 200)
    back = decode(encoded(image, "PNG", compress_level=1), GRAY, fit)
    assert back.shape == GRAY
    assert back.max() == 200
    if fit == "crop" or size[0] == size[1]:
        assert back.min() == 200


def test_crop_takes_the_middle_and_pad_keeps_the_whole() -> None:
    wide = np.zeros((28, 84), np.uint8)
    wide[:, 28:56] = pixels(1, 28, 28) // 2 + 100
    assert np.array_equal(decode(encoded(wide), GRAY, "crop")[0], wide[:, 28:56])
    padded = decode(encoded(np.full((28, 84), 255, np.uint8)), GRAY, "pad")[0]
    assert (padded.mean(1) > 0).sum() == 9 and (padded[:9] == 0).all() and (padded[-9:] == 0).all()


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((280, 280), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(decode(encoded(stripes), GRAY, "crop").astype(int) - 127).max() <= 5


def test_gray_to_colour_repeats_and_colour_to_gray_weighs() -> None:
    gray = pixels(1, 28, 28)[None]
    assert np.array_equal(fit_pixels(gray, COLOUR, "crop"), np.repeat(gray, 3, 0))
    green = np.zeros(COLOUR, np.uint8)
    green[1] = 255
    assert (fit_pixels(green, GRAY, "crop") == 150).all()


@pytest.mark.parametrize(
    "array", [pixels(1, 28, 28), pixels(1, 28, 28)[None], pixels(1, 28, 28)[..., None]]
)
def test_npy_may_have_channels_first_last_or_none(array: NDArray[Any]) -> None:
    stream = io.BytesIO()
    np.save(stream, array)
    assert np.array_equal(decode(stream.getvalue(), GRAY, "crop")[0], array.reshape(28, 28))


def npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


BAD = {
    "empty": (b"", "is empty"),
    "text": (b"hello, I am a text\n" * 40, "not a PNG, JPEG, WebP or npy"),
    "html": (b"<!DOCTYPE html><html></html>", "not a PNG"),
    "gif": (encoded(pixels(1, 8, 8), "GIF"), "not a PNG"),
    "truncated png": (encoded(pixels(1, 28, 28))[:-30], "truncated PNG"),
    "png without its end": (encoded(pixels(1, 28, 28))[:-12], "truncated PNG"),
    "damaged png": (encoded(pixels(1, 28, 28)).replace(b"IDATx", b"IDATy"), "damaged PNG"),
    "png header alone": (encoded(pixels(1, 28, 28))[:20], "cut off"),
    "png with bad rows": (png(28, 28, 8, 0, bytes(100)), "truncated PNG"),
    "truncated jpeg": (encoded(pixels(1, 64, 64), "JPEG")[:-200], "truncated JPEG"),
    "jpeg header alone": (encoded(pixels(1, 64, 64), "JPEG")[:30], "cut off"),
    "truncated webp": (encoded(pixels(1, 64, 64, 3), "WEBP")[:-100], "truncated WebP"),
    "objects in npy": (npy(np.array([{}, None], object)), "not an image"),
    "floats in npy": (npy(np.zeros((8, 8))), "not an image"),
    "five channels": (npy(np.zeros((8, 8, 5), np.uint8)), "1 or 3 channels"),
    "short npy": (npy(np.zeros((8, 8), np.uint8))[:-1], "63 bytes"),
    "either axis": (npy(np.zeros((3, 9, 3), np.uint8)), "first or last"),
    "bomb png": (png(20_000, 20_000, 8, 0, b""), "20000 x 20000 pixels"),
    "bomb one over": (png(8192, 4097, 8, 0, b""), "8192 x 4097 pixels"),
    "no pixels": (png(0, 5, 8, 0, b""), "0 x 5"),
    "bomb npy": (
        npy(np.zeros((8, 8), np.uint8)).replace(b"(8, 8), }    ", b"(90000, 90000), }"),
        "bytes of pixels",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_image_is_named(name: str) -> None:
    data, reason = BAD[name]
    with pytest.raises(DataError, match=reason):
        decode(data, GRAY, "crop")


def test_bombs_of_other_kinds_are_refused_by_their_headers() -> None:
    jpeg = bytearray(encoded(pixels(1, 64, 64), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 50_000, 50_000)
    webp = bytearray(encoded(pixels(1, 64, 64, 3), "WEBP", lossless=True))
    webp[21:25] = struct.pack("<I", 16_000 | 16_000 << 14)
    extended = b"RIFF\0\0\0\0WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\x0f\x27\0\x0f\x27\0"
    for data, said in (
        (bytes(jpeg), "50000 x 50000"),
        (bytes(webp), "16001 x 16001"),
        (extended, "10000 x 10000"),
    ):
        with pytest.raises(DataError, match=said):
            decode(data, GRAY, "crop")


def test_raw_of_another_length_is_refused() -> None:
    with pytest.raises(DataError, match="has 3 bytes"):
        decode(b"abc", GRAY, "crop", GRAY)


@pytest.mark.parametrize("side", [6, 80])  # few pixels go all at once, more image by image
@pytest.mark.parametrize("kind", ["npy", "raw"])
def test_bare_pixels_are_copied_where_their_headers_are_equal(kind: Format, side: int) -> None:
    images = np.random.default_rng(side).integers(0, 256, (3, 1, side, side), np.uint8)
    payloads, copied = [encode(image, kind, 0) for image in images], np.zeros_like(images)
    assert copy_bare(payloads, copied) and (copied == images).all()
    longer = [*payloads[:2], payloads[2] + b"0"]
    assert not copy_bare(longer, copied) and not copy_bare([b""] * 3, copied)
    if kind == "npy":
        other = [*payloads[:2], payloads[2].replace(b"False", b"True ", 1)]
        assert not copy_bare(other, copied)
