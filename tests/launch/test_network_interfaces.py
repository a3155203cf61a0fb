"""Which interface has an address."""

from __future__ import annotations

from udl_dist.launch import network_interfaces


def test_the_interface_of_an_address_is_found_by_the_address() -> None:
    assert network_interfaces.having("127.0.0.1") == "lo"
    assert network_interfaces.having("192.0.2.77") == ""  # kept free for examples: nobody has it
    assert network_interfaces.having("") == network_interfaces.having("no address") == ""
