"""How the workers of a run meet: a network that connects them, a GPU that works, a place."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import warnings

ADDRESS_OF = 0x8915  # SIOCGIFADDR: netdevice(7)
NAME_BYTES, REQUEST_BYTES = 16, 40  # of a struct ifreq


def prepare_worker(has_gpu: bool) -> None:
    """Runs in each worker before the workers meet."""
    choose_interface()
    if has_gpu:
        refuse_unusable_gpu()


def meeting_place() -> str:
    """Where the workers meet, on the node of the first: its address and a port that is free."""
    import ray

    address = ray.util.get_node_ip_address()
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"


def join(backend: str, url: str, rank: int, world: int) -> None:
    """Meet the other workers."""
    # Imported here: Ray's controller loads this module too, and does without torch.
    from udl_dist.training import distributed

    distributed.join(backend, url, rank, world)


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
