"""What a verb of use came to: figures, lines for people, and the pictures it wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from udl_dist.errors import UsageError
from udl_dist.inference.model import Model


@dataclass(frozen=True)
class Outcome:
    """Lines for people and figures for machines; both say which model was used."""

    said: Sequence[str]
    figures: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        return list(self.said)

    def as_dict(self) -> dict[str, Any]:
        return self.figures


def outcome(model: Model, said: Sequence[str], **figures: Any) -> Outcome:
    """An outcome that names the model and repeats what was passed over when it was opened."""
    origin = model.origin
    facts = {
        "model": str(origin.folder),
        "method": origin.method,
        "images_trained": origin.images,
        "checkpoint": origin.chosen,
        "averaged": origin.averaged,
        "notes": list(origin.notes),
    }
    return Outcome([origin.line(), *origin.notes, *said], facts | figures)


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG; raise UsageError where that cannot be."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, "PNG")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise UsageError, in one line, where the disk refuses what is written meanwhile."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write {str(path)!r} ({error.strerror or error}): name another place"
        ) from None


def new_folder(path: Path) -> Path:
    """A folder that is there and empty; raise UsageError if it holds anything."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise UsageError(
                f"{str(path)!r} exists and is not empty: name a new folder, or remove it"
            )
    return path


def is_picture(out: Path) -> bool:
    """Whether `out` names one picture rather than a folder of them; raise UsageError for another
    kind of file.
    """
    if out.suffix.lower() == ".png":
        return True
    if out.suffix:
        raise UsageError(
            f"{str(out)!r}: pictures are PNG: name a file that ends in .png, or a folder"
        )
    return False
