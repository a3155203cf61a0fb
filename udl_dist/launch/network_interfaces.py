"""Which of this machine's network interfaces has an address: a machine may be on several networks.
Linux and IPv4.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct

ADDRESS_OF = 0x8915  # SIOCGIFADDR: netdevice(7)
NAME_BYTES, REQUEST_BYTES = 16, 40  # of a struct ifreq


def having(address: str) -> str:
    """The name of the interface whose first address this is; "" if there is none, or that cannot be
    told.
    """
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            if address and _first_address(asked, name) == address:
                return name
    return ""


def _first_address(asked: socket.socket, name: str) -> str:
    try:
        answer = fcntl.ioctl(
            asked, ADDRESS_OF, struct.pack(f"{REQUEST_BYTES}s", name.encode()[: NAME_BYTES - 1])
        )
    except OSError:  # it has none
        return ""
    # a struct sockaddr_in: family, port, address
    return socket.inet_ntoa(answer[NAME_BYTES + 4 : NAME_BYTES + 8])
