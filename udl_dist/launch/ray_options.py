"""How Ray is started or joined: the workers' module path, short socket paths, a reachable head."""

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
# Ray adds some 65 characters to its temporary folder; Linux limits a socket path to 107.
MAX_TEMPORARY = 40
SHORT_FOLDERS = ("/tmp", "/dev/shm")
# The opening of an HTTP/2 connection, which gRPC uses: a fixed text and an empty SETTINGS frame.
HTTP2_OPENING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SETTINGS_FRAME = 4


def search_path() -> list[str]:
    """The module path of this process, absolute, for its workers."""
    return [str(Path(entry).absolute()) for entry in sys.path]


def job_config() -> Any:
    """Ray's job configuration with the module path of this process for the workers.

    By itself Ray puts the current folder first, so that workers would import a `numpy.py` or
    another `udl_dist` from there.
    """
    from ray.job_config import JobConfig

    class WithOurPath(JobConfig):  # type: ignore[misc]
        @property
        # Each worker inserts the entries at the front, one by one: hence reversed.
        def _py_driver_sys_path(self) -> list[str]:
            return search_path()[::-1]

        @_py_driver_sys_path.setter
        def _py_driver_sys_path(self, _: object) -> None: ...

    return WithOurPath()


@functools.cache
def short_folder() -> str:
    """A temporary folder with a short path, if the usual one is too long for sockets; else ""."""
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(usual)) <= MAX_TEMPORARY:
        return ""
    for place in SHORT_FOLDERS:
        with contextlib.suppress(OSError):
            folder = tempfile.mkdtemp(prefix="udl-ray-", dir=place)
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            return folder
    raise ClusterError(
        f"TMPDIR {usual} is too long for Ray's sockets, and {' and '.join(SHORT_FOLDERS)} cannot be"
        f" written to: set TMPDIR to a folder of at most {MAX_TEMPORARY} characters"
    )


@contextlib.contextmanager
def hangups_blocked() -> Iterator[None]:
    """Processes started meanwhile ignore SIGHUP, which a closing terminal sends to all of them.

    The driver gets it, writes a checkpoint and ends them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def refuse_silent(address: str) -> None:
    """Raise UsageError for a malformed address, ClusterError if no head of a cluster answers there.

    Ray itself would keep trying for minutes.
    """
    named, address = address, os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    if not address:
        return  # Ray looks on this machine and reports at once if there is none
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
                    raise ConnectionError("another program answers there")
    except OSError as error:
        raise ClusterError(
            f"no Ray at {address} ({error.strerror or error}): is the cluster up, and is that the"
            " address of its head?"
        ) from None
