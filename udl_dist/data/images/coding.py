"""Encoded images to uint8 pixels of the training shape, and back.

`decode` is exact, for packing: the whole image is decoded, and resized by Pillow; only JPEGs above
16.7 megapixels are decoded at a power of two of their size, with twice the pixels that are wanted.
`decode_into` is quick, for training: a JPEG is decoded at the smallest power of two that holds
enough pixels, and resized into the row of the batch.

With both, `crop` takes the centred square, or `pad` fits the whole image on black; colour becomes
gray by luma (ITU-R 601); resizing is bilinear with antialiasing. `decoders` has the rules for
unusual kinds.
"""

from __future__ import annotations

import io

import numpy as np

from udl_dist.data.images.decoders import Decoded, decode_raster, opencv, pixels_at
from udl_dist.data.images.fitting import (
    F64,
    Pixels,
    as_raster,
    copy_into,
    fit_into,
    fit_pixels,
    plan,
)
from udl_dist.data.images.headers import (
    MOST_PIXELS,
    Fit,
    Format,
    Shape,
    read_header,
    read_npy,
)
from udl_dist.errors import DataError

# Enough to see whether any pixel has colour.
THUMBNAIL: Shape = (3, 32, 32)
# 64 x 64 gray.
SMALL = 4096  # pixels up to which one copy of a whole batch is faster than a call per image
# 50 MB as RGB, in each thread that packs.
WHOLE = 2**24  # pixels up to which `decode` decodes all of a JPEG


def decode(
    data: bytes,
    shape: Shape,
    fit: Fit,
    raw_shape: Shape | None = None,
    most_pixels: int = MOST_PIXELS,
) -> Pixels:  # -> [C, H, W]
    """Decode one image to the training shape; with a `raw_shape` the bytes are bare pixels.

    Raises DataError with what is wrong ("is a truncated PNG"); the caller puts the place in front.
    """
    header = None if raw_shape else read_header(data, most_pixels)
    if header is None or header.kind == "npy":
        return fit_pixels(_stored(data, shape, raw_shape), shape, fit)
    least = 1.0
    if header.scalable and header.pixels > WHOLE:
        least = plan(*header.upright, np.empty(shape, np.uint8), fit).least
        # PSNR against a full decode at 128 px: 35.9 dB at the smallest sufficient scale, 40.5 dB at
        # twice that, unless that has too many pixels.
        if pixels_at(header, 2 * least) <= most_pixels:
            least *= 2
    raster = decode_raster(data, header, least=least, most_pixels=most_pixels).raster
    return fit_pixels(raster[None] if raster.ndim == 2 else raster.transpose(2, 0, 1), shape, fit)


def decode_into(
    row: Pixels,
    data: bytes,
    fit: Fit,
    raw_shape: Shape | None = None,
    crop: F64 | None = None,
    most_pixels: int = MOST_PIXELS,
) -> None:
    """Decode one image into `row` [C, H, W] of a batch; a drawn `crop` replaces `fit`.

    Photos of 500 x 375 as JPEGs come within 43 dB at 64 px and 44 dB at 128 px of Pillow's full
    decode and antialiased resize (means, no photo below 38).
    Raises DataError as `decode` does; `row` then has undefined content.
    """
    header = None if raw_shape else read_header(data, most_pixels)
    if header is None or header.kind == "npy":
        # Stored pixels of the row's shape are the fast path of packed sets: one copy, no resize.
        channels, height, width = row.shape
        raster = as_raster(_stored(data, (channels, height, width), raw_shape))
        if crop is None and raster.shape[:2] == (height, width):
            return copy_into(row, raster)
        planned = plan(raster.shape[1], raster.shape[0], row, fit, crop)
        return fit_into(row, Decoded(raster), planned)
    # For gray rows libjpeg is asked for luma alone, which needs no colour conversion.
    gray = row.shape[0] == 1
    if crop is None and header.upright == row.shape[:0:-1]:  # nothing to resize: no plan
        raster = decode_raster(data, header, gray, 1.0, most_pixels).raster
        return copy_into(row, raster)
    planned = plan(*header.upright, row, fit, crop)
    # Planned before decoding, since the plan says at which scale to decode.
    decoded = decode_raster(data, header, gray, planned.least, most_pixels)
    # Of such a header the orientation is not known, so width and height may have changed places.
    if not header.plain:  # Pillow may have turned it
        planned = plan(decoded.raster.shape[1], decoded.raster.shape[0], row, fit, crop)
    fit_into(row, decoded, planned)


