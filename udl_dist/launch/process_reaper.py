"""A process beside a private Ray: when whoever started that Ray is gone, however it went, nothing
of it stays.

Ray's own processes watch their parent, but two of its agents try for minutes to tell a head that is
gone too. Knows no Ray: it finds the processes by a mark in their environment, and by who started
them.
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
GRACE_SECONDS = 3.0  # for them to end by themselves
LOOK_SECONDS = 5.0  # between looks at who belongs to it, some hundredths of a second of work each


class Process(NamedTuple):
    """A process, told from a later one of the same number by when it began, in ticks since the
    machine started.
    """

    number: int
    began: int


class ProcessReaper:
    """The end of it in the process that starts Ray, which does so within `marking`; `close` when it
    is over.

    The pipe to the reaper is closed by the system if this process is killed.
    """

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        # A session of its own: Ctrl-C on a terminal is sent to all of a group.
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, self._mark],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    @contextlib.contextmanager
    def marking(self) -> Iterator[None]:
        """Whatever is started meanwhile has the mark, and so has what that starts."""
        os.environ[VARIABLE] = self._mark
        try:
            yield
        finally:
            del os.environ[VARIABLE]

    def close(self) -> None:
        """Have what is left ended, and wait for that."""
        self._process.communicate()


def family(mark: str) -> set[Process]:
    """The processes with the mark in their environment, and all that descend from them.

    A process that sets its title writes over its environment, the mark perhaps with it: Ray's
    agents do. Who started it is still told, as long as that one lives.
    """
    parents: dict[Process, int] = {}
    found: set[Process] = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or it is somebody else's
            process, parent = _read(entry)
            parents[process] = parent
            if f"{VARIABLE}={mark}".encode() in (entry / "environ").read_bytes():
                found.add(process)
    while (
        more := {
            each for each, parent in parents.items() if parent in {one.number for one in found}
        }
        - found
    ):
        found |= more
    return found


def _read(entry: Path) -> tuple[Process, int]:
    """A process and the number of its parent; raise ProcessLookupError if it has ended and waits to
    be asked for.
    """
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
    """Look who belongs to it until the pipe is closed, then wait for them, and end those that
    stay.
    """
    known = family(mark)
    while not select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
        known |= family(mark)
    known |= family(mark)
    deadline = time.monotonic() + GRACE_SECONDS
    while any(map(alive, known)) and time.monotonic() < deadline:
        time.sleep(0.1)
    # Again and again: who is ended last may have started somebody meanwhile.
    while left := {each for each in known | family(mark) if alive(each)}:
        known |= left
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.number, signal.SIGKILL)
        time.sleep(0.05)


if __name__ == "__main__":
    watch(sys.argv[1])
