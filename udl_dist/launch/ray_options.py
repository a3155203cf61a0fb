"""How Ray is started or joined: module path, socket paths, a reachable head, its storage."""

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
from udl_dist.storage.access import endpoint_of, region_of
from udl_dist.storage.uris import Uri, is_remote, joined, parse

ANSWER_SECONDS = 5.0  # for the head of a cluster to answer
# Ray adds some 65 characters to its temporary folder; Linux limits a socket path to 107.
MAX_TEMPORARY = 40
SHORT_FOLDERS = ("/tmp", "/dev/shm")
# The opening of an HTTP/2 connection, which gRPC uses: a fixed text and an empty SETTINGS frame.
HTTP2_OPENING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SETTINGS_FRAME = 4


def job_config() -> Any:
    """Ray's job configuration with the module path of this process for the workers.

    By itself Ray puts the current folder first, so that workers would import a `numpy.py` or
    another `udl_dist` from there.
    """
    from ray.job_config import JobConfig

    class WithOurPath(JobConfig):  # type: ignore[misc]
        @property
        # Each worker inserts the entries at the front, one by one: hence reversed. Absolute, as a
        # relative entry would be looked up in the worker's own folder.
        def _py_driver_sys_path(self) -> list[str]:
            return [str(Path(entry).absolute()) for entry in reversed(sys.path)]

        @_py_driver_sys_path.setter
        def _py_driver_sys_path(self, _: object) -> None: ...

    return WithOurPath()


@functools.cache
def short_folder() -> str:
    """A temporary folder with a short path, if the usual one is too long for sockets; else ""."""
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(usual)) <= MAX_TEMPORARY:
        return ""
    for place in SHORT_FOLDERS:  # in a container /tmp may be read-only
        with contextlib.suppress(OSError):
            folder = tempfile.mkdtemp(prefix="udl-ray-", dir=place)  # 0700
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
    # A blocked signal stays blocked in children, over `exec`, too; a handler would not.
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
    # In brackets an IPv6 address; a scheme in front, as of a dashboard, does not match.
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
                # A web server or a database accepts a connection, too: ask for a frame of HTTP/2.
                connection.sendall(HTTP2_OPENING)
                answer = connection.recv(9, socket.MSG_WAITALL)
                # A frame begins with 3 bytes of length and 1 of its type; the first one of a server
                # is SETTINGS (RFC 9113).
                if len(answer) < 9 or answer[3] != SETTINGS_FRAME:
                    raise ConnectionError("another program answers there")
    except OSError as error:
        raise ClusterError(
            f"no Ray at {address} ({error.strerror or error}): is the cluster up, and is that the"
            " address of its head?"
        ) from None


def storage_of_run(where: str) -> dict[str, Any]:
    """Ray's storage_path; we read nothing of it, but Ray requires one that all nodes see."""
    if not is_remote(where):
        return {"storage_path": str(Path(where) / ".ray")}
    uri = parse(joined(where, ".ray"))
    return {"storage_path": uri.path, "storage_filesystem": _file_system(uri)}


def _file_system(uri: Uri) -> Any:
    """What Ray writes through: it takes file systems of pyarrow only."""
    from pyarrow import fs

    # The same endpoint, region and options as `storage`, which Ray cannot use.
    scheme, _, host = endpoint_of(uri).rpartition("://")
    options: dict[str, Any] = {"endpoint_override": host, "scheme": scheme} if host else {}
    if uri.scheme == "az":
        account, key = (os.environ.get(f"AZURE_STORAGE_ACCOUNT_{part}") for part in ("NAME", "KEY"))
        return fs.AzureFileSystem(account or "", key)
    options["anonymous"] = uri.options.get("anonymous") == "true"
    if uri.scheme == "gs":
        return fs.GcsFileSystem(**options)

    class WithoutMarkers(fs.S3FileSystem):  # type: ignore[misc]
        def create_dir(self, path: str, *, recursive: bool = True) -> None:
            """S3 needs no folders, and pyarrow would leave an empty object for each."""

        def __reduce__(self) -> Any:
            return _file_system, (uri,)  # by its URI, as pyarrow would restore its own class

    return WithoutMarkers(region=region_of(uri) or None, **options)
