"""What the pages of runs and searches share: templates, pictures, metrics and settings in words."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from udl_dist import experiment
from udl_dist.errors import UdlError, UsageError
from udl_dist.evaluation.io import Metric, clean, in_words, pairs, shared_protocols

NAME = "report.html"
MOST_BYTES = 5_000_000
MOST_PICTURE_BYTES = 3_000_000  # of all pictures, as they stand in the page
WIDEST = 1000  # pixels
PLAIN_BYTES = 150_000  # beyond it a picture becomes WebP, whose loss is not visible
QUALITY = 80
MOST_ALARMS = 20


@dataclass(frozen=True)
class Reported:
    """Where the page is, and what is wrong with its run or search."""

    path: str
    total_bytes: int
    faults: list[str]

    def lines(self) -> list[str]:
        size = f"{self.total_bytes / 1e6:.2f} MB"
        return [f"{self.path}: {size}, open it in any browser", *map(clean, self.faults)]

    def as_dict(self) -> dict[str, Any]:
        return vars(self)


def _html(values: Mapping[str, Any], template: str) -> str:
    """The HTML of a page; every string in `values` is escaped but the plots, `svg`."""
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        # A value that a template misspells is an error here, not a gap in the page.
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: clean(value) if type(value) is str else value,  # Markup is ours
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The one script of the page: its hash in the content policy forbids every other, also one that
    # a name from data might smuggle in.
    script = _text("film.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = {
        "style": markupsafe.Markup(_text("style.css")),
        "script": markupsafe.Markup(script),
        "script_hash": f"sha256-{digest}",
    }
    panels = [{**panel, "svg": markupsafe.Markup(panel["svg"])} for panel in values["panels"]]
    return environment.get_template(template).render({**values, **own, "panels": panels})


def write_page(
    values: Mapping[str, Any], template: str, spare: str, fault: str, path: Path
) -> Reported:
    """Write a page, without its `spare` part and with one more fault if it would be too large.

    Raises UsageError if the disk refuses it.
    """
    text = _html(values, template)
    if len(text.encode()) > MOST_BYTES:
        values["faults"].append(fault)
        # Rendered again with the fault, so that the page itself says what is left out.
        text = _html({**values, spare: []}, template)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot write {str(path)!r} ({error.strerror}): name another place with --out"
        ) from None
    return Reported(str(path), len(text.encode()), list(values["faults"]))


def shared(metrics: Mapping[str, Metric]) -> list[str]:
    """What the protocols of all metrics have in common, then what those of several have."""
    return [pairs(one) for one in shared_protocols(each.protocol for each in metrics.values())]


def tables(
    method: str, settings: Mapping[str, Any]
) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """The settings by table: name, value, and whether it was changed."""
    try:
        # A method from another package may be missing here: then nothing counts as changed.
        defaults = {name: default for name, _, default, _ in experiment.describe(method)}
    except UdlError:
        defaults = {}
    found: dict[str, list[tuple[str, str, bool]]] = {}
    for name, value in settings.items():
        default = defaults.get(name, value)
        # TOML has lists where settings have tuples.
        plain = list(default) if isinstance(default, tuple) else default
        rows = found.setdefault(name.split(".")[0], [])
        rows.append((name, in_words(value), plain != value))
    return list(found.items())


def films(
    found: Mapping[str, Sequence[tuple[int, Path]]],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Each kind of picture with its frames, and what is wrong with those that are left out.

    Of too many frames every second, third … stays, counted from the last one.
    """
    films: list[dict[str, Any]] = []
    faults: list[str] = []
    for number, (kind, listed) in enumerate(found.items()):
        frames = []
        for images, path in listed:
            if data := _encoded(path, faults):
                said = f"after {images:,} images"
                frames.append({"data": data, "said": said, "alt": f"{kind} {said} of training"})
        # Each kind of picture gets the same share of the page.
        for step in range(1, len(frames) + 1):
            # From the end, because the last frame shows the result.
            some = frames[::-1][::step][::-1]
            if sum(len(frame["data"]) for frame in some) <= MOST_PICTURE_BYTES // len(found):
                films.append({"id": f"film-{number}", "name": kind, "frames": some})
                break
    return films, faults


def _encoded(path: Path, faults: list[str]) -> str:
    """A picture as a data URI, small enough for a page; "" and a fault if it cannot be read."""
    try:
        with Image.open(path, formats=("PNG",)) as opened:
            # Decoded here, within the try: PIL opens lazily.
            opened.load()
            picture: Image.Image = opened
            if picture.width > WIDEST:
                height = max(1, picture.height * WIDEST // picture.width)
                # BOX is the mean of the pixels: no ringing at the edges of a grid.
                picture = picture.resize((WIDEST, height), Image.Resampling.BOX)
            content, kind = io.BytesIO(), "png"
            # Written again in any case: it may be smaller, and holds no metadata.
            picture.save(content, "PNG", optimize=True)
            if content.tell() > PLAIN_BYTES:
                content, kind = io.BytesIO(), "webp"
                # WebP has no gray mode.
                picture.convert("RGB").save(content, "WEBP", quality=QUALITY)
    except Exception as error:  # a decoder raises anything on a damaged file
        why = " ".join(str(error).split())[:100]
        faults.append(f"picture {path.name} cannot be read ({why})")
        return ""
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def _text(name: str) -> str:
    return resources.files("udl_dist.reporting").joinpath(name).read_text(encoding="utf-8")
