"""A checkpoint is a folder of safetensors and JSON, complete or absent: temporary name, fsync,
manifest, rename.

Nothing is pickled and no pickle is read. The newest complete one is found by looking; a damaged one
is passed over.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file, save_file
from torch import Tensor

from udl_dist.core.faults import fault_point
from udl_dist.core.files import sync
from udl_dist.errors import TrainingError

FORMAT = 1
TEMPORARY = ".writing-"
BESIDE_BYTES = 2**18  # headers, manifest, facts, and blocks that are not full

Files = Mapping[str, Mapping[str, Tensor]]


class NewerFormat(TrainingError):
    """A checkpoint that a later udl-dist wrote: not damaged, so never passed over for an older
    one.
    """


def save(folder: Path, images: int, files: Files, facts: Mapping[str, Any]) -> Path:
    """Write the checkpoint of `images` below `folder`; raise OSError with nothing half-done left
    behind.

    `facts` are plain values kept in `state.json`. One of the same images that was passed over gives
    way.
    """
    target = path_of(folder, images)
    if not folder.exists():
        folder.mkdir(parents=True)
        sync(folder.parent)
    refuse_full(folder, bytes_of(files))
    temporary = folder / f"{TEMPORARY}{images:012d}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        fault_point("save", folder=folder.parent)
        temporary.mkdir()
        for name, tensors in files.items():
            save_file(
                {key: value.detach().cpu().contiguous() for key, value in tensors.items()},
                temporary / f"{name}.safetensors",
            )
        (temporary / "state.json").write_text(json.dumps({"images": images, **facts}, indent=1))
        manifest = {
            path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted(temporary.iterdir())
        }
        (temporary / "manifest.json").write_text(
            json.dumps({"format": FORMAT, "files": manifest}, indent=1)
        )
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        discard(target)
        temporary.rename(target)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        shutil.rmtree(temporary, ignore_errors=True)
        raise error if isinstance(error, OSError) else OSError(str(error)) from error
    sync(folder)
    return target


def bytes_of(files: Files) -> int:
    """What a checkpoint of these tensors takes on a disk."""
    return BESIDE_BYTES + sum(
        value.nbytes for tensors in files.values() for value in tensors.values()
    )


def refuse_full(folder: Path, needed_bytes: int) -> None:
    """Raise OSError where fewer bytes are free: before a file is begun that cannot be ended."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        why = (
            f"No space left: {free / 2**20:,.1f} MiB are free, {needed_bytes / 2**20:,.1f} MiB are"
            " needed"
        )
        raise OSError(errno.ENOSPC, why, str(folder))


def adopt(source: Path, folder: Path) -> Path:
    """Put a copy of a checkpoint below another `folder`, in place of one of the same images; whole
    or not at all.
    """
    verify(source)
    target, temporary = folder / source.name, folder / f"{TEMPORARY}{source.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    for path in (*temporary.iterdir(), temporary):
        sync(path)
    verify(temporary)
    discard(target)
    temporary.rename(target)
    sync(folder)
    return target


def weights(checkpoint: Path) -> str:
    """The sha256 of the weights that are used: those of the networks, and of the average where
    there is one.
    """
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    return " ".join(
        files[f"{name}.safetensors"]["sha256"]
        for name in ("networks", "average")
        if f"{name}.safetensors" in files
    )


def path_of(folder: Path, images: int) -> Path:
    """Where the checkpoint after `images` lies."""
    return folder / f"{images:012d}"


