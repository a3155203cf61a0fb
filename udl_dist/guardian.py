"""A process beside a private Ray: when whoever started that Ray is gone, however it went, nothing of it stays.

Ray's own processes watch their parent, but two of its agents try for minutes to tell a head that is gone too. Knows no
Ray: it finds the processes by a mark in their environment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "UDL_GUARDED_BY"
GRACE_SECONDS = 3.0  # for them to end by themselves


class Guardian:
    """The end of it in the process that starts Ray, which does so within `marking`; `close` when it is over.

    The pipe to the guardian is closed by the system if this process is killed.
    """

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        # A session of its own: Ctrl-C on a terminal is sent to all of a group.
        self._process = subprocess.Popen([sys.executable, "-I", __file__, self._mark], stdin=subprocess.PIPE,
                                         start_new_session=True)  # fmt: skip

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


def marked(mark: str) -> list[int]:
    """The processes with the mark in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or it is somebody else's
            # Anywhere in it: a process that sets its title writes over the start of its environment.
            if f"{VARIABLE}={mark}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def watch(mark: str) -> None:
    """Wait until the pipe is closed, then for the processes, and end those that stay."""
    sys.stdin.buffer.read()
    deadline = time.monotonic() + GRACE_SECONDS
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    watch(sys.argv[1])
