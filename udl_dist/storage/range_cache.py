"""A bounded cache of object ranges on disk, least recently used out first, shared by processes.

Each range is a file, named by the hash of (name, stamp, start, length), so another ETag is another
file. A file counts only if its length and XXH3 are right, and may be deleted at any time.
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
FILLED = 0.9  # of the bound is left after an eviction, or every new range would evict


class RangeCache:
    """A folder of at most `most_bytes`, in whole disk blocks; safe for threads and processes."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """Count the files, evict the excess; raise UsageError if the folder cannot be written."""
        self._folder, self._most = folder, most_bytes
        self.failed = ""  # why nothing more is written, if the disk refused
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                # After a kill the noted total is too high: the files are counted at each start.
                self._write_total(self._evict(0))
        except OSError as error:
            raise UsageError(
                f"cannot write to the cache {str(folder)!r} ({error.strerror}): name another"
            ) from None

    def get(self, name: str, stamp: str, start: int, length: int) -> bytes | None:
        """The range, if the cache has it; a damaged file is deleted."""
        path = self._path(name, stamp, start, length)
        with contextlib.suppress(OSError):  # never written, or evicted just now
            data = path.read_bytes()
            # Nothing here is synced: a power cut may leave a short file, a bad disk a wrong one.
            if len(data) == HEAD + length and data[:HEAD] == xxhash.xxh3_64_digest(data[HEAD:]):
                os.utime(path)  # now the most recently used
                return data[HEAD:]
            path.unlink()
        return None

    def put(self, name: str, stamp: str, start: int, data: bytes) -> None:
        """Write a range if it fits; after an error of the disk nothing more is written."""
        size = _on_disk(HEAD + len(data))
        # What can never fit must not drive all others out.
        if size > self._most or self.failed:
            return
        path = self._path(name, stamp, start, len(data))
        # Unique by process and thread: two may fetch the same range.
        part = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.part")
        try:
            with self._locked():
                # Read from a file, as a scan of the folder for each range would cost more than it
                # saves.
                total = self._total()
                if total + size > self._most:
                    total = self._evict(size)
                # Before the file, so that a kill in between leaves a total too high, never too low.
                self._write_total(total + size)
                part.parent.mkdir(exist_ok=True)
                part.write_bytes(xxhash.xxh3_64_digest(data) + data)
                part.replace(path)
        except OSError as error:
            self.failed = error.strerror or str(error)
            part.unlink(missing_ok=True)

    def _evict(self, coming: int) -> int:
        """Delete the oldest files if `coming` bytes do not fit; return the bytes of the rest."""
        # The oldest last, to be popped.
        files = sorted(self._files(), reverse=True)
        total = sum(size for _, size, _ in files)
        fits = total + coming <= self._most
        goal = total if fits else max(0, int(self._most * FILLED) - coming)
        while total > goal:
            _, size, path = files.pop()
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
        """Bytes on disk, as the last writer noted them: never fewer than there are."""
        try:
            return int((self._folder / "total").read_text())
        except (OSError, ValueError):
            # No total, or a torn one: count.
            return self._evict(0)

    def _write_total(self, total: int) -> None:
        (self._folder / "total").write_text(str(total))

    def _path(self, name: str, stamp: str, start: int, length: int) -> Path:
        hashed = xxhash.xxh3_128_hexdigest(f"{name}\0{stamp}\0{start}\0{length}".encode())
        # Over 256 folders, as one with very many files is slow on some file systems.
        return self._folder / hashed[:2] / hashed[2:]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / "lock").open("wb") as file:
            # flock belongs to this opening of the file, so threads exclude each other, too.
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _on_disk(size: int) -> int:
    return -(-size // DISK_BLOCK) * DISK_BLOCK
