"""Codes of training images in a file, so that a model can tell codes that lie outside of them;
safetensors alone.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from udl_dist.errors import DataError
from udl_dist.evaluation.outliers import Crowd

CURE = "delete it, then run udl fit-outliers again"


def as_bytes(crowd: Crowd, weights: str) -> bytes:
    """The file of the crowd of a checkpoint."""
    content: bytes = save(
        {name: value.contiguous() for name, value in vars(crowd).items()}, {"weights": weights}
    )
    return content


def load(path: Path, latent_dim: int) -> tuple[Crowd, str]:
    """A crowd and the checkpoint that it is of; raise DataError if it is damaged or of other
    latents.
    """
    try:
        with safe_open(path, "pt") as file:
            weights = str((file.metadata() or {}).get("weights", ""))
            crowd = Crowd(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, TypeError) as error:
        why = " ".join(str(error).split())
        raise DataError(f"{path} holds no codes ({why}): {CURE}") from None
    count = len(crowd.rows)
    if crowd.rows.shape != (count, latent_dim) or crowd.centre.shape != (latent_dim,):
        raise DataError(f"{path} holds codes of other latents than {latent_dim}: {CURE}")
    fits = crowd.reach.shape == crowd.density.shape == (count,) and crowd.neighbours.shape == ()
    if not fits or not 1 <= int(crowd.neighbours) < count:
        raise DataError(f"{path} makes no sense: {CURE}")
    if not all(bool(value.isfinite().all()) for value in vars(crowd).values()):
        raise DataError(f"{path} holds numbers that are not finite: {CURE}")
    return crowd, weights
