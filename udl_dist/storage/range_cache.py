"""Ranges of objects kept on disk: bounded, least recently used out first, shared by any number of
processes.

A range is a file of its own, found by the hash of (name, stamp, start, length): another ETag is
another file. A file is believed only if its length and its XXH3 are right. What is kept can be
deleted at any time, by anybody.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import xxhash

from udl_dist.errors import UsageError

HEAD = 8  # bytes of XXH3-64 before the content
DISK_BLOCK = 4096  # bytes: a file takes whole ones
FILLED = 0.9  # of the bound is left after an eviction, so that not every range evicts
LOCK_SECONDS = 1.0  # a cache that is busy for longer is passed by


class _Kept(NamedTuple):
    used: int  # nanoseconds
    size: int  # bytes on disk
    path: str


class RangeCache:
    """A folder that never holds more than `most_bytes`, in whole disk blocks; safe for threads and
    processes.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """Count what is there and evict what is too much; raise UsageError if the folder cannot be
        written.
        """
        self._folder, self._most = folder, most_bytes
        self._thread_lock = threading.Lock()
        self.failed = ""  # why nothing is kept any more, if the disk refused
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._locked(patience=60.0) as locked:
                if locked:
                    self._evict(0)
        except OSError as error:
            raise UsageError(
                f"cannot write to the cache {str(folder)!r} ({error.strerror}): name another"
            ) from None

    def get(self, name: str, stamp: str, start: int, length: int) -> bytes | None:
        """The range, if it is kept and whole; a damaged file is dropped."""
        path = self._path(name, stamp, start, length)
        try:
            data = path.read_bytes()
            if len(data) == HEAD + length and data[:HEAD] == xxhash.xxh3_64_digest(data[HEAD:]):
                os.utime(path)  # now the most recently used
                return data[HEAD:]
            path.unlink()
        except OSError:  # not kept, or evicted just now
            pass
        return None

    def put(self, name: str, stamp: str, start: int, data: bytes) -> None:
        """Keep a range if it fits; a disk that refuses ends the keeping, not the reading."""
        size = _on_disk(HEAD + len(data))
        if size > self._most or self.failed:
            return
        path = self._path(name, stamp, start, len(data))
        part = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.part")
        try:
            if self._reserve(part, size):
                part.write_bytes(xxhash.xxh3_64_digest(data) + data)
                part.replace(path)
        except FileNotFoundError:  # evicted before it was whole
            pass
        except OSError as error:
            self.failed = error.strerror or str(error)
            part.unlink(missing_ok=True)

    def _reserve(self, part: Path, size: int) -> bool:
        """Make room, and a file of the full size in it, so that other processes count it before it
        is written.
        """
        with self._locked(LOCK_SECONDS) as locked:
            if not locked:
                return False
            total = self._total()
            if total is None or total + size > self._most:
                total = self._evict(size)
            self._write_total(total + size)
            part.parent.mkdir(exist_ok=True)
            with part.open("wb") as file:
                file.truncate(size)
        return True

    def _evict(self, coming: int) -> int:
        """Count anew; if what is coming does not fit, remove the least recently used. Return the
        bytes that stay.
        """
        kept = sorted(self._kept())
        total = sum(each.size for each in kept)
        if total + coming > self._most:
            goal = max(0, int(self._most * FILLED) - coming)
            for each in kept:
                if total <= goal:
                    break
                Path(each.path).unlink(missing_ok=True)
                total -= each.size
        self._write_total(total)
        return total

    def _kept(self) -> Iterator[_Kept]:
        for folder in os.scandir(self._folder):
            if folder.is_dir(follow_symlinks=False):
                for entry in os.scandir(folder):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        yield _Kept(status.st_mtime_ns, _on_disk(status.st_size), entry.path)

    def _total(self) -> int | None:
        """Bytes kept, as the last process that kept or evicted wrote it: never less than there
        are.
        """
        try:
            return int((self._folder / "total").read_text())
        except (OSError, ValueError):
            return None

    def _write_total(self, total: int) -> None:
        (self._folder / "total").write_text(str(total))

    def _path(self, name: str, stamp: str, start: int, length: int) -> Path:
        hashed = xxhash.xxh3_128_hexdigest(f"{name}\0{stamp}\0{start}\0{length}".encode())
        return self._folder / hashed[:2] / hashed[2:]

    @contextlib.contextmanager
    def _locked(self, patience: float) -> Iterator[bool]:
        """Hold the lock of the folder; False if somebody else keeps it for longer than `patience`
        seconds.
        """
        until = time.monotonic() + patience
        if not self._thread_lock.acquire(timeout=patience):
            yield False
            return
        try:
            with (self._folder / "lock").open("wb") as file:
                while not (held := _try_lock(file.fileno())) and time.monotonic() < until:
                    time.sleep(0.002)
                yield held
        finally:
            self._thread_lock.release()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _on_disk(size: int) -> int:
    return -(-size // DISK_BLOCK) * DISK_BLOCK
