"""Kills leftover processes of a private Ray if the process that started it dies.

Ray's own processes watch their parent, but two of its agents keep trying to reach a dead head for
minutes. This file imports no Ray: it runs as a script, and finds the processes by a mark in their
environment and by their parents.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

VARIABLE = "UDL_GUARDED_BY"
GRACE_SECONDS = 3.0  # for the processes to end by themselves
LOOK_SECONDS = 5.0  # between two scans of /proc, which take some hundredths of a second


class Process(NamedTuple):
    """A process; its start, in ticks since boot, distinguishes it from a later one."""

    number: int
    began: int


class ProcessReaper:
    """Starts the script; the caller starts Ray within `marking`, and calls `close` after its end.

    If the caller is killed, the system closes the pipe to the script.
    """

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        # In a session of its own, because Ctrl-C on a terminal reaches a whole process group.
        self._process = subprocess.Popen(
            # -I: no module from the current folder or from PYTHONPATH.
            [sys.executable, "-I", __file__, self._mark],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    @contextlib.contextmanager
    def marking(self) -> Iterator[None]:
        """Processes started meanwhile, and their descendants, inherit the mark."""
        # Only meanwhile: other children of this process are not to be killed.
        os.environ[VARIABLE] = self._mark
        try:
            yield
        finally:
            del os.environ[VARIABLE]

    def close(self) -> None:
        """Kill what is left of Ray, and wait for that."""
        self._process.communicate()  # closes the pipe, as the death of this process would


def family(mark: str) -> set[Process]:
    """The processes with the mark in their environment, and all their descendants."""
    parents: dict[Process, int] = {}
    found: set[Process] = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or belongs to another user
            process, parent = _read(entry)
            parents[process] = parent
            if f"{VARIABLE}={mark}".encode() in (entry / "environ").read_bytes():
                found.add(process)
    # Ray's agents set their title, which may overwrite the mark in their environment: as long as
    # their parent lives, they are found as its children.
    while True:
        numbers = {process.number for process in found}
        children = {process for process, parent in parents.items() if parent in numbers}
        if children <= found:
            return found
        found |= children


def _read(entry: Path) -> tuple[Process, int]:
    """A process and the number of its parent; raises ProcessLookupError for a zombie."""
    # proc(5): number, name in parentheses, state, parent; the start is the 22nd field. The name may
    # have blanks and parentheses, so what follows is counted from its last one.
    number, _, rest = (entry / "stat").read_text().partition(" ")
    state, parent, *others = rest.rpartition(")")[2].split()
    if state == "Z":
        raise ProcessLookupError
    return Process(int(number), int(others[17])), int(parent)


def alive(process: Process) -> bool:
    try:
        return _read(Path(f"/proc/{process.number}"))[0] == process
    except OSError:
        return False


def watch(mark: str) -> None:
    """Collect the processes until the pipe is closed, wait for them, kill those that stay."""
    # Again and again, because a process whose parent has died can no longer be found as its child.
    known = family(mark)
    while not select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
        known |= family(mark)
    known |= family(mark)
    # The pipe is closed: Ray's own processes notice a dead parent, and most end by themselves.
    deadline = time.monotonic() + GRACE_SECONDS
    while any(map(alive, known)) and time.monotonic() < deadline:
        time.sleep(0.1)
    # Repeated, because a process may have started another one before it was killed.
    while left := {each for each in known | family(mark) if alive(each)}:
        known |= left
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.number, signal.SIGKILL)
        time.sleep(0.05)


if __name__ == "__main__":
    watch(sys.argv[1])
