"""The decoders: encoded bytes to a raster, upright, gray or RGB. Knows no training shape.

The rules, the same for every kind: only the first frame; turned upright as EXIF says; transparency
laid on white; CMYK and palettes to RGB; 16-bit gray scaled to 8 bit; colour profiles not applied.

Three decoders, each the fastest where it is used: libjpeg-turbo by simplejpeg for JPEGs of one or
three components, OpenCV for plain PNGs and WebPs (two to five times as fast), Pillow for all the
rest.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from udl_dist.data.images.headers import MOST_PIXELS, ORIENTATION, Header, bare_png, too_large
from udl_dist.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

Raster = NDArray[np.uint8]  # [H, W] gray or [H, W, 3] RGB

# of its size at which a JPEG is decoded; 3, 5, 6 and 7 have no vector code and cost more
EIGHTHS = (1, 2, 4, 8)
PREMATURE = "premature end"
# libjpeg's word for rubbish between the image, which is whole, and its end mark
COMPLETE = "before marker 0xd9"


class Decoded(NamedTuple):
    """An image as a raster, perhaps smaller. A point x of the image lies at `left + scale * x` of
    the raster.
    """

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
    """Decode a PNG, JPEG or WebP at `least` of its size or more; `gray` says that only luma is
    wanted, if that is less.

    Raises DataError with what is wrong, or if more than `most_pixels` would come out.
    """
    if pixels_at(header, least) > most_pixels:
        raise too_large(header, most_pixels)
    if (
        header.plain
        and header.kind == "jpeg"
        and (decoded := _libjpeg(data, header, gray, least)) is not None
    ):
        return decoded
    if header.pixels > most_pixels:  # only libjpeg could have decoded a part of it
        raise DataError("is a damaged JPEG")
    if header.plain and header.kind != "jpeg" and (raster := _opencv(data, header)) is not None:
        return Decoded(raster)
    return Decoded(np.asarray(pillow_image(data, header)))


def pixels_at(header: Header, least: float) -> int:
    """How many pixels are decoded where `least` of the size of an image is asked for."""
    eighths = _eighths(least) if header.scalable else 8
    return -(-header.width * eighths // 8) * -(-header.height * eighths // 8)


def _eighths(least: float) -> int:
    return next((eighths for eighths in EIGHTHS if eighths / 8 >= least), 8)


def pillow_image(data: bytes, header: Header) -> Image.Image:
    """Decode with Pillow, upright, as L or RGB; any failure is a damaged image."""
    from PIL import Image

    if header.components == 4:
        _whole(data)
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=(header.kind.upper(),))
        if image.size != (header.width, header.height):
            raise DataError(f"is a damaged {header.kind.upper()} (its sizes contradict each other)")
        image.load()
        return upright(image)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a decoder fed with damage may raise anything
        said = " ".join(str(error).split())
        truncated = "truncated" in said or "broken data stream" in said
        name = header.kind.upper()
        raise DataError(
            f"is a truncated {name}" if truncated else f"is a damaged {name} ({said})"
        ) from error


def upright(image: Image.Image) -> Image.Image:
    """An image that is open already by the same rules: turned as EXIF says, L or RGB."""
    return _flattened(_turned(image))


@lru_cache(1)
def opencv() -> Any:
    """OpenCV without threads of its own: readers are the threads, and images are small."""
    import cv2

    cv2.setNumThreads(1)
    return cv2


def _libjpeg(data: bytes, header: Header, gray: bool, least: float) -> Decoded | None:
    """Decode a JPEG at a power of two of its size; None where libjpeg does not say what is wrong:
    let Pillow try.
    """
    eighths = _eighths(least)
    space = "GRAY" if gray or header.components == 1 else "RGB"
    raster = _simplejpeg(
        data, space, -(-header.width * eighths // 8), -(-header.height * eighths // 8)
    )
    if raster is None:
        return None
    if raster.shape[:2] != (-(-header.height * eighths // 8), -(-header.width * eighths // 8)):
        return (
            None
            if eighths == 8 or header.pixels > MOST_PIXELS
            else _libjpeg(data, header, gray, 1.0)
        )
    return _upright(raster[:, :, 0] if space == "GRAY" else raster, header, eighths / 8)


def _simplejpeg(data: bytes, space: str, width: int, height: int) -> Raster | None:
    """Every warning is taken seriously: libjpeg fills what is missing of a damaged image with gray
    and goes on.
    """
    import simplejpeg

    try:
        raster: Raster = simplejpeg.decode_jpeg(data, space, min_width=width, min_height=height)
        return raster
    except ValueError as error:
        said = " ".join(str(error).split())
    if COMPLETE in said:
        lenient: Raster = simplejpeg.decode_jpeg(
            data, space, min_width=width, min_height=height, strict=False
        )
        return lenient
    if PREMATURE in said.lower():
        raise DataError("is a truncated JPEG")
    if "corrupt" in said.lower():
        raise DataError(f"is a damaged JPEG ({said})")
    return None


def _whole(data: bytes) -> None:
    """Raise DataError for a CMYK JPEG that is not whole: Pillow would pass by what libjpeg warns
    of.
    """
    _simplejpeg(data, "CMYK", 1, 1)


def _upright(raster: Raster, header: Header, scale: float) -> Decoded:
    """Turn a JPEG as its EXIF says. A scaled size is rounded up, and a turn may bring that rest to
    the front.
    """
    turn = header.orientation
    width, height = header.upright
    if turn > 4:
        raster = raster.swapaxes(0, 1)
    left, top = turn in (2, 3, 6, 7), turn in (3, 4, 7, 8)
    raster = raster[:: -1 if top else 1, :: -1 if left else 1]
    return Decoded(
        np.ascontiguousarray(raster),
        scale,
        left * (raster.shape[1] - width * scale),
        top * (raster.shape[0] - height * scale),
    )


def _opencv(data: bytes, header: Header) -> Raster | None:  # None: let Pillow say what is wrong
    cv2 = opencv()
    # libpng complains of odd profiles and the like straight to stderr, in any thread; what it is
    # not given it cannot judge. Of pixels that were badly packed, under a checksum that is right,
    # it still prints a line: whoever wrote the file did that, no damage since, and to unpack them
    # first would cost half of the decoding.
    data = data if header.bare else bare_png(data)
    raster: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if (
        raster is None
        or raster.dtype != np.uint8
        or raster.shape[:2] != (header.height, header.width)
    ):
        return None
    if raster.ndim == 2:
        return raster  # type: ignore[no-any-return]
    return cv2.cvtColor(raster, cv2.COLOR_BGR2RGB) if raster.shape[2] == 3 else None


def _turned(image: Image.Image) -> Image.Image:
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
