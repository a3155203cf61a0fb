"""A checkpoint: a folder of safetensors, JSON and a manifest, complete or absent.

It is written under a temporary name, synced and renamed. Nothing is pickled and no pickle is read.
"""

from __future__ import annotations

import contextlib
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
TEMPORARY = ".writing-"  # a name that `complete` never lists
OVERHEAD_BYTES = 2**18  # headers, manifest, facts, and blocks that are not full

Files = Mapping[str, Mapping[str, Tensor]]


class NewerFormat(TrainingError):
    """A checkpoint of a later udl-dist: not damaged, so never skipped for an older one."""


def save(folder: Path, images: int, files: Files, facts: Mapping[str, Any]) -> Path:
    """Write the checkpoint of `images` below `folder`, in place of a damaged one of that number.

    `facts` are plain values for `state.json`. After an OSError nothing half-written remains.
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
            # safetensors refuses views that are not contiguous, such as channels-last weights.
            dense = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            save_file(dense, temporary / f"{name}.safetensors")
        (temporary / "state.json").write_text(json.dumps({"images": images, **facts}, indent=1))
        manifest = {
            path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted(temporary.iterdir())
        }
        text = json.dumps({"format": FORMAT, "files": manifest}, indent=1)
        (temporary / "manifest.json").write_text(text)
        _publish(temporary, target)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        shutil.rmtree(temporary, ignore_errors=True)
        raise error if isinstance(error, OSError) else OSError(str(error)) from error
    return target


def bytes_of(files: Files) -> int:
    """The size of a checkpoint of these tensors on a disk."""
    sizes = (value.nbytes for tensors in files.values() for value in tensors.values())
    return OVERHEAD_BYTES + sum(sizes)


def refuse_full(folder: Path, needed_bytes: int) -> None:
    """Raise OSError where fewer bytes are free: before a file is begun that cannot be ended."""
    free, needed = shutil.disk_usage(folder).free / 2**20, needed_bytes / 2**20
    if free < needed:
        why = f"No space left: {free:,.1f} MiB are free, {needed:,.1f} MiB are needed"
        raise OSError(errno.ENOSPC, why, str(folder))


def adopt(source: Path, folder: Path) -> Path:
    """Copy a checkpoint below another `folder`, in place of one of that number; whole or not."""
    verify(source)
    target, temporary = folder / source.name, folder / f"{TEMPORARY}{source.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    verify(temporary)  # the run that owns the source may have deleted it during the copy
    _publish(temporary, target)
    return target


def _publish(temporary: Path, target: Path) -> None:
    """Give a written folder its name, once its files are on the disk: a rename is atomic."""
    for path in (*temporary.iterdir(), temporary):
        sync(path)
    discard(target)  # a rename cannot replace a folder that has files
    temporary.rename(target)
    sync(target.parent)


def weights(checkpoint: Path) -> str:
    """The sha256 of the networks' weights, and of the averaged ones where there are any."""
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    names = ("networks.safetensors", "average.safetensors")
    return " ".join(files[name]["sha256"] for name in names if name in files)


def path_of(folder: Path, images: int) -> Path:
    """The folder of the checkpoint after `images`."""
    return folder / f"{images:012d}"