def stored_shape(data: bytes, most_pixels: int = MOST_PIXELS) -> Shape:
    """C, H, W of an encoded image, upright; 3 channels only if a pixel has colour."""
    header = read_header(data, most_pixels)
    thumbnail = np.empty(THUMBNAIL, np.uint8)
    # Padding keeps every pixel in view; its black is gray, and changes nothing.
    decode_into(thumbnail, data, "pad", most_pixels=most_pixels)
    width, height = header.upright
    # Asked of the pixels: many gray photos are stored as three equal channels.
    return 3 if (thumbnail != thumbnail[:1]).any() else 1, height, width


def _stored(data: bytes, shape: Shape, raw_shape: Shape | None) -> Pixels:
    """Bare pixels, or an npy image, whose channels may be first or last, as [C, H, W]."""
    if raw_shape is not None:
        # Bare pixels have no header: their length is all that can be checked.
        if len(data) != np.prod(raw_shape):
            raise DataError(f"has {len(data)} bytes of pixels where {raw_shape} was packed")
        return np.frombuffer(data, np.uint8).reshape(raw_shape)
    stored, start = read_npy(data)
    pixels = np.frombuffer(data, np.uint8, offset=start).reshape(stored)
    if pixels.ndim == 2:
        return pixels[None]
    # [3, W, 3] could be either; a guess would train on scrambled images without a word.
    if stored != shape and stored[0] in (1, 3) and stored[2] in (1, 3) and stored[1] > 1:
        raise DataError(f"is an npy of shape {stored}: are its channels first or last?")
    return pixels if stored[0] in (1, 3) else pixels.transpose(2, 0, 1)


def copy_bare(payloads: list[bytes], images: Pixels) -> bool:
    """Copy pixels that follow equal headers (raw: of 0 bytes) into a batch; False if they do not.

    The header of an npy has the shape, so equal headers mean equal layouts.
    """
    if not payloads:
        return True
    pixels = images[0].size
    # Bytes in front of the pixels: 0 of raw, usually 128 of npy.
    head = len(payloads[0]) - pixels
    if head < 0 or any(len(payload) != head + pixels for payload in payloads):
        return False
    rows = images.reshape(len(payloads), pixels)
    if pixels < SMALL:
        table = np.frombuffer(b"".join(payloads), np.uint8).reshape(len(payloads), head + pixels)
        rows[:] = table[:, head:]
        return not head or bool((table[:, :head] == table[0, :head]).all())
    first = payloads[0][:head]
    for row, payload in zip(rows, payloads, strict=True):
        row[:] = np.frombuffer(payload, np.uint8, pixels, head)
    return all(payload.startswith(first) for payload in payloads)


def encode(pixels: Pixels, kind: Format, quality: int) -> bytes:  # [C, H, W] ->
    """Encode uint8 pixels; equal pixels give equal bytes. `quality` is for jpeg and webp alone."""
    if kind == "raw":
        return pixels.tobytes()
    if kind == "png":
        cv2 = opencv()
        # OpenCV writes BGR, so the channels are reversed.
        raster = np.ascontiguousarray(as_raster(pixels[::-1]))
        # 6 is zlib's own default; the level changes size and time, never a pixel.
        made, data = cv2.imencode(".png", raster, [cv2.IMWRITE_PNG_COMPRESSION, 6])
        assert made, "OpenCV cannot write a PNG"
        return bytes(data)
    stream = io.BytesIO()
    if kind == "npy":
        np.lib.format.write_array(
            # The version is fixed so that the bytes are equal under any NumPy.
            stream,
            np.ascontiguousarray(pixels),
            version=(1, 0),
            allow_pickle=False,
        )
    else:
        from PIL import Image

        image = Image.fromarray(np.ascontiguousarray(as_raster(pixels)))
        image.save(stream, kind.upper(), quality=quality)
    return stream.getvalue()
