"""Bytes and floats of pixels: the same bytes come back, and each pixel gets the nearest byte."""

import torch

from udl_dist.methods.pixels import floats, levels


def test_bytes_come_back_and_pixels_get_the_nearest_byte_within_the_range() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    values = floats(every)
    assert (values.min().item(), values.max().item()) == (-1, 1)
    for moved in (-0.4, 0.0, 0.4):
        assert torch.equal(levels(values + moved / 127.5), every)
    assert levels(torch.tensor([-3.0, -1.5, 1.5, 3.0])).tolist() == [0, 0, 255, 255]
