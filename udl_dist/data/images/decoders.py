"""Decodes bytes to a raster, upright, gray or RGB.

The rules for every kind: only the first frame; turned upright as EXIF says; transparency on white;
CMYK and palettes to RGB; 16-bit gray scaled to 8 bit; colour profiles not applied.

Three decoders, each the fastest where it is used: libjpeg-turbo by simplejpeg for JPEGs of one or
three components, OpenCV for plain PNGs and WebPs (two to five times as fast), Pillow for all the
rest.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from udl_dist.data.images.headers import MOST_PIXELS, Header, bare_png, too_large
from udl_dist.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

Raster = NDArray[np.uint8]  # [H, W] gray or [H, W, 3] RGB

# scales at which a JPEG is decoded; 3, 5, 6 and 7 eighths have no vector code and cost more
EIGHTHS = (1, 2, 4, 8)
# libjpeg's words, in lower case, for an image whose end is missing.
PREMATURE = "premature end"
# libjpeg's words for garbage between a complete image and its end mark
COMPLETE = "before marker 0xd9"


class Decoded(NamedTuple):
    """An image as a raster, perhaps smaller; its point x is at `left + scale * x` of the raster."""

    raster: Raster
    scale: float = 1.0
    left: float = 0.0
    top: float = 0.0


def decode_raster(
    data: bytes,
    header: Header,
    gray: bool = False,
    least: float = 1.0,
    most_pixels: int = MOST_PIXELS,
) -> Decoded:
    """Decode a PNG, JPEG or WebP at a scale of at least `least`; `gray` asks for luma alone.

    Raises DataError with what is wrong, or if the raster would have more than `most_pixels`.
    """
    # Before any decoder: a PNG of 510 KB may hold 179 megapixels, which Pillow decodes into 702 MB.
    if header.pixels > most_pixels and pixels_at(header, least) > most_pixels:
        raise too_large(header, most_pixels)
    if header.plain and header.kind == "jpeg":
        if (decoded := _libjpeg(data, header, gray, least)) is not None:
            return decoded
    elif header.plain and (raster := _opencv(data, header)) is not None:
        return Decoded(raster)
    if header.pixels > most_pixels:  # only libjpeg can decode it at a smaller scale
        raise DataError("is a damaged JPEG")
    # What the fast decoders cannot do or found damaged: Pillow names the cause.
    return Decoded(np.asarray(pillow_image(data, header)))


def pixels_at(header: Header, least: float) -> int:
    """How many pixels are decoded at a scale of at least `least`."""
    width, height = _scaled_size(header, _eighths(least) if header.scalable else 8)
    return width * height


def _eighths(least: float) -> int:
    # The smallest scale that is large enough, so no pixel is decoded that the resize would not use.
    return next((eighths for eighths in EIGHTHS if eighths / 8 >= least), 8)


def _scaled_size(header: Header, eighths: int) -> tuple[int, int]:
    # Rounded up, as libjpeg does.
    return -(-header.width * eighths // 8), -(-header.height * eighths // 8)


def pillow_image(data: bytes, header: Header) -> Image.Image:
    """Decode with Pillow, upright, as L or RGB; any failure is a damaged image."""
    from PIL import Image

    if header.components == 4:  # Pillow would ignore what libjpeg warns of in a CMYK JPEG
        _simplejpeg(data, "CMYK", 1, 1)
    try:
        # Only the kind that the header showed: the allow-list holds here too.
        image: Image.Image = Image.open(io.BytesIO(data), formats=(header.kind.upper(),))
        # The limit was checked for the sizes of our header, so Pillow must see the same ones.
        if image.size != (header.width, header.height):
            raise DataError(f"is a damaged {header.kind.upper()} (its sizes contradict each other)")
        image.load()
        return upright(image)
    # A lack of memory is no damage.
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a decoder may raise anything for damaged data
        why, name = " ".join(str(error).split()), header.kind.upper()
        truncated = "truncated" in why or "broken data stream" in why
        what = f"is a truncated {name}" if truncated else f"is a damaged {name} ({why})"
        raise DataError(what) from error


def upright(image: Image.Image) -> Image.Image:
    """An opened image by the same rules: turned as EXIF says, then L or RGB."""
    from PIL import Image, ImageOps

    # an EXIF block that cannot be read says nothing about the orientation
    with contextlib.suppress(Exception):
        if image.info.get("exif"):
            image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit gray: 65535 is 257 times 255
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    # On white, as browsers and viewers show it; converting alone would show what lies under it.
    if image.has_transparency_data:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


@lru_cache(1)
def opencv() -> Any:
    """OpenCV without its own threads: the loader has decode threads, and images are small."""
    import cv2

    cv2.setNumThreads(1)
    return cv2


def _libjpeg(data: bytes, header: Header, gray: bool, least: float) -> Decoded | None:
    """Decode a JPEG at a power of two of its size; None if Pillow has to name what is wrong."""
    eighths = _eighths(least)
    space = "GRAY" if gray or header.components == 1 else "RGB"
    width, height = _scaled_size(header, eighths)
    raster = _simplejpeg(data, space, width, height)
    if raster is None:
        return None
    # libjpeg and our header disagree on the size: decoded whole, or left to Pillow.
    if raster.shape[:2] != (height, width):
        whole = eighths < 8 and header.pixels <= MOST_PIXELS
        return _libjpeg(data, header, gray, 1.0) if whole else None
    return _upright(raster[:, :, 0] if space == "GRAY" else raster, header, eighths / 8)


def _simplejpeg(data: bytes, space: str, width: int, height: int) -> Raster | None:
    """Decode, and treat warnings as errors: libjpeg fills missing parts of an image with gray."""
    import simplejpeg

    decode: Callable[..., Raster] = partial(
        simplejpeg.decode_jpeg, data, space, min_width=width, min_height=height
    )
    try:
        return decode()
    except ValueError as error:
        why = " ".join(str(error).split())
    # The image is whole: only what stands before its end mark is superfluous.
    if COMPLETE in why:
        return decode(strict=False)
    if PREMATURE in why.lower():
        raise DataError("is a truncated JPEG")
    # Refused, although libjpeg goes on: it fills what is missing with gray.
    if "corrupt" in why.lower():
        raise DataError(f"is a damaged JPEG ({why})")
    return None


def _upright(raster: Raster, header: Header, scale: float) -> Decoded:
    """Rotate a JPEG as its EXIF says; the rounding of a scaled size may come to its front."""
    width, height = header.upright
    # EXIF: 5 to 8 swap rows and columns; 2, 3, 6, 7 then mirror across, and 3, 4, 7, 8 down.
    if header.orientation > 4:
        raster = raster.swapaxes(0, 1)
    left, top = header.orientation in (2, 3, 6, 7), header.orientation in (3, 4, 7, 8)
    raster = raster[:: -1 if top else 1, :: -1 if left else 1]
    return Decoded(
        # OpenCV refuses negative strides.
        np.ascontiguousarray(raster),
        scale,
        # libjpeg adds its rounding at the right and bottom; turned, it lies at the left or top.
        left * (raster.shape[1] - width * scale),
        top * (raster.shape[0] - height * scale),
    )


def _opencv(data: bytes, header: Header) -> Raster | None:  # None: let Pillow say what is wrong
    cv2 = opencv()
    # libpng prints warnings about unusual profiles and the like to stderr, in any thread: it does
    # not get those chunks. It still prints a line about pixels that were badly compressed under a
    # correct checksum: unpacking them first would cost half of the decoding.
    bare = data if header.bare else bare_png(data)
    raster: Any = cv2.imdecode(np.frombuffer(bare, np.uint8), cv2.IMREAD_UNCHANGED)
    if (
        raster is None
        # The limit was checked for the sizes in the header, so these must be the same.
        or raster.dtype != np.uint8
        or raster.shape[:2] != (header.height, header.width)
    ):
        return None
    if raster.ndim == 2:
        return raster  # type: ignore[no-any-return]
    return cv2.cvtColor(raster, cv2.COLOR_BGR2RGB) if raster.shape[2] == 3 else None
