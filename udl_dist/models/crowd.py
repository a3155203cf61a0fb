"""Codes of training images in a file, so that a model can tell codes that lie outside of them; safetensors alone."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from udl_dist.errors import DataError
from udl_dist.evaluation.oddness import Crowd


def save(crowd: Crowd, path: Path, weights: str) -> None:
    """Keep the crowd of a checkpoint."""
    save_file({name: value.contiguous() for name, value in vars(crowd).items()}, path, {"weights": weights})


def load(path: Path, latent_dim: int) -> tuple[Crowd, str]:
    """A crowd and the checkpoint that it is of; raise DataError if it is damaged or of other latents."""
    try:
        with safe_open(path, "pt") as file:
            weights = str((file.metadata() or {}).get("weights", ""))
            crowd = Crowd(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, TypeError) as error:
        why = " ".join(str(error).split())
        raise DataError(f"{path} holds no codes ({why}): run udl fit-outliers again") from None
    count = len(crowd.rows)
    if crowd.rows.shape != (count, latent_dim) or crowd.centre.shape != (latent_dim,):
        raise DataError(f"{path} holds codes of other latents than {latent_dim}: run udl fit-outliers again")
    fits = crowd.reach.shape == crowd.density.shape == (count,) and crowd.neighbours.shape == ()
    if not fits or not 1 <= int(crowd.neighbours) < count:
        raise DataError(f"{path} makes no sense: run udl fit-outliers again")
    if not all(bool(value.isfinite().all()) for value in vars(crowd).values()):
        raise DataError(f"{path} holds numbers that are not finite: run udl fit-outliers again")
    return crowd, weights