def load(
    checkpoint: Path, only: Collection[str] = ()
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors by file and name, and the facts; raise TrainingError for a damaged checkpoint.

    `only` names the files to load, of those that exist; empty: all.
    """
    verify(checkpoint)
    try:
        files = sorted(checkpoint.glob("*.safetensors"))
        loaded = {path.stem: load_file(path) for path in files if not only or path.stem in only}
        return loaded, facts(checkpoint)
    except (OSError, ValueError, SafetensorError) as error:  # deleted since it was verified
        raise TrainingError(f"{checkpoint} is damaged: {error}") from None


def contents(checkpoint: Path) -> dict[str, bytes]:
    """The files of a verified checkpoint by name, for rank 0 to send to the others."""
    paths = sorted(checkpoint.iterdir())
    return {path.name: path.read_bytes() for path in paths if path.name != "manifest.json"}


def parsed(files: Mapping[str, bytes]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors by file and name, and the facts, from what `contents` returned."""
    stored = {name: data for name, data in files.items() if name != "state.json"}
    tensors = {Path(name).stem: load_bytes(data) for name, data in stored.items()}
    return tensors, dict(json.loads(files["state.json"]))


def facts(checkpoint: Path) -> dict[str, Any]:
    """The plain values of a checkpoint: images seen, held-out metrics, the tracker's id."""
    return dict(json.loads((checkpoint / "state.json").read_text()))


def verify(checkpoint: Path) -> None:
    """Compare every file with the manifest; raise TrainingError naming the first that differs."""
    try:
        if checkpoint.is_symlink():
            raise TrainingError(f"{checkpoint} is a symbolic link, not a checkpoint")
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        _refuse_format(checkpoint, manifest["format"])  # first: another format has other files
        expected = dict(manifest["files"])
        if set(expected) | {"manifest.json"} != {path.name for path in checkpoint.iterdir()}:
            raise TrainingError(f"{checkpoint}: its files are not those of its manifest")
        for name, entry in expected.items():
            _verify_file(checkpoint / name, entry)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise TrainingError(f"{checkpoint} is damaged: {error}") from None


def _refuse_format(checkpoint: Path, written: object) -> None:
    """Raise NewerFormat for a later version's format, TrainingError for one that never existed."""
    if isinstance(written, int) and written > FORMAT:
        raise NewerFormat(
            f"{checkpoint} was written by a newer udl-dist: its format is {written}, this version"
            f" knows {FORMAT}: install that version, or move it away to go on from the one before"
        )
    if written != FORMAT:
        raise TrainingError(f"{checkpoint} is damaged: there is no format {written!r}")


def _verify_file(path: Path, entry: Mapping[str, Any]) -> None:
    # The size first: a truncated file of gigabytes need not be hashed.
    same_size = not path.is_symlink() and path.stat().st_size == entry["bytes"]
    if not same_size or _sha256(path) != entry["sha256"]:
        raise TrainingError(f"{path} is damaged: size or sha256 differs from the manifest")
    if path.suffix == ".safetensors":
        with safe_open(path, "pt"):  # refuses another format under that name, such as a pickle
            pass


def complete(folder: Path) -> list[Path]:
    """The checkpoints below `folder` by their names, oldest first; none is opened."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())


def newest(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint, or None; `say` gets a line for each damaged one."""
    if not (found := complete(folder)):
        return None
    for checkpoint in reversed(found):
        try:
            verify(checkpoint)
            return checkpoint
        except NewerFormat:
            raise  # to go back behind it, or to start again below, is the user's decision
        except TrainingError as error:
            say(f"passed over: {error}")
    raise TrainingError(
        f"all {len(found)} checkpoints in {folder} are damaged; nothing was deleted: restore whole"
        " ones, or --run.fresh true moves all of the run aside and starts again"
    )


def prune(folder: Path, keep: int, metric: str, images: int, sign: int = 1) -> None:
    """Delete all but the newest `keep` and the best by held-out `metric` ."""
    # Those after `images` were skipped as damaged: counted as the newest, they would displace the
    # last good ones.
    found = [path for path in complete(folder) if int(path.name) <= images]
    best = best_of(found, metric, sign)
    for path in found[:-keep]:
        if path != best:
            discard(path)


def best_of(found: Collection[Path], metric: str, sign: int = 1) -> Path | None:
    """The checkpoint whose held-out `metric` times `sign` is least; None if none has it."""
    scored = []
    for path in found:
        # Not an error: it was not validated, or it is damaged.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            scored.append((sign * float(facts(path)["figures"][metric]), path))
    return min(scored)[1] if scored else None


def sweep(folder: Path) -> None:
    """Remove the remains of interrupted writes and deletions."""
    for path in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint, renamed first: half of one must not look like a damaged checkpoint."""
    if checkpoint.exists():
        doomed = checkpoint.with_name(f"{TEMPORARY}doomed-{checkpoint.name}")
        checkpoint.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
