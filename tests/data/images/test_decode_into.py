"""The quick way into a batch gives the pixels of the exact one, as nearly as is promised, for every
kind of image.
"""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.data.loader.made import encoded, pixels
from udl_dist.data.images import decoders, headers
from udl_dist.data.images.coding import decode, decode_into, encode
from udl_dist.data.images.fitting import Pixels, crop_box, crops
from udl_dist.data.images.headers import Fit, Shape

LEAST_DB = 35


def into(data: bytes, shape: tuple[int, ...], fit: Fit = "crop", **options: Any) -> Pixels:
    """A row in the middle of a batch, whose neighbours must stay as they are."""
    batch = np.full((3, *shape), 77, np.uint8)
    row: Pixels = batch[1]
    decode_into(row, data, fit, **options)
    assert (batch[[0, 2]] == 77).all()
    return row


def decibels(one: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio."""
    error = np.square(one.astype(float) - other).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-6)))


def detailed(width: int, height: int) -> NDArray[np.uint8]:
    """Smooth colours with edges in them, unlike at each corner."""
    image = pixels(1, height, width, 3).copy()
    image[: height // 3, : width // 4] //= 3
    image[height // 2 :, width // 3 : width // 2] //= 2
    return image


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize(
    "shape", [(1, 28, 28), (3, 28, 28), (3, 50, 50), (3, 64, 64), (1, 200, 200)]
)
@pytest.mark.parametrize("size", [(500, 375), (131, 207), (64, 64), (29, 30), (900, 41)])
def test_quick_pixels_are_near_the_exact_ones(
    size: tuple[int, int], shape: Shape, fit: Fit, kind: str
) -> None:
    data = encoded(detailed(*size), kind, quality=90)
    assert decibels(into(data, shape, fit), decode(data, shape, fit)) > LEAST_DB


@pytest.mark.parametrize("size", [33, 40, 50, 56, 57, 200])
def test_quick_shrinking_is_antialiased(size: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size, size), dtype=np.uint8)
    exact = decode(encoded(noise), (1, 28, 28), "crop")
    assert np.array_equal(noise[:28, :28], into(encoded(noise[:28, :28]), (1, 28, 28))[0])
    assert decibels(into(encoded(noise), (1, 28, 28)), exact) > 27  # noise is the worst there is


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("size", [(150, 101), (333, 222)])
def test_a_rotated_jpeg_is_quick_too(
    size: tuple[int, int], fit: Fit, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[headers.ORIENTATION] = orientation
    data = encoded(detailed(*size), "JPEG", quality=90, exif=exif)
    upright = encoded(decode_upright(data), "PNG")
    monkeypatch.setattr(decoders, "pillow_image", None)
    assert decibels(into(data, (3, 28, 28), fit), decode(upright, (3, 28, 28), fit)) > LEAST_DB


def decode_upright(data: bytes) -> Image.Image:
    from PIL import ImageOps

    return ImageOps.exif_transpose(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("orientation", [3, 6])
def test_an_orientation_in_an_unusual_place_is_left_to_pillow(orientation: int) -> None:
    exif = Image.Exif()
    exif[headers.ORIENTATION] = orientation
    plain = encoded(detailed(60, 40), "JPEG", exif=exif)
    at = plain.index(b"Exif\0\0") - 4
    block = plain[at : at + 2 + int.from_bytes(plain[at + 2 : at + 4], "big")]
    twice = plain[:at] + block + plain[at:]
    other = Image.Exif()
    other[0x010F] = "a maker"
    xmp = f'<x tiff:Orientation="{orientation}"/>'.encode()
    elsewhere = encoded(detailed(60, 40), "JPEG", exif=other, xmp=xmp)
    for data in (twice, elsewhere):
        assert not headers.read_header(data).plain
        exact = decode(encoded(decode_upright(data)), (3, 28, 28), "crop")
        assert decibels(into(data, (3, 28, 28)), exact) > LEAST_DB


def test_a_gray_row_of_a_colour_jpeg_decodes_luma_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import simplejpeg

    asked: list[tuple[str, int, int]] = []
    real = simplejpeg.decode_jpeg

    def spy(data: bytes, space: str, min_width: int, min_height: int) -> Any:
        asked.append((space, min_width, min_height))
        return real(data, space, min_width=min_width, min_height=min_height)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    data = encoded(detailed(500, 375), "JPEG", quality=90)
    into(data, (1, 64, 64))
    into(data, (3, 64, 64))
    assert asked == [("GRAY", 125, 94), ("RGB", 125, 94)]  # a quarter of its size


@pytest.mark.parametrize("colour", [True, False])
def test_cmyk_and_two_sorts_of_gray_come_out_right(colour: bool) -> None:
    cmyk = encoded(Image.fromarray(detailed(90, 70)).convert("CMYK"), "JPEG", quality=95)
    gray = encoded(detailed(90, 70)[..., 0], "JPEG", quality=95)
    shape = (3 if colour else 1, 28, 28)
    for data in (cmyk, gray):
        assert decibels(into(data, shape), decode(data, shape, "crop")) > LEAST_DB


@pytest.mark.parametrize("kind", ["raw", "npy", "png"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_training_size_come_through_untouched(channels: int, kind: str) -> None:
    made = np.stack([pixels(channel, 28, 28) for channel in range(channels)])
    data, raw_shape = encode(made, kind, 90), made.shape if kind == "raw" else None  # type: ignore[arg-type]
    assert np.array_equal(into(data, made.shape, raw_shape=raw_shape), made)


@pytest.mark.parametrize("kind", ["raw", "npy"])
def test_bare_pixels_of_another_size_are_fitted(kind: str) -> None:
    made = detailed(60, 44).transpose(2, 0, 1)
    data, raw_shape = encode(made, kind, 90), made.shape if kind == "raw" else None  # type: ignore[arg-type]
    for shape in ((1, 28, 28), (3, 28, 28)):
        exact = decode(data, shape, "pad", raw_shape)
        assert decibels(into(data, shape, "pad", raw_shape=raw_shape), exact) > LEAST_DB


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(500, 375), (90, 200)])
def test_a_drawn_crop_is_that_part_of_the_image(size: tuple[int, int], kind: str) -> None:
    image = Image.fromarray(detailed(*size))
    data = encoded(image, kind, quality=95)
    for crop in crops(np.arange(12), 0.1):
        left, top, width, height = crop_box(crop, *size)
        box = (left, top, left + width, top + height)
        exact = np.asarray(image.resize((28, 28), Image.Resampling.BILINEAR, box=box)).transpose(
            2, 0, 1
        )
        assert decibels(into(data, (3, 28, 28), crop=crop), exact) > 30
        assert np.array_equal(
            into(data, (3, 28, 28), crop=crop), into(data, (3, 28, 28), "pad", crop=crop)
        )
