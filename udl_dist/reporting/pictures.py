"""Pictures of a run for a page: small enough to lie within it, thinned out evenly if they are too
many.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

MOST_BYTES = 3_000_000  # of all pictures, as they stand in the page
WIDEST = 1000  # pixels
PLAIN_BYTES = 150_000  # beyond it a picture is kept as WebP, which loses what nobody sees
QUALITY = 80


def films(
    found: Mapping[str, Sequence[tuple[int, Path]]],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Each kind of picture with its frames, and what is wrong with those that are left out."""
    made: list[dict[str, Any]] = []
    faults: list[str] = []
    for number, (kind, listed) in enumerate(found.items()):
        frames = _thinned(
            [frame for images, path in listed if (frame := _frame(kind, images, path, faults))],
            MOST_BYTES // len(found),
        )
        if frames:
            made.append({"id": f"film-{number}", "name": kind, "frames": frames})
    return made, faults


def _thinned(frames: list[dict[str, str]], most: int) -> list[dict[str, str]]:
    """As many as there is room for: every second, third …, counted from the last one."""
    for step in range(1, len(frames) + 1):
        kept = frames[::-1][::step][::-1]
        if sum(len(frame["data"]) for frame in kept) <= most:
            return kept
    return []


def _frame(kind: str, images: int, path: Path, faults: list[str]) -> dict[str, str] | None:
    try:
        with Image.open(path, formats=("PNG",)) as opened:
            opened.load()
            data = _encoded(opened)
    except Exception as error:  # a decoder fed with damage may raise anything
        faults.append(f"picture {path.name} cannot be read ({' '.join(str(error).split())[:100]})")
        return None
    said = f"after {images:,} images"
    return {"data": data, "said": said, "alt": f"{kind} {said} of training"}


def _encoded(picture: Image.Image) -> str:
    if picture.width > WIDEST:
        picture = picture.resize(
            (WIDEST, max(1, picture.height * WIDEST // picture.width)), Image.Resampling.BOX
        )
    kept = io.BytesIO()
    picture.save(kept, "PNG", optimize=True)
    kind = "png"
    if kept.tell() > PLAIN_BYTES:
        kept, kind = io.BytesIO(), "webp"
        picture.convert("RGB").save(kept, "WEBP", quality=QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(kept.getvalue()).decode()}"
