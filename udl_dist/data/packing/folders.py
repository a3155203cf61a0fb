"""A folder that appears complete or not at all: written under a hidden name beside its place, then
renamed.

What a killed process left behind is removed by the next one: each holds a lock on its folder, and
the system lets go of it when the process dies, however it dies.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from udl_dist.core import files
from udl_dist.core.files import sync
from udl_dist.errors import DataError, UsageError


@contextlib.contextmanager
def partial_folder(dest: Path) -> Iterator[Path]:
    """A new hidden folder beside `dest`, removed again unless `finish_folder` renamed it.

    Raises UsageError if `dest` has content or nothing can be written there, DataError if the disk
    is full.
    """
    try:
        if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
            raise UsageError(
                f"{str(dest)!r} exists and is not empty: name a new folder, or remove it"
            )
        dest.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(dest)
        folder, lock = _locked_folder(dest)
    except OSError as error:
        raise UsageError(
            f"cannot write to {str(dest.parent)!r} ({error.strerror}): name another folder"
        ) from None
    try:
        yield folder
    except OSError as error:
        raise DataError(
            f"cannot write {str(dest)!r} ({error.strerror}): make room, or name another folder"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def finish_folder(folder: Path, dest: Path) -> int:
    """Bring a folder to disk and to its name; give its size in bytes. An empty folder at `dest` is
    replaced.
    """
    total_bytes = 0
    for path in [*sorted(folder.rglob("*")), folder]:
        total_bytes += path.stat().st_size if path.is_file() else 0
        sync(path)
    folder.rename(dest)
    sync(dest.parent)
    return total_bytes


def remove_stale(dest: Path) -> None:
    """Remove hidden folders of packs to `dest` whose process is gone."""
    for folder in dest.parent.glob(f".{_escaped(dest.name)}.partial-*"):
        lock = files.lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _locked_folder(dest: Path) -> tuple[Path, int]:
    """Make a hidden folder and lock it; another one if a sweep of somebody else was quicker."""
    while True:
        folder = dest.with_name(f".{dest.name}.partial-{os.urandom(6).hex()}")
        folder.mkdir()
        lock = files.lock(folder)
        if lock is not None and folder.exists():
            return folder, lock


def _escaped(name: str) -> str:
    """A name in which glob finds nothing special."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
