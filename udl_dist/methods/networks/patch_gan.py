"""The patch discriminator (Isola et al. 2017): each output judges a patch of the image."""

from __future__ import annotations

from torch import nn

from udl_dist.errors import UsageError
from udl_dist.methods.networks.layers import GAINS, activation, conv

SMALL_PATCHES = {48: 3, 24: 2}  # least side of an image -> halvings by default; below 24 px one


class PatchDiscriminator(nn.Sequential):
    """[B, C, H, W] -> [B, 1, h, w], the logit of each patch being real.

    Convolutions of 4×4 halve the map `halvings` times, two more of stride 1 follow. There is no
    normalisation: over a batch it would let images see each other, and ranks differ.
    """

    def __init__(self, shape: tuple[int, int, int], width: int, halvings: int = 0) -> None:
        halvings = halvings or default_halvings(shape)
        gain = GAINS["leaky_relu"]
        layers: list[nn.Module] = [
            conv(shape[0], width, (4, 4), 2, gain),
            activation("leaky_relu"),
        ]
        channels = width
        for place in range(1, halvings + 1):
            wider = width * min(2**place, 8)
            stride = 2 if place < halvings else 1
            layers += [conv(channels, wider, (4, 4), stride, gain), activation("leaky_relu")]
            channels = wider
        super().__init__(*layers, conv(channels, 1, (4, 4)))
        if min(shape[1:]) >> halvings < 3:
            raise UsageError(
                f"method.adversary.halvings of {halvings} leave nothing of an image of"
                f" {shape[1]}×{shape[2]}: give fewer"
            )


def default_halvings(shape: tuple[int, int, int]) -> int:
    """3 from 48 px on, as in published tokenizers; 2 from 24 px on; else 1."""
    side = min(shape[1:])
    return next((halvings for least, halvings in SMALL_PATCHES.items() if side >= least), 1)