def load(
    checkpoint: Path, only: Collection[str] = ()
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors by file and name, and the facts; raise TrainingError if anything is not as the
    manifest says.

    `only` names the files that are wanted, those of them that are there; empty: all.
    """
    verify(checkpoint)
    try:
        files = [
            path
            for path in sorted(checkpoint.glob("*.safetensors"))
            if not only or path.stem in only
        ]
        return {path.stem: load_file(path) for path in files}, facts(checkpoint)
    except (OSError, ValueError, SafetensorError) as error:
        # cut short or taken away since it was verified
        raise TrainingError(f"{checkpoint} is damaged: {error}") from None


def contents(checkpoint: Path) -> dict[str, bytes]:
    """The files of a verified checkpoint by name, for ranks that need not read them again."""
    return {
        path.name: path.read_bytes()
        for path in sorted(checkpoint.iterdir())
        if path.name != "manifest.json"
    }


def parsed(files: Mapping[str, bytes]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors by file and name, and the facts, of what `contents` gave."""
    named = {
        name.removesuffix(".safetensors"): load_bytes(files[name])
        for name in files
        if name != "state.json"
    }
    return named, dict(json.loads(files["state.json"]))


def facts(checkpoint: Path) -> dict[str, Any]:
    """The plain values of a checkpoint: images seen, held-out figures, the tracker's id."""
    return dict(json.loads((checkpoint / "state.json").read_text()))


def verify(checkpoint: Path) -> None:
    """Hold every file against the manifest; raise TrainingError that names the first one that
    differs.
    """
    try:
        if checkpoint.is_symlink():
            raise TrainingError(f"{checkpoint} is a symbolic link, not a checkpoint")
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        _refuse_format(checkpoint, manifest["format"])
        expected = dict(manifest["files"])
        if set(expected) | {"manifest.json"} != {path.name for path in checkpoint.iterdir()}:
            raise TrainingError(f"{checkpoint}: its files are not those of its manifest")
        for name, entry in expected.items():
            _verify_file(checkpoint / name, entry)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise TrainingError(f"{checkpoint} is damaged: {error}") from None


def _refuse_format(checkpoint: Path, written: object) -> None:
    """Raise NewerFormat for one of a later version, TrainingError for what no version has
    written.
    """
    if isinstance(written, int) and written > FORMAT:
        raise NewerFormat(
            f"{checkpoint} was written by a newer udl-dist: its format is {written}, this version"
            f" knows {FORMAT}: install that version, or move it away to go on from the one before"
        )
    if written != FORMAT:
        raise TrainingError(f"{checkpoint} is damaged: there is no format {written!r}")


def _verify_file(path: Path, entry: Mapping[str, Any]) -> None:
    if (
        path.is_symlink()
        or path.stat().st_size != entry["bytes"]
        or _sha256(path) != entry["sha256"]
    ):
        raise TrainingError(f"{path} is damaged: size or sha256 differs from the manifest")
    if path.suffix == ".safetensors":
        with safe_open(path, "pt"):  # something else (a pickle) under that name ends here, unread
            pass


def complete(folder: Path) -> list[Path]:
    """The checkpoints below `folder`, oldest first, without looking into them."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())


def newest(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole; `say` one line for each that is passed over.

    Raise TrainingError if there are checkpoints and none is whole: starting again is the user's to
    decide. So is going back behind one of a newer udl-dist (NewerFormat).
    """
    found = complete(folder)
    for checkpoint in reversed(found):
        try:
            verify(checkpoint)
            return checkpoint
        except NewerFormat:
            raise
        except TrainingError as error:
            say(f"passed over: {error}")
    if found:
        raise TrainingError(
            f"all {len(found)} checkpoints in {folder} are damaged; nothing was deleted: give back "
            "whole ones, or --run.fresh true puts all of the run aside and starts again"
        )
    return None


def prune(folder: Path, keep: int, metric: str, images: int) -> None:
    """Delete all but the newest `keep` up to `images` and the best one by held-out `metric` (least
    is best).

    Later ones were passed over as damaged: counted as the newest, they would drive the last good
    ones out.
    """
    found = [path for path in complete(folder) if int(path.name) <= images]
    kept = set(found[-keep:])
    if (best := best_of(found, metric)) is not None:
        kept.add(best)
    for path in found:
        if path not in kept:
            discard(path)


def best_of(found: Collection[Path], metric: str) -> Path | None:
    """The checkpoint whose held-out `metric` is least; None if none has it."""
    scored = [(figure, path) for path in found if (figure := _figure(path, metric)) is not None]
    return min(scored)[1] if scored else None


def sweep(folder: Path) -> None:
    """Remove what interrupted writings and deletions left."""
    for path in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def _figure(checkpoint: Path, metric: str) -> float | None:
    """A held-out figure of a checkpoint; None if there is none, or if it cannot be read."""
    try:
        figure = facts(checkpoint)["figures"][metric]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(figure) if isinstance(figure, int | float) else None


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint, renamed first: a deletion that is cut short must not look like one."""
    if checkpoint.exists():
        doomed = checkpoint.with_name(f"{TEMPORARY}doomed-{checkpoint.name}")
        checkpoint.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
