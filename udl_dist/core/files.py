"""Durable files and folders: complete or as they were, through kills and power cuts."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from udl_dist.errors import DataError, TrainingError, UsageError

# Errors of a disk, never of a network: full, over a quota or a size limit, read-only, broken.
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(folder: Path) -> int | None:
    """Lock a folder, without waiting, until the descriptor is closed or the process dies.

    None if another process holds the lock, or if the folder is gone.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        # Unlike a file with a process number it cannot outlive its process, even after kill -9.
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def write_whole(path: Path, text: str) -> None:
    """Replace a file: after a kill it has its new content or its old."""
    # In the same folder, as a rename is atomic within a file system only. Always the same name: the
    # next write replaces what a kill has left. So a file has one writer at a time.
    temporary = path.with_name(f".{path.name}.writing")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        # Before the rename, or a power cut could leave the new name without its content.
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)  # the rename itself lasts only once the folder is on disk


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that appears under its name once all of it is on disk, or not at all."""
    # Unique, because processes and threads may write the same file at once: the last rename counts.
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append one line; if that raises OSError, no part of the line stays in the file."""
    content = (line + "\n").encode()
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            # A disk that fills up takes a part of the line without an error.
            if (written := file.write(content)) < len(content):
                raise OSError(
                    errno.ENOSPC, f"No space left: {written} of {len(content)} bytes were written"
                )
        except OSError:
            with contextlib.suppress(OSError):
                # Or the next line would be glued to this part.
                file.truncate(before)
            raise


def append_lasting(path: Path, line: str) -> None:
    """Append one line that survives a power cut, and cut off a line that a kill has torn."""
    new = not path.exists()
    if not new:
        # Without a newline rfind gives -1, and nothing stays.
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    append_line(path, line)
    sync(path)
    if new:
        sync(path.parent)


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file, without a last one that a kill has torn; none if there is no file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return content[: content.rfind(b"\n") + 1].splitlines()


class Tail:
    """Follows a file that grows; a file that was replaced is read from its start."""

    def __init__(self, path: Path, from_end: bool = False) -> None:
        self._path = path
        self._inode, self._read = 0, 0
        if from_end and path.exists():
            status = path.stat()
            self._inode, self._read = status.st_ino, status.st_size

    def lines(self) -> list[bytes]:
        """The whole lines that have come since the last call."""
        try:
            with self._path.open("rb") as file:
                # A file that was rewound has been replaced by a rename: another inode. A size that
                # shrank would not tell, as it may have grown again since.
                if (inode := os.fstat(file.fileno()).st_ino) != self._inode:
                    self._inode, self._read = inode, 0
                file.seek(self._read)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        # Only whole lines count as read: the rest of a torn one is read with its end.
        self._read += len(whole)
        return whole.splitlines()


def append_new(path: Path, lines: list[str]) -> None:
    """Append the lines that are not in the file."""
    listed = set(path.read_text(encoding="utf-8").splitlines()) if path.exists() else set()
    if fresh := [line for line in lines if line not in listed]:
        append_line(path, "\n".join(fresh))


@contextlib.contextmanager
def errors_named(folder: Path) -> Iterator[None]:
    """Convert an error of the disk that holds a run's `folder` into a TrainingError of one line."""
    try:
        yield
    except OSError as error:
        # An error of a network or of our own code must not be blamed on the disk.
        if error.errno not in REFUSED:
            raise
        raise TrainingError(
            f"{error.filename or folder}: {error.strerror}: free space or repair the disk, then run"
            " again: it continues from its last checkpoint"
        ) from None


@contextlib.contextmanager
def partial_folder(dest: Path) -> Iterator[Path]:
    """A new hidden folder next to `dest`, removed at the end unless `finish_folder` renamed it.

    Raises UsageError if `dest` has content or cannot be written, DataError if the disk is full.
    """
    try:
        if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
            raise UsageError(
                f"{str(dest)!r} exists and is not empty: name a new folder, or remove it"
            )
        dest.parent.mkdir(parents=True, exist_ok=True)
        # What a killed process has left, as nothing else ever removes it.
        _remove_stale(dest)
        folder, handle = _locked_folder(dest)
    except OSError as error:
        raise UsageError(
            f"cannot write to {str(dest.parent)!r} ({error.strerror}): name another folder"
        ) from None
    try:
        yield folder
    except OSError as error:
        raise DataError(
            f"cannot write {str(dest)!r} ({error.strerror}): free space, or name another folder"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def finish_folder(folder: Path, dest: Path) -> int:
    """Sync a folder, rename it to `dest` (absent or empty) and return its size in bytes."""
    total_bytes = 0
    # Content before the name: after a power cut the folder is complete or absent.
    for path in [*sorted(folder.rglob("*")), folder]:
        total_bytes += path.stat().st_size if path.is_file() else 0
        sync(path)
    folder.rename(dest)
    sync(dest.parent)
    return total_bytes


def _remove_stale(dest: Path) -> None:
    """Remove hidden folders for `dest` whose process is gone: the system dropped its lock."""
    for folder in dest.parent.glob(f".{glob.escape(dest.name)}.partial-*"):
        if (handle := lock(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def _locked_folder(dest: Path) -> tuple[Path, int]:
    while True:
        folder = dest.with_name(f".{dest.name}.partial-{os.urandom(6).hex()}")
        folder.mkdir()
        # From here to the lock the folder looks stale to `_remove_stale` of another process.
        handle = lock(folder)
        # A lock on a folder that was removed in between is worth nothing.
        if handle is not None and folder.exists():
            return folder, handle


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file as they stand there."""
    try:
        # editors on Windows put a mark first
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(f"no such job file: {path}") from None
    except UnicodeDecodeError:
        raise UsageError(
            f"{path} is not a job file, which is UTF-8 text: images are given as --data.source"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read job file {path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is no TOML: {error}") from None
