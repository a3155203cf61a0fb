"""How Ray is started or joined: module path, socket paths, a reachable head, network interfaces."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import os
import re
import shutil
import signal
import socket
import struct
import sys
import tempfile
import warnings
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
ADDRESS_OF = 0x8915  # SIOCGIFADDR: netdevice(7)
NAME_BYTES, REQUEST_BYTES = 16, 40  # of a struct ifreq


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


def prepare_worker(has_gpu: bool) -> None:
    """Runs in each worker before the workers meet."""
    import ray.train

    choose_interface()
    if has_gpu:
        refuse_unusable_gpu()
    # As torchrun does: the workers of a machine share its cores.
    os.environ["LOCAL_WORLD_SIZE"] = str(ray.train.get_context().get_local_world_size())


def meeting_place() -> str:
    """Where the workers meet, on the node of the first: its address and a port that is free."""
    import ray

    address = ray.util.get_node_ip_address()
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"


def device_of_worker(gpu: bool) -> Any:
    """The torch.device that Ray gave this worker."""
    if gpu:
        import ray.train.torch

        return ray.train.torch.get_device()
    import torch

    return torch.device("cpu")


def choose_interface() -> None:
    """Name this node's interface; a variable that is set on the node already stands."""
    # Workers meet where Ray's nodes meet, on a network that is known to connect them.
    import ray

    if name := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        # "=": exactly this name, not all that begin with it.
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")


def refuse_unusable_gpu() -> None:
    """Raise RuntimeError if Ray gave a GPU that PyTorch would leave idle without a word."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return
    built = torch.version.cuda or torch.version.hip
    # Of a driver that is too old PyTorch warns, and says no more.
    why = str(said[0].message).split(". ")[0][:120] if said else "it sees no device"
    why = why if built else "it is a build for CPUs"
    raise RuntimeError(
        f"Ray found a GPU, but PyTorch {torch.__version__} cannot use it ({why}): install a build"
        " that suits the driver, or set run.device = cpu"
    )


def interface_of(address: str) -> str:
    """The name of the network interface with this IPv4 address; "" if unknown. Linux."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            if address and _first_address(sock, name) == address:
                return name
    return ""


def _first_address(sock: socket.socket, name: str) -> str:
    request = struct.pack(f"{REQUEST_BYTES}s", name.encode()[: NAME_BYTES - 1])
    try:
        answer = fcntl.ioctl(sock, ADDRESS_OF, request)
    except OSError:  # it has none
        return ""
    # A struct sockaddr_in follows the name: family and port in four bytes, then the address.
    return socket.inet_ntoa(answer[NAME_BYTES + 4 : NAME_BYTES + 8])
