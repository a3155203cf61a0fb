"""Files that last: whole or as they were, through kills and power cuts; what a disk refuses, by name. Knows no run."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from udl_dist.errors import TrainingError

REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # what a disk says, and a network does not


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, last a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or as it was before."""
    temporary = path.with_name(f".{path.name}.writing")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def append_line(path: Path, line: str) -> None:
    """Append one line; raise OSError with nothing of it left, so that the next one is not glued to its rest."""
    content = (line + "\n").encode()
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            if (written := file.write(content)) < len(content):
                raise OSError(errno.ENOSPC, f"No space left: {written} of {len(content)} bytes of a line were taken")
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(before)
            raise


def append_new(path: Path, lines: list[str]) -> None:
    """Append the lines that are not in the file."""
    listed = set(path.read_text(encoding="utf-8").splitlines()) if path.exists() else set()
    if fresh := [line for line in lines if line not in listed]:
        append_line(path, "\n".join(fresh))


@contextlib.contextmanager
def errors_named(folder: Path) -> Iterator[None]:
    """Raise TrainingError, in one line, where the disk of a run's `folder` refuses what is done meanwhile."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        raise TrainingError(f"{error.filename or folder}: {error.strerror}: free space or mend the disk, then run "
                            "again: it goes on from its last checkpoint") from None  # fmt: skip
