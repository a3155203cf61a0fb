"""How Ray is started or joined: which modules its workers import, where its sockets lie, and
whether a cluster answers.

Knows how `ray.init` is called and no run; clusters.py calls it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from udl_dist.errors import ClusterError, UsageError

ANSWER_SECONDS = 5.0  # for the head of a cluster to answer
# Ray's sockets lie some 65 letters below its temporary folder, and Linux takes no socket path
# beyond 107.
LONGEST_TEMPORARY = 40
SHORT_FOLDERS = ("/tmp", "/dev/shm")
# The opening of an HTTP/2 connection, which gRPC uses: a fixed text and an empty SETTINGS frame.
HTTP2_OPENING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SETTINGS_FRAME = 4


def search_path() -> list[str]:
    """Where this process looks for modules, for processes that are to use the same."""
    return [str(Path(entry).absolute()) for entry in sys.path]


def job_config() -> Any:
    """The configuration of our job on a Ray: its workers search for modules where this process
    does.

    Ray by itself puts the current folder before everything else, so that a `numpy.py` or another
    `udl_dist` there would be imported by the workers and not by the command.
    """
    from ray.job_config import JobConfig

    class WithOurPath(JobConfig):  # type: ignore[misc]
        @property
        # each worker inserts one after the other at the front
        def _py_driver_sys_path(self) -> list[str]:
            return search_path()[::-1]

        @_py_driver_sys_path.setter
        def _py_driver_sys_path(self, _: object) -> None: ...

    return WithOurPath()


@functools.cache
def short_folder() -> str:
    """A folder of this process for Ray's sockets, if the path of the usual one is too long for
    them; else "".
    """
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(usual)) <= LONGEST_TEMPORARY:
        return ""
    for place in SHORT_FOLDERS:
        with contextlib.suppress(OSError):
            folder = tempfile.mkdtemp(prefix="udl-ray-", dir=place)
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            return folder
    raise ClusterError(
        f"TMPDIR {usual} is too long for Ray's sockets, and {' and '.join(SHORT_FOLDERS)} cannot be"
        f" written to: set TMPDIR to a folder of at most {LONGEST_TEMPORARY} letters"
    )


@contextlib.contextmanager
def hangups_blocked() -> Iterator[None]:
    """Processes that are started meanwhile never get SIGHUP, which a closing terminal sends to all
    it started.

    The process that started them decides what is to become of them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def refuse_silent(address: str) -> None:
    """Raise UsageError for what is not the address of a head, ClusterError if nobody answers there
    as a head does.

    Ray itself would try for minutes.
    """
    named, address = address, os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    if not address:
        return  # Ray looks for one on this machine and says at once that there is none
    found = re.fullmatch(r"\[?([^/\s]+?)\]?:(\d{1,5})", address)
    if not found or not 0 < int(found[2]) < 2**16:
        which = "RAY_ADDRESS" if named == "auto" else "address"
        raise UsageError(
            f"{which} {address!r} is not the address of a Ray cluster's head: give HOST:PORT, such"
            " as 10.0.0.1:6379, or auto (the http address of a dashboard is for udl submit"
            " --address)"
        )
    try:
        with socket.create_connection((found[1], int(found[2])), ANSWER_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS") != "1":
                connection.sendall(HTTP2_OPENING)
                answer = connection.recv(9, socket.MSG_WAITALL)
                if len(answer) < 9 or answer[3] != SETTINGS_FRAME:
                    raise ConnectionError("something else answers there")
    except OSError as error:
        raise ClusterError(
            f"no Ray at {address} ({error.strerror or error}): is the cluster up, and is that the"
            " address of its head?"
        ) from None
