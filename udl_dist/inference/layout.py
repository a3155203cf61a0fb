"""The folder of an exported model, as a hub takes it: which files it has, and what of it is
believed.

    config.json            what the model is, and size and sha256 of every file below
    model.safetensors      the weights in use (averaged ones where the run keeps an average)
    prior.safetensors      a mixture over latents, if one was fitted
    crowd.safetensors      codes of training images, if they were kept to tell what lies outside of
    them
    calibration.json       how held-out images look to the model: quantiles of scores, spread of
    latents
    README.md              the card, for people
    *.onnx, *.pt2          the same networks for other programs; never read here

Nothing here is a pickle, and a folder that holds one is refused. Knows no network.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from udl_dist.errors import DataError, UsageError

FORMAT = 1
CONFIG, WEIGHTS, PRIOR, CARD = "config.json", "model.safetensors", "prior.safetensors", "README.md"
CALIBRATION, CROWD = "calibration.json", "crowd.safetensors"
READ = (WEIGHTS, PRIOR, CALIBRATION, CROWD)  # here, and so held against their sha256
PICKLES = (".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt", ".joblib", ".dill", ".npz")
LONGEST_CONFIG = 2**22  # bytes
KEYS = {"method": str, "settings": dict, "shape": list, "fit": str, "images": int, "files": dict}


def is_model(folder: Path) -> bool:
    """Whether a folder means to be an exported model."""
    return (folder / CONFIG).is_file() or (folder / WEIGHTS).is_file()


def described(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file, as they are kept in the configuration."""
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a model folder, its files held against it; raise DataError that names
    what is wrong.
    """
    _refuse_pickles(folder)
    config = _read(folder / CONFIG)
    written = config.get("format")
    if isinstance(written, int) and written > FORMAT:
        raise UsageError(
            f"{folder} was exported by a newer udl-dist: its format is {written}, this version"
            f" knows {FORMAT}: install that version"
        )
    wrong = [name for name, kind in KEYS.items() if not isinstance(config.get(name), kind)]
    if written != FORMAT or wrong:
        named = (
            f"{', '.join(wrong)} missing or of the wrong type"
            if wrong
            else f"there is no format {written!r}"
        )
        raise DataError(f"{folder / CONFIG} describes no model ({named}): export it again")
    if WEIGHTS not in config["files"]:
        raise DataError(f"{folder / CONFIG} names no {WEIGHTS}: export it again")
    for name, entry in config["files"].items():
        _verify(folder, name, entry, content=name in READ)
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LONGEST_CONFIG:
            raise DataError(
                f"{path} has {path.stat().st_size:,} bytes, {LONGEST_CONFIG:,} are the most: export"
                " again"
            )
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or "no JSON"
        raise DataError(
            f"{path} cannot be read ({why}): give back the file, or export the model again"
        ) from None
    if not isinstance(config, dict):
        raise DataError(f"{path} holds no table: export the model again")
    return config


def _verify(folder: Path, name: str, entry: Any, content: bool) -> None:
    path = folder / name
    if Path(name).name != name:
        raise DataError(
            f"{folder / CONFIG} names {name!r}, which is no file beside it: export the model again"
        )
    if not path.is_file():
        raise DataError(f"{path} is missing: give back the file, or export the model again")
    there = described(path) if content else {"bytes": path.stat().st_size}
    if not isinstance(entry, dict) or any(entry.get(key) != value for key, value in there.items()):
        raise DataError(
            f"{path} is not what was exported (its size or sha256 differs): copy it again"
        )


def _refuse_pickles(folder: Path) -> None:
    """A pickle runs code when somebody loads it: nobody should find one beside a model and take it
    for the weights.
    """
    if found := sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICKLES):
        raise DataError(
            f"{folder} holds {found[0]!r}, which may be a pickle and run code: a model is"
            " safetensors and JSON: take the file away"
        )
