"""Heartbeats: a small file per rank in the run folder says who the rank is and what it is doing.

It is mapped into memory, so a beat costs a store and survives a kill -9; its size is fixed, so a
full disk does not stop it. A rank on this machine can be killed through its heartbeat.
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

FILE_BYTES, HEADER_BYTES = 1024, 256  # the header says who the rank is


@dataclass(frozen=True)
class Heartbeat:
    """One reading: `place` is where the rank was, `hung` where its watchdog found it hanging."""

    rank: int
    process: int
    started: str  # distinguishes a process from a later one with the same number
    machine: str
    stacks_from: int  # bytes of the rank's stacks file that earlier processes wrote
    images: int
    place: str
    hung: str

    @property
    def here(self) -> bool:
        """Whether the process is alive on this machine."""
        # Process numbers are used again, and after a restart of the machine from the beginning.
        return self.machine == machine() and started(self.process) == self.started

    def state(self) -> str:
        """The state of the process, such as `T (stopped)`."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.process}/status").read_text().splitlines():
                if line.startswith("State:"):
                    return line.split(None, 1)[1]
        return "gone"

    def kill(self) -> None:
        """Kill the process, if it is on this machine."""
        # A rank that has just ended by itself leaves nothing to kill.
        if self.here:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process, signal.SIGKILL)


class HeartbeatWriter:
    """Writes the heartbeat of one rank."""

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
        # Complete or absent, by a rename; a process that maps the former file has it still.
        fresh = self._path.with_name(f".{self._path.name}")
        fresh.write_bytes(
            (json.dumps(who).ljust(HEADER_BYTES - 1) + "\n").encode().ljust(FILE_BYTES)
        )
        fresh.replace(self._path)
        self._file = self._path.open("r+b")
        self._map = mmap.mmap(self._file.fileno(), FILE_BYTES)
        self._images, self._place = 0, "start"

    def beat(self, images: int, place: str, hung: str = "") -> None:
        """Write what the rank is doing; costs microseconds."""
        # Always the same size: nothing has to be allocated on the disk, which may be full.
        self._images, self._place = images, place
        free = FILE_BYTES - HEADER_BYTES
        self._map[HEADER_BYTES:] = f"{images}\n{place}\n{hung}".encode()[:free].ljust(free)

    def hang(self, where: str) -> None:
        """Write that the rank hangs at `where`."""
        self.beat(self._images, self._place, where)

    def touch(self) -> bool:
        """Renew the file's time; return whether the disk allowed it."""
        try:
            # A store through the map need not change the time of the file, which monitors look at.
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


class HeartbeatMonitor:
    """Finds the ranks of this machine without a heartbeat, by this process's own clock.

    Ranks of other machines cannot be killed from here, and 512 ranks that each read 512 files
    would load a shared disk.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._seen: dict[str, tuple[tuple[int, int], float]] = {}

    def silent(self, seconds: float) -> list[Heartbeat]:
        """The processes alive on this machine that have not renewed theirs for `seconds`."""
        found, now = [], time.monotonic()
        for path in _paths(self._folder, _machine_name()):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            # Each change starts the count again. The time in the file is only compared with itself:
            # the clock of a file server may differ from ours.
            mark, since = self._seen.get(path.name, ((0, 0), now))
            if mark != (stat.st_ino, stat.st_mtime_ns):
                mark, since = (stat.st_ino, stat.st_mtime_ns), now
            self._seen[path.name] = mark, since
            # The content is read last: most ranks are alive, and this runs about once a second.
            if now - since > seconds and (beat := _read(path)) and beat.here:
                found.append(beat)
        return found


def read_all(folder: RunFolder) -> dict[int, Heartbeat]:
    """Every heartbeat in the run folder by rank, of living and of dead processes."""
    found = (_read(path) for path in _paths(folder))
    return {beat.rank: beat for beat in found if beat}


def clear(folder: RunFolder) -> None:
    """Kill ranks that a dead driver left on this machine, and delete all heartbeats.

    Called by the driver that holds the run folder, before it starts ranks.
    """
    for beat in read_all(folder).values():
        beat.kill()
        # Until it is gone, or it could still write to the folder. A zombie is dead: it only waits
        # for its parent to read its exit code.
        while beat.here and not beat.state().startswith("Z"):
            time.sleep(0.01)
    shutil.rmtree(folder.ranks, ignore_errors=True)


def machine() -> str:
    """The machine and, in it, the namespace of process numbers."""
    try:
        # Containers of one machine have the same boot_id, but each its own process numbers.
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return os.uname().nodename


def started(process: int) -> str:
    """When a process started, in the kernel's ticks; "" if there is none."""
    try:
        # Field 22 of proc(5), counted behind the name: that is in parentheses and may have blanks.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _path(folder: RunFolder, rank: int) -> Path:
    return folder.ranks / _machine_name() / f"{rank:06d}"


def _paths(folder: RunFolder, machine_name: str = "*") -> list[Path]:
    # Decimal names only: those with a dot are not complete yet.
    return sorted(path for path in folder.ranks.glob(f"{machine_name}/*") if path.name.isdecimal())


# A folder for each machine, so that its ranks list only their own on a shared disk.
@functools.cache
def _machine_name() -> str:
    """A folder name for the heartbeats of this machine."""
    return hashlib.sha256(machine().encode()).hexdigest()[:12]


def _read(path: Path) -> Heartbeat | None:
    """One heartbeat, or None if it was deleted or is being written."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        content = path.read_text(encoding="utf-8")
        images, place, hung = content[HEADER_BYTES:].strip(" ").split("\n")
        return Heartbeat(
            **json.loads(content[:HEADER_BYTES]), images=int(images), place=place, hung=hung
        )
    return None
