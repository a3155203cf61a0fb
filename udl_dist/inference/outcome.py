"""The result of a verb: lines for people, values for machines; and the files that it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from udl_dist.errors import UsageError
from udl_dist.inference.model import Model

Progress = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True)
class Outcome:
    """Lines for people and values for machines; both name the model."""

    said: Sequence[str]
    values: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        return list(self.said)

    def as_dict(self) -> dict[str, Any]:
        return self.values


def outcome(model: Model, said: Sequence[str], **values: Any) -> Outcome:
    """An outcome that names the model and repeats the notes of opening it."""
    origin = model.origin
    facts = {
        "model": str(origin.folder),
        "method": origin.method,
        "images_trained": origin.images,
        "checkpoint": origin.chosen,
        "averaged": origin.averaged,
        "notes": list(origin.notes),
    }
    return Outcome([origin.line(), *origin.notes, *said], facts | values)


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG; raise UsageError if the disk refuses it."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, "PNG")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise UsageError, in one line, if the disk refuses what the block writes."""
    try:
        yield
    except OSError as error:
        # Pillow raises OSErrors of its own, without strerror.
        why = error.strerror or error
        raise UsageError(f"cannot write {str(path)!r} ({why}): name another place") from None


def new_folder(path: Path) -> Path:
    """An existing, empty folder; raise UsageError if it holds anything."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise UsageError(
                f"{str(path)!r} exists and is not empty: name a new folder, or remove it"
            )
    return path


def is_picture(out: Path) -> bool:
    """Whether `out` names one picture, not a folder; raise UsageError for another kind of file."""
    # Refused before anything is computed.
    if out.suffix and out.suffix.lower() != ".png":
        raise UsageError(
            f"{str(out)!r}: pictures are PNG: name a file that ends in .png, or a folder"
        )
    return bool(out.suffix)
