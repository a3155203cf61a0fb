"""Encoded images to uint8 pixels of the training shape and back; knows neither tar nor folder.

`decode` is exact, for packing: the whole image is decoded, and resized by Pillow; JPEGs above 16.7
megapixels alone are decoded at a power of two of their size, with twice the pixels that are wanted.
`decode_into` is quick, for training: a JPEG is decoded at the smallest power of two that holds
enough pixels, and resized into the row of the batch.

With both, `crop` takes the middle square, or `pad` fits the whole image on black; colour becomes
gray by luma (ITU-R 601); resizing is bilinear with antialiasing. The rules for odd kinds are in
`decoders`.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from udl_dist.data.images.augment import F64
from udl_dist.data.images.decoders import Decoded, Raster, decode_raster, opencv, pixels_at
from udl_dist.data.images.fitting import copy_into, fit_into, plan
from udl_dist.data.images.headers import MOST_PIXELS, Header, read_header, read_npy
from udl_dist.data.images.kinds import Fit, Format, Shape
from udl_dist.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]
THUMBNAIL: Shape = (3, 32, 32)
WHOLE = 2**24  # pixels up to which `decode` decodes all of a JPEG


def decode(
    data: bytes,
    shape: Shape,
    fit: Fit,
    raw_shape: Shape | None = None,
    most_pixels: int = MOST_PIXELS,
) -> Pixels:  # -> [C, H, W]
    """Decode one image to the training shape; `raw_shape` says that the bytes are bare pixels of
    that shape.

    Raises DataError with what is wrong ("is a truncated PNG"); the caller knows where and puts that
    in front.
    """
    if raw_shape is not None:
        return fit_pixels(_raw(data, raw_shape), shape, fit)
    header = read_header(data, most_pixels)
    if header.kind == "npy":
        return fit_pixels(_npy(data, shape), shape, fit)
    least = (
        _scale_for(header, shape, fit, most_pixels)
        if header.scalable and header.pixels > WHOLE
        else 1.0
    )
    raster = decode_raster(data, header, least=least, most_pixels=most_pixels).raster
    return fit_pixels(_channels_first(raster), shape, fit)


def _scale_for(header: Header, shape: Shape, fit: Fit, most_pixels: int) -> float:
    """The part of its size at which a large JPEG has twice the pixels wanted along each side; half
    that if too many.
    """
    least = plan(*header.upright, np.empty(shape, np.uint8), fit).least
    return 2 * least if pixels_at(header, 2 * least) <= most_pixels else least


def decode_into(
    row: Pixels,
    data: bytes,
    fit: Fit,
    raw_shape: Shape | None = None,
    crop: F64 | None = None,
    mirrored: bool = False,
    most_pixels: int = MOST_PIXELS,
) -> None:
    """Decode one image into `row` [C, H, W] of a batch, mirrored if asked; a `crop` drawn by
    `augment` replaces `fit`.

    Photos of 500 x 375 as JPEGs come within 43 dB at 64 px and 44 dB at 128 px of Pillow's full
    decode and antialiased resize (means, no photo below 38).
    Raises DataError as `decode` does, and `row` is then of no use.
    """
    if raw_shape is not None:
        return _pixels_into(row, _raw(data, raw_shape), fit, crop, mirrored)
    header = read_header(data, most_pixels)
    if header.kind == "npy":
        return _pixels_into(
            row, _npy(data, (row.shape[0], row.shape[1], row.shape[2])), fit, crop, mirrored
        )
    # nothing to cut or resize, so nothing to plan
    if crop is None and header.upright == row.shape[:0:-1]:
        return copy_into(
            row, decode_raster(data, header, row.shape[0] == 1, 1.0, most_pixels).raster, mirrored
        )
    planned = plan(*header.upright, row, fit, crop)
    decoded = decode_raster(data, header, row.shape[0] == 1, planned.least, most_pixels)
    if not header.plain:  # Pillow turned it
        planned = plan(decoded.raster.shape[1], decoded.raster.shape[0], row, fit, crop)
    fit_into(row, decoded, planned, mirrored)


def stored_shape(data: bytes, most_pixels: int = MOST_PIXELS) -> Shape:
    """Channels, height and width of an encoded image, upright; it has 3 channels only if a pixel
    has colour.
    """
    header = read_header(data, most_pixels)
    thumbnail = np.empty(THUMBNAIL, np.uint8)
    decode_into(thumbnail, data, "pad", most_pixels=most_pixels)
    width, height = header.upright
    return 3 if (thumbnail != thumbnail[:1]).any() else 1, height, width


def encode(pixels: Pixels, kind: Format, quality: int) -> bytes:  # [C, H, W] ->
    """Encode uint8 pixels; the same pixels give the same bytes. `quality` is of jpeg and webp
    alone.
    """
    if kind == "raw":
        return pixels.tobytes()
    if kind == "npy":
        stream = io.BytesIO()
        np.lib.format.write_array(
            stream, np.ascontiguousarray(pixels), version=(1, 0), allow_pickle=False
        )
        return stream.getvalue()
    if kind == "png":
        return _png(pixels)
    stream = io.BytesIO()
    _image(pixels).save(stream, kind.upper(), quality=quality)
    return stream.getvalue()


# [C, H, W] of any size -> [C, H, W] of `shape`
def fit_pixels(pixels: Pixels, shape: Shape, fit: Fit) -> Pixels:
    """Bring pixels of one or three channels to the training shape."""
    if pixels.shape == shape:
        return pixels
    if pixels.shape == (1, *shape[1:]):
        return np.repeat(pixels, 3, axis=0)
    return _fit(_image(pixels), shape, fit)


def _fit(image: Image.Image, shape: Shape, fit: Fit) -> Pixels:
    channels, height, width = shape
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = _cropped(image, width, height) if fit == "crop" else _padded(image, width, height)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _cropped(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle square, resized in one step with the cut."""
    from PIL import Image

    assert width == height, "training images are square"
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize(
        (width, height), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
    )


