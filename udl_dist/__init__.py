"""udl-dist: unsupervised deep learning on images, at scale. Importing it does nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from udl_dist.inference.model import Model

__version__ = "0.1.0"


def load(folder: Path | str, device: str = "cpu", checkpoint: str | int = "best") -> Model:
    """A trained model, from a run folder or an exported one: `.encode .decode .reconstruct .sample
    .score`.

    `checkpoint` is `best`, `last` or a number of images. See `udl_dist.inference.model.Model`.
    """
    from udl_dist.inference import model

    return model.load(folder, device, checkpoint)
