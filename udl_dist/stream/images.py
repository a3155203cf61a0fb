"""Encoded images to uint8 pixels of the training shape and back; knows neither tar nor folder.

The rules, the same for every kind: only the first frame; turned upright as EXIF says; transparency laid on white; CMYK
and palettes to RGB; 16-bit gray scaled to 8 bit; colour to gray by luma (ITU-R 601); colour profiles not applied.
Then `crop` takes the middle square, or `pad` fits the whole image on black; resizing is bilinear with antialiasing.

Two decoders, one result: OpenCV for plain PNGs (five times as fast on small ones), Pillow for all the rest.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from udl_dist.errors import DataError
from udl_dist.stream.headers import Header, read_header, read_npy
from udl_dist.stream.settings import Fit, Format, Shape

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]

ORIENTATION = 0x0112  # EXIF tag


def decode(data: bytes, shape: Shape, fit: Fit, raw_shape: Shape | None = None) -> Pixels:  # -> [C, H, W]
    """Decode one image to the training shape; `raw_shape` says that the bytes are bare pixels of that shape.

    Raises DataError with what is wrong ("is a truncated PNG"); the caller knows where and puts that in front.
    """
    if raw_shape is not None:
        if len(data) != np.prod(raw_shape):
            raise DataError(f"has {len(data)} bytes of pixels where {raw_shape} was packed")
        return fit_pixels(np.frombuffer(data, np.uint8).reshape(raw_shape), shape, fit)
    header = read_header(data)
    if header.kind == "npy":
        return fit_pixels(_npy(data, shape), shape, fit)
    if header.plain and (pixels := _opencv(data)) is not None:
        return fit_pixels(pixels, shape, fit)
    return _fit(_pillow(data, header), shape, fit)


def encode(pixels: Pixels, kind: Format, quality: int) -> bytes:  # [C, H, W] ->
    """Encode uint8 pixels; the same pixels give the same bytes. `quality` is of jpeg and webp alone."""
    if kind == "raw":
        return pixels.tobytes()
    if kind == "npy":
        stream = io.BytesIO()
        np.lib.format.write_array(stream, np.ascontiguousarray(pixels), version=(1, 0), allow_pickle=False)
        return stream.getvalue()
    if kind == "png":
        return _png(pixels)
    stream = io.BytesIO()
    _image(pixels).save(stream, kind.upper(), quality=quality)
    return stream.getvalue()


def fit_pixels(pixels: Pixels, shape: Shape, fit: Fit) -> Pixels:  # [C, H, W] of any size -> [C, H, W] of `shape`
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
    return image.resize((width, height), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


def _padded(image: Image.Image, width: int, height: int) -> Image.Image:
    from PIL import Image

    scale = min(width / image.width, height / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = Image.new(image.mode, (width, height))
    fitted = image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)
    canvas.paste(fitted, ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas


def _opencv(data: bytes) -> Pixels | None:  # -> [C, H, W], or None: let Pillow say what is wrong
    import cv2

    pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint8:
        return None
    if pixels.ndim == 2:
        return pixels[None]  # type: ignore[no-any-return]
    return np.ascontiguousarray(pixels[:, :, ::-1].transpose(2, 0, 1)) if pixels.shape[2] == 3 else None


def _pillow(data: bytes, header: Header) -> Image.Image:
    """Decode with Pillow, upright, as L or RGB; any failure is a damaged image."""
    from PIL import Image

    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=(header.kind.upper(),))
        if image.size != (header.width, header.height):
            raise DataError(f"is a damaged {header.kind.upper()} (its sizes contradict each other)")
        image.load()
        return _flattened(_upright(image))
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a decoder fed with damage may raise anything
        said = " ".join(str(error).split())
        truncated = "truncated" in said or "broken data stream" in said
        name = header.kind.upper()
        raise DataError(f"is a truncated {name}" if truncated else f"is a damaged {name} ({said})") from error


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    if not image.info.get("exif"):
        return image
    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
    except Exception:  # an EXIF block that cannot be read says nothing about up and down
        return image
    upright: Image.Image = ImageOps.exif_transpose(image) if turned else image
    return upright


def _flattened(image: Image.Image) -> Image.Image:
    """Any mode that the allowed kinds have, as L or RGB."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit gray: 65535 is 257 times 255
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


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
    import cv2

    ready = pixels[0] if pixels.shape[0] == 1 else np.ascontiguousarray(pixels[::-1].transpose(1, 2, 0))
    made, data = cv2.imencode(".png", ready, [cv2.IMWRITE_PNG_COMPRESSION, 6])
    assert made, "OpenCV cannot write a PNG"
    return data.tobytes()


def _image(pixels: Pixels) -> Image.Image:
    from PIL import Image

    return Image.fromarray(pixels[0] if pixels.shape[0] == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
