"""python -m tests.bench.decoders: which decoder is the soonest at training size, and how near to
the exact pixels.

Photos of 500 x 375 as JPEG q90 become their middle square of 64 or 128 px, as uint8 [C, H, W]. One
thread, CPU time; the contenders take turns, and what is printed is the median ratio to Pillow's
full decode and antialiased resize, which is webdataset's usual way. PSNR is against its pixels:
mean, and the least of all photos. Needs the extra `bench`.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from tests.bench.photos import HEIGHT, WIDTH, jpeg
from udl_dist.data.images.coding import decode, decode_into

PHOTOS, TURNS = 60, 9
Pixels = NDArray[np.uint8]
Way = Callable[[bytes, int], Pixels]  # -> [C, H, W]
LEFT = (WIDTH - HEIGHT) // 2


def resized(image: Image.Image, scale: float, size: int) -> Pixels:
    """The middle square by Pillow, out of an image that was decoded at `scale`."""
    box = (LEFT * scale, 0, (LEFT + HEIGHT) * scale, HEIGHT * scale)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box)).transpose(
        2, 0, 1
    )


def pillow(data: bytes, size: int) -> Pixels:
    return resized(Image.open(io.BytesIO(data)), 1, size)


def pillow_draft(data: bytes, size: int) -> Pixels:
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (-(-size * WIDTH // HEIGHT), size))
    return resized(image, image.height / HEIGHT, size)


def eighths(size: int, steps: tuple[int, ...] = (1, 2, 4, 8)) -> int:
    return next(step for step in steps if HEIGHT * step / 8 >= size)


def scaled(data: bytes, step: int) -> Pixels:  # -> [H, W, C]
    raster: Pixels = simplejpeg.decode_jpeg(
        data, min_width=-(-WIDTH * step // 8), min_height=-(-HEIGHT * step // 8)
    )
    return raster


def simplejpeg_pillow(data: bytes, size: int) -> Pixels:
    step = eighths(size)
    return resized(Image.fromarray(scaled(data, step)), step / 8, size)


def simplejpeg_any_eighth(data: bytes, size: int) -> Pixels:
    step = eighths(size, (1, 2, 3, 4, 5, 6, 7, 8))
    return resized(Image.fromarray(scaled(data, step)), step / 8, size)


def simplejpeg_area(data: bytes, size: int) -> Pixels:
    step = eighths(size)
    raster = scaled(data, step)[:, LEFT * step // 8 : (LEFT + HEIGHT) * step // 8]
    return area(raster, size).transpose(2, 0, 1)


def area(raster: Any, size: int) -> Pixels:  # [H, W, C] -> [size, size, C]
    made: Pixels = cv2.resize(raster, (size, size), interpolation=cv2.INTER_AREA)
    return made


def opencv_area(data: bytes, size: int) -> Pixels:
    step = eighths(size)
    flag = {
        1: cv2.IMREAD_REDUCED_COLOR_8,
        2: cv2.IMREAD_REDUCED_COLOR_4,
        4: cv2.IMREAD_REDUCED_COLOR_2,
    }[step]
    raster: Any = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    raster = raster[:, LEFT * step // 8 : (LEFT + HEIGHT) * step // 8]
    return area(raster, size)[:, :, ::-1].transpose(2, 0, 1)


def decode_alone(data: bytes, size: int) -> Pixels:
    return scaled(data, eighths(size))


def ours_exact(data: bytes, size: int) -> Pixels:
    return decode(data, (3, size, size), "crop")


def ours(data: bytes, size: int) -> Pixels:
    row: Pixels = np.empty((3, size, size), np.uint8)
    decode_into(row, data, "crop")
    return row


WAYS: dict[str, Way] = {
    "Pillow, full decode": pillow,
    "Pillow draft": pillow_draft,
    "simplejpeg 1/2/4/8 + Pillow resize": simplejpeg_pillow,
    "simplejpeg any eighth + Pillow resize": simplejpeg_any_eighth,
    "simplejpeg 1/2/4/8 + OpenCV area": simplejpeg_area,
    "OpenCV reduced + area": opencv_area,
    "decode (exact, for packing)": ours_exact,
    "decode_into (for training)": ours,
    "simplejpeg 1/2/4/8, no resize (limit)": decode_alone,
}


def decibels(one: Pixels, other: Pixels) -> float:
    error = np.square(one.astype(float) - other).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-3)))


def seconds(way: Way, photos: list[bytes], size: int) -> float:
    began = time.process_time()
    for data in photos:
        way(data, size)
    return time.process_time() - began


def row(name: str, size: int, photos: list[bytes], times: dict[str, list[float]]) -> str:
    ratio = statistics.median(
        base / own for base, own in zip(times["Pillow, full decode"], times[name], strict=True)
    )
    rate = len(photos) / statistics.median(times[name])
    if WAYS[name] is decode_alone:
        return f"{name:40}{size:5}{rate:10,.0f}{ratio:8.2f}"
    apart = [decibels(WAYS[name](data, size), pillow(data, size)) for data in photos]
    return (
        f"{name:40}{size:5}{rate:10,.0f}{ratio:8.2f}{statistics.mean(apart):8.1f}{min(apart):8.1f}"
    )


def main() -> None:
    cv2.setNumThreads(1)
    photos = [jpeg(number) for number in range(PHOTOS)]
    print(
        f"{PHOTOS} photos of {WIDTH} x {HEIGHT}, {sum(map(len, photos)) / PHOTOS / 1000:.0f} KB"
        f" each; simplejpeg {simplejpeg.__version__}, OpenCV {cv2.__version__}"
    )
    print(f"{'decoder':40}{'px':>5}{'images/s':>10}{'ratio':>8}{'PSNR':>8}{'least':>8}")
    for size in (64, 128):
        times: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(TURNS):
            for name, way in WAYS.items():
                times[name].append(seconds(way, photos, size))
        for name in WAYS:
            print(row(name, size, photos, times))


if __name__ == "__main__":
    main()
