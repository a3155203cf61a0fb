"""The folder of an exported model, as a hub takes it: its files, and how they are verified.

    config.json            what the model is, and size and sha256 of every file below
    model.safetensors      the weights in use (averaged ones where the run keeps an average)
    prior.safetensors      a mixture over latents, if one was fitted
    crowd.safetensors      reference codes of training images, if `udl fit-outliers` stored them
    calibration.json       quantiles of scores and spread of latents over held-out images
    README.md              the card, for people
    *.onnx, *.pt2          the same networks for other programs; never read here

Nothing here is a pickle, and a folder that holds one is refused.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from udl_dist.data.images.headers import Shape
from udl_dist.errors import DataError, UsageError

FORMAT = 1
HUB_CLASS = "_class_name"  # the key by which a configuration is one of diffusers
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
PRIOR, PRIOR_FACTS = "prior.safetensors", "prior.json"
CALIBRATION, CODES = "calibration.json", "crowd.safetensors"
READ = (WEIGHTS, PRIOR, CALIBRATION, CODES)  # these are read, so their sha256 is verified
# Endings under which frameworks save pickles; .npz may hold arrays of objects, which are pickles.
PICKLES = (".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt", ".joblib", ".dill", ".npz")
# Both bound what a hostile folder can make us read or allocate.
LONGEST_CONFIG = 2**22  # bytes
LARGEST_SIDE = 4096
KEYS = {
    "method": str,
    "settings": dict,
    "shape": list,
    "fit": str,
    "images": int,
    "files": dict,
}


def is_model(folder: Path) -> bool:
    """Whether a folder is meant as an exported model."""
    # One of the two is enough: what is missing is then named by read_config.
    return (folder / CONFIG).is_file() or (folder / WEIGHTS).is_file()


def described(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file, as the configuration lists them."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": sha256}


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration, with its files verified; raise DataError that names what is wrong."""
    # A pickle runs code when it is loaded: it must not pass for the weights.
    if pickles := [path.name for path in folder.iterdir() if path.suffix.lower() in PICKLES]:
        raise DataError(
            f"{folder} holds {min(pickles)!r}, which may be a pickle and run code: a model is "
            "safetensors and JSON: take the file away"
        )
    path = folder / CONFIG
    config = parsed(path)
    if HUB_CLASS in config:
        raise UsageError(
            f"{folder} is a {config[HUB_CLASS]!r} of diffusers, which only train.init_from reads: "
            "name the run, or export it with --format udl"
        )
    written = config.get("format")
    # Before all else: the keys below may mean something else in a later format.
    if isinstance(written, int) and written > FORMAT:
        raise UsageError(
            f"{folder} was exported by a newer udl-dist: its format is {written}, this version "
            f"knows {FORMAT}: install that version"
        )
    # Types first, so that what follows can index without checks of its own.
    wrong = [name for name, kind in KEYS.items() if not isinstance(config.get(name), kind)]
    if written != FORMAT or wrong:
        listed = f"{', '.join(wrong)} missing or of the wrong type"
        named = listed if wrong else f"there is no format {written!r}"
        raise DataError(f"{path} is not the configuration of a model ({named}): export it again")
    # Otherwise its hash would not be checked below.
    if WEIGHTS not in config["files"]:
        raise DataError(f"{path} does not list {WEIGHTS}: export it again")
    for name, entry in config["files"].items():
        _verify(folder, name, entry)
    return config


def shape_of(config: dict[str, Any], folder: Path) -> Shape:
    """The shape of images (channels, height, width); raise DataError for an impossible one."""
    given = config["shape"]
    # type, not isinstance: True is an int.
    if len(given) == 3 and all(type(side) is int for side in given):
        channels, height, width = given
        if channels in (1, 3) and min(height, width) >= 1 and max(height, width) <= LARGEST_SIDE:
            return channels, height, width
    raise DataError(
        f"{folder / CONFIG}: {given!r} is not a valid shape of images (channels, height, width): "
        "export it again"
    )


def parsed(path: Path) -> dict[str, Any]:
    """A configuration as JSON, of any kind; raise DataError for a file that is none."""
    try:
        if (size := path.stat().st_size) > LONGEST_CONFIG:
            raise DataError(
                f"{path} has {size:,} bytes, {LONGEST_CONFIG:,} are the most: export again"
            )
        config = json.loads(path.read_bytes())
    # RecursionError: deeply nested brackets.
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or "not valid JSON"
        raise DataError(
            f"{path} cannot be read ({why}): restore the file, or export the model again"
        ) from None
    if not isinstance(config, dict):
        raise DataError(f"{path} is not a JSON object: export the model again")
    return config


def _verify(folder: Path, name: str, entry: Any) -> None:
    path = folder / name
    # A name with a separator could lead out of the folder.
    if Path(name).name != name:
        raise DataError(
            f"{folder / CONFIG} lists {name!r}, which is not a file of the folder: export the "
            "model again"
        )
    if not path.is_file():
        raise DataError(f"{path} is missing: restore the file, or export the model again")
    # A file that is never read here is not worth the time of its hash: an ONNX may have gigabytes.
    there = described(path) if name in READ else {"bytes": path.stat().st_size}
    if not isinstance(entry, dict) or any(entry.get(key) != value for key, value in there.items()):
        raise DataError(
            f"{path} is not what was exported (its size or sha256 differs): copy it again"
        )
