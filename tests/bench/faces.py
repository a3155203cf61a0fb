"""A set of images that no default was chosen on: drawn faces, each of random parts and colours.

    python -m tests.bench.faces FOLDER --count 5000

Writes FOLDER/0000.png …, RGB, of 64 pixels.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE, TIMES = 64, 4  # drawn four times as large, then reduced
Colour = tuple[int, int, int]


def colour(rng: np.random.Generator, low: int = 0, high: int = 256) -> Colour:
    red, green, blue = rng.integers(low, high, 3).tolist()
    return red, green, blue


def shade(one: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, int(value * factor)) for value in one)
    return red, green, blue


def face(rng: np.random.Generator) -> Image.Image:
    """A head on a background that fades, with hair, ears, eyes, brows, a nose and a mouth."""
    size = SIDE * TIMES
    top, bottom = np.array(colour(rng, 40)), np.array(colour(rng, 40))
    fade = np.linspace(0, 1, size)[:, None, None]
    rows = np.broadcast_to(top + (bottom - top) * fade, (size, size, 3))
    image = Image.fromarray(rows.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    tone = rng.uniform(0.35, 1.0)
    skin = (int(250 * tone), int(205 * tone**1.2), int(170 * tone**1.4))
    hair = shade((110, 75, 40), rng.uniform(0.2, 2.2))
    x, y = size * rng.uniform(0.44, 0.56), size * rng.uniform(0.5, 0.58)
    width, height = size * rng.uniform(0.22, 0.3), size * rng.uniform(0.3, 0.37)

    def oval(across: float, down: float, wide: float, high: float, fill: Colour) -> None:
        left, up = x + across * width, y + down * height
        box = (left - wide * width, up - high * height, left + wide * width, up + high * height)
        draw.ellipse(box, fill=fill)

    draw.ellipse((x - 2 * width, y + height * 0.8, x + 2 * width, y + 3 * height), colour(rng, 20))
    oval(0, -0.25, 1.15, rng.uniform(0.85, 1.5), hair)
    for side in (-1, 1):
        oval(side, 0.05, 0.16, 0.2, shade(skin, 0.85))
    oval(0, 0, 1, 1, shade(skin, 0.9))
    oval(-0.08, -0.05, 0.88, 0.9, skin)
    oval(0, -0.85, 0.85, rng.uniform(0.2, 0.4), hair)
    look, open_by, iris = rng.uniform(-0.06, 0.06), rng.uniform(0.06, 0.13), colour(rng, 20, 150)
    apart, mood = rng.uniform(0.34, 0.46), rng.uniform(-0.25, 0.35)
    for side in (-1, 1):
        oval(side * apart, -0.15, 0.2, open_by, (245, 245, 245))
        oval(side * apart + look, -0.15, 0.09, min(0.09, open_by), iris)
        oval(side * apart, -0.38, 0.24, 0.04, shade(hair, 0.8))
    oval(0, 0.15, 0.1, 0.14, shade(skin, 0.8))
    mouth = (x - 0.4 * width, y + 0.35 * height, x + 0.4 * width, y + (0.6 + abs(mood)) * height)
    lips = (170, 60, 60) if rng.random() < 0.5 else shade(skin, 0.6)
    if mood > 0:
        draw.chord(mouth, 10, 170, fill=lips)
    else:
        draw.arc(mouth, 190, 350, fill=lips, width=3 * TIMES)
    blurred = image.filter(ImageFilter.GaussianBlur(TIMES * 0.4))
    return blurred.resize((SIDE, SIDE), Image.Resampling.BOX)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=5000)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    for number in range(asked.count):
        rng = np.random.default_rng(number)
        face(rng).save(asked.folder / f"{number:05d}.png")


if __name__ == "__main__":
    main()
