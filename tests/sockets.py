"""What processes of this machine listen on, read from /proc. For tests."""

import ipaddress
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

LISTENS = "0A"


def listening(processes: Iterable[int]) -> set[tuple[str, int]]:
    """The addresses and ports on which these processes wait for connections."""
    held = set()
    for process in processes:
        try:
            held |= {str(link.readlink()) for link in Path(f"/proc/{process}/fd").iterdir()}
        except OSError:
            continue  # it has just ended, or a file was just closed
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == LISTENS and f"socket:[{rest[5]}]" in held:
                address, _, port = local.partition(":")
                found.add((_plain(address), int(port, 16)))
    return found


def is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address)
    mapped = getattr(found, "ipv4_mapped", None)
    return bool((mapped or found).is_loopback)


def _plain(address: str) -> str:
    """As /proc has it, words of four bytes in the order of the machine."""
    words = [struct.pack("=I", int(address[at : at + 8], 16)) for at in range(0, len(address), 8)]
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, b"".join(words))
