"""Which interface has an address."""

from udl_dist.launch import train_group


def test_the_interface_of_an_address_is_found_by_the_address() -> None:
    assert train_group.interface_of("127.0.0.1") == "lo"
    assert train_group.interface_of("192.0.2.77") == ""  # reserved for examples
    assert train_group.interface_of("") == train_group.interface_of("no address") == ""