def _padded(image: Image.Image, width: int, height: int) -> Image.Image:
    from PIL import Image

    scale = min(width / image.width, height / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = Image.new(image.mode, (width, height))
    fitted = image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)
    canvas.paste(fitted, ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas


def _pixels_into(row: Pixels, pixels: Pixels, fit: Fit, crop: F64 | None, mirrored: bool) -> None:
    if pixels.shape == row.shape and crop is None:
        row[...] = pixels[:, :, ::-1] if mirrored else pixels
        return
    raster = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    planned = plan(raster.shape[1], raster.shape[0], row, fit, crop)
    fit_into(row, Decoded(raster), planned, mirrored)


def _channels_first(raster: Raster) -> Pixels:
    return raster[None] if raster.ndim == 2 else raster.transpose(2, 0, 1)


def _raw(data: bytes, shape: Shape) -> Pixels:
    """Bare pixels of a known shape."""
    if len(data) != np.prod(shape):
        raise DataError(f"has {len(data)} bytes of pixels where {shape} was packed")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _npy(data: bytes, shape: Shape) -> Pixels:
    """An npy image as [C, H, W]; channels may be first or last."""
    stored, start = read_npy(data)
    pixels = np.frombuffer(data, np.uint8, offset=start).reshape(stored)
    if pixels.ndim == 2:
        return pixels[None]
    if stored != shape and stored[0] in (1, 3) and stored[2] in (1, 3) and stored[1] > 1:
        raise DataError(f"is an npy of shape {stored}: are its channels first or last?")
    return pixels if stored[0] in (1, 3) else pixels.transpose(2, 0, 1)


def _png(pixels: Pixels) -> bytes:
    cv2 = opencv()
    ready = (
        pixels[0] if pixels.shape[0] == 1 else np.ascontiguousarray(pixels[::-1].transpose(1, 2, 0))
    )
    made, data = cv2.imencode(".png", ready, [cv2.IMWRITE_PNG_COMPRESSION, 6])
    assert made, "OpenCV cannot write a PNG"
    encoded: bytes = data.tobytes()
    return encoded


def _image(pixels: Pixels) -> Image.Image:
    from PIL import Image

    return Image.fromarray(
        pixels[0] if pixels.shape[0] == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    )
