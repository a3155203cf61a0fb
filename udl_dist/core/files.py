"""Files that last: whole or as they were, through kills and power cuts; what a disk refuses, by
name. Knows no run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from udl_dist.errors import TrainingError

# what a disk says, and a network does not
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, last a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(folder: Path) -> int | None:
    """Hold a folder, without waiting, until the descriptor is closed or the process dies; None if
    somebody holds it, or if it is gone.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or as it was before."""
    temporary = path.with_name(f".{path.name}.writing")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that appears under its name once all of it is on disk, or not at all."""
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
    """Append one line; raise OSError with nothing of it left, so that the next one is not glued to
    its rest.
    """
    content = (line + "\n").encode()
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            if (written := file.write(content)) < len(content):
                raise OSError(
                    errno.ENOSPC,
                    f"No space left: {written} of {len(content)} bytes of a line were taken",
                )
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(before)
            raise


def append_lasting(path: Path, line: str) -> None:
    """Append one line that lasts a power cut; what a kill left of a line before it is cut off."""
    new = not path.exists()
    if not new:
        _cut_torn(path)
    append_line(path, line)
    sync(path)
    if new:
        sync(path.parent)


def _cut_torn(path: Path) -> None:
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if end and file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file, but for a last one that a kill has torn; none if there is no file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return content[: content.rfind(b"\n") + 1].splitlines()


class Tail:
    """Follows a file that grows; one that was written anew is read from its start."""

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
                if (inode := os.fstat(file.fileno()).st_ino) != self._inode:
                    self._inode, self._read = inode, 0
                file.seek(self._read)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        return whole.splitlines()


def append_new(path: Path, lines: list[str]) -> None:
    """Append the lines that are not in the file."""
    listed = set(path.read_text(encoding="utf-8").splitlines()) if path.exists() else set()
    if fresh := [line for line in lines if line not in listed]:
        append_line(path, "\n".join(fresh))


@contextlib.contextmanager
def errors_named(folder: Path) -> Iterator[None]:
    """Raise TrainingError, in one line, where the disk of a run's `folder` refuses what is done
    meanwhile.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        raise TrainingError(
            f"{error.filename or folder}: {error.strerror}: free space or mend the disk, then run "
            "again: it goes on from its last checkpoint"
        ) from None
