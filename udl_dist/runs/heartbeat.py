"""A rank's pulse: a small file in the run folder that tells who the rank is, how far it came and
that it lives.

It is mapped into memory, so a beat costs a store and outlives a kill -9; it is laid out once, so a
full disk does not stop it. Whoever waits for a rank can end its process here, if it is on the same
machine. Knows no torch and no Ray.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import mmap
import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from udl_dist.runs.run_folder import RunFolder

BYTES, STATIC = 1024, 256  # of the file, and of its first line, which says who the rank is


@dataclass(frozen=True)
class Life:
    """What a pulse tells: `place` is where the rank was, `hung` where it stood if its watchdog gave
    it up.
    """

    rank: int
    process: int
    started: str  # tells a process from a later one of the same number
    machine: str
    stacks_from: int  # bytes of the rank's file of stacks that are of earlier processes
    images: int
    place: str
    hung: str

    @property
    def here(self) -> bool:
        """Whether the process lives on this machine."""
        return self.machine == machine() and started(self.process) == self.started

    def state(self) -> str:
        """What the system says of the process, such as `T (stopped)`."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.process}/status").read_text().splitlines():
                if line.startswith("State:"):
                    return line.split(None, 1)[1]
        return "gone"

    def kill(self) -> None:
        """End the process at once, if it is on this machine."""
        if self.here:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process, signal.SIGKILL)


class Pulse:
    """The writing end, one a rank."""

    def __init__(self, folder: RunFolder, rank: int, stacks_from: int = 0) -> None:
        self._path = _path(folder, rank)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        who = {
            "rank": rank,
            "process": os.getpid(),
            "started": started(os.getpid()),
            "machine": machine(),
            "stacks_from": stacks_from,
        }
        fresh = self._path.with_name(f".{self._path.name}")
        fresh.write_bytes((json.dumps(who).ljust(STATIC - 1) + "\n").encode().ljust(BYTES))
        # a pulse is there whole; one of an earlier process stays with whoever maps it
        fresh.replace(self._path)
        self._file = self._path.open("r+b")
        self._map = mmap.mmap(self._file.fileno(), BYTES)
        self._images, self._place = 0, "start"

    def beat(self, images: int, place: str, hung: str = "") -> None:
        """Say how far the rank is; costs microseconds."""
        self._images, self._place = images, place
        self._map[STATIC:] = f"{images}\n{place}\n{hung}".encode()[: BYTES - STATIC].ljust(
            BYTES - STATIC
        )

    def hang(self, where: str) -> None:
        """Say that the rank stands still at `where`."""
        self.beat(self._images, self._place, where)

    def live(self) -> bool:
        """Show that the process lives; say whether that could be shown."""
        try:
            self._map.flush()
            os.utime(self._file.fileno())
        except OSError:
            return False
        return True

    def close(self, keep: bool = False) -> None:
        self._map.close()
        self._file.close()
        if not keep:
            with contextlib.suppress(OSError):
                self._path.unlink()


class Others:
    """The reading end: which ranks of this machine have shown no life for how long, by this
    process's own clock.

    Those of other machines cannot be ended from here, and 512 ranks that look at 512 files are a
    load on a shared disk.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._seen: dict[str, tuple[tuple[int, int], float]] = {}

    def silent(self, seconds: float) -> list[Life]:
        """The living processes on this machine whose pulse has not moved for `seconds`."""
        found, now = [], time.monotonic()
        for path in _paths(self._folder, _machine_name()):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            mark, since = self._seen.get(path.name, ((0, 0), now))
            if mark != (stat.st_ino, stat.st_mtime_ns):
                mark, since = (stat.st_ino, stat.st_mtime_ns), now
            self._seen[path.name] = mark, since
            if now - since > seconds and (life := _read(path)) and life.here:
                found.append(life)
        return found


def lives(folder: RunFolder) -> dict[int, Life]:
    """Every pulse in the run folder by rank, of processes that live and of those that died."""
    found = (_read(path) for path in _paths(folder))
    return {life.rank: life for life in found if life}


def clear(folder: RunFolder) -> None:
    """End what is left on this machine of the ranks of a launcher that is gone, and forget all
    pulses.

    To be called by whoever holds the run folder, before it starts ranks.
    """
    for life in lives(folder).values():
        life.kill()
        while life.here and not life.state().startswith("Z"):
            time.sleep(0.01)
    shutil.rmtree(folder.ranks, ignore_errors=True)


def machine() -> str:
    """This machine and, in it, what process numbers are counted in."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return os.uname().nodename


def started(process: int) -> str:
    """When a process started, in the kernel's ticks; empty if there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _path(folder: RunFolder, rank: int) -> Path:
    return folder.ranks / _machine_name() / f"{rank:06d}"


def _paths(folder: RunFolder, machine_name: str = "*") -> list[Path]:
    return sorted(path for path in folder.ranks.glob(f"{machine_name}/*") if path.name.isdecimal())


@functools.cache
def _machine_name() -> str:
    """A folder name for the heartbeats of this machine."""
    return hashlib.sha256(machine().encode()).hexdigest()[:12]


def _read(path: Path) -> Life | None:
    """A pulse, or None where it went away or is just being written."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        content = path.read_text(encoding="utf-8")
        images, place, hung = content[STATIC:].strip(" ").split("\n")
        return Life(**json.loads(content[:STATIC]), images=int(images), place=place, hung=hung)
    return None
