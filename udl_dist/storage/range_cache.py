"""Ranges of objects on disk: bounded, least recently used out first, shared by any number of
processes.

A range is a file of its own, found by the hash of (name, stamp, start, length): another ETag is
another file. A file is believed only if its length and its XXH3 are right. Anybody may delete these
files at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import xxhash

from udl_dist.errors import UsageError

HEAD = 8  # bytes of XXH3-64 before the content
DISK_BLOCK = 4096  # bytes: a file takes whole ones
FILLED = 0.9  # of the bound is left after an eviction, so that not every range evicts


class RangeCache:
    """A folder that never holds more than `most_bytes`, in whole disk blocks; safe for threads and
    processes.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """Count what is there and evict what is too much; raise UsageError if the folder cannot be
        written.
        """
        self._folder, self._most = folder, most_bytes
        self.failed = ""  # why nothing more is written, if the disk refused
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._write_total(self._evict(0))
        except OSError as error:
            raise UsageError(
                f"cannot write to the cache {str(folder)!r} ({error.strerror}): name another"
            ) from None

    def get(self, name: str, stamp: str, start: int, length: int) -> bytes | None:
        """The range, if it is there and whole; a damaged file is dropped."""
        path = self._path(name, stamp, start, length)
        with contextlib.suppress(OSError):  # never written, or evicted just now
            data = path.read_bytes()
            if len(data) == HEAD + length and data[:HEAD] == xxhash.xxh3_64_digest(data[HEAD:]):
                os.utime(path)  # now the most recently used
                return data[HEAD:]
            path.unlink()
        return None

    def put(self, name: str, stamp: str, start: int, data: bytes) -> None:
        """Write a range if it fits; a disk that refuses ends the writing, not the reading."""
        size = _on_disk(HEAD + len(data))
        if size > self._most or self.failed:
            return
        path = self._path(name, stamp, start, len(data))
        part = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.part")
        try:
            with self._locked():
                total = self._total()
                if total + size > self._most:
                    total = self._evict(size)
                # Before the file: a kill in between leaves a total that is too high, never too low.
                self._write_total(total + size)
                part.parent.mkdir(exist_ok=True)
                part.write_bytes(xxhash.xxh3_64_digest(data) + data)
                part.replace(path)
        except OSError as error:
            self.failed = error.strerror or str(error)
            part.unlink(missing_ok=True)

    def _evict(self, coming: int) -> int:
        """Count the files; remove the least recently used if `coming` bytes do not fit. Return the
        bytes that stay.
        """
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        if total + coming > self._most:
            goal = max(0, int(self._most * FILLED) - coming)
            for _, size, path in files:
                if total <= goal:
                    break
                Path(path).unlink(missing_ok=True)
                total -= size
        return total

    def _files(self) -> Iterator[tuple[int, int, str]]:
        """When each file was last used, its bytes on disk and its path."""
        for folder in os.scandir(self._folder):
            if folder.is_dir(follow_symlinks=False):
                for entry in os.scandir(folder):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        yield status.st_mtime_ns, _on_disk(status.st_size), entry.path

    def _total(self) -> int:
        """Bytes on disk as the last process to write or evict noted them: never less than there
        are.
        """
        try:
            return int((self._folder / "total").read_text())
        except (OSError, ValueError):
            return self._evict(0)

    def _write_total(self, total: int) -> None:
        (self._folder / "total").write_text(str(total))

    def _path(self, name: str, stamp: str, start: int, length: int) -> Path:
        hashed = xxhash.xxh3_128_hexdigest(f"{name}\0{stamp}\0{start}\0{length}".encode())
        return self._folder / hashed[:2] / hashed[2:]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / "lock").open("wb") as file:
            # The lock belongs to this opening of the file, so threads exclude each other too.
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _on_disk(size: int) -> int:
    return -(-size // DISK_BLOCK) * DISK_BLOCK
