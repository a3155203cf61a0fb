"""The networks of the article's GAN, described: dense layers, then transposed convolutions."""

from __future__ import annotations

import math

from udl_dist.methods.networks import GAINS, Network, halvings, kernel
from udl_dist.methods.networks.layers import (
    Activation,
    Conv,
    ConvTranspose,
    Dropout,
    Layer,
    Linear,
    Norm,
    Reshape,
    Shape,
)

LEAKY = GAINS["leaky_relu"]
# The gain of a generator's last layer. One that starts with nearly equal images gets the same
# gradient for all of them: it shifts them together and never leaves that one image.
DIVERSE = 1.0


def article_generator(latent_dim: int, shape: Shape) -> Network:
    """A network [latent_dim] -> [C, H, W] for an image of any size.

    The article goes from 4×4×256 by two doublings to 16 pixels, which can never make 28. Here the
    image is halved, rounding up, as long as 4 pixels or more are left (28, 14, 7, 4), and
    transposed convolutions with half the channels each go the same way back; a size that does not
    come down to 4 starts from 5, 6 or 7.
    """
    sides = [(shape[1], shape[2])]
    while min((side + 1) // 2 for side in sides[-1]) >= 4:
        sides = halvings(sides[0], len(sides))
    layers: list[Layer] = []
    # No bias: batch normalisation would subtract it again.
    for inputs, features in ((latent_dim, 256), (256, 512), (512, 1024)):
        layers += [
            Linear(inputs, features, LEAKY, bias=False),
            Norm("batch", features, flat=True),
            _leaky(),
        ]
    start = (256, *sides[-1])
    # Normalised feature by feature: over channels, a pattern that all images share would hide what
    # sets them apart.
    features = math.prod(start)
    layers += [
        Linear(1024, features, LEAKY, bias=False),
        Norm("batch", features, flat=True),
        _leaky(),
        Reshape(start),
    ]
    # Down to index 1: the last layer makes sides[0]; it has no norm, and a gain of its own.
    channels = 256
    for side in sides[-2:0:-1]:
        half = max(32, channels // 2)
        layers += [
            ConvTranspose(channels, half, kernel(side), LEAKY, bias=False),
            Norm("batch", half),
            _leaky(),
        ]
        channels = half
    if len(sides) == 1:
        return Network((latent_dim,), (*layers, Conv(channels, shape[0], (3, 3), 1, DIVERSE)))
    return Network(
        (latent_dim,), (*layers, ConvTranspose(channels, shape[0], kernel(sides[0]), DIVERSE))
    )


def article_discriminator(dropout: float, shape: Shape) -> Network:
    """A network [C, H, W] -> [1], the logit of an image being real."""
    sides = halvings((shape[1], shape[2]), 2)
    layers: list[Layer] = []
    for inputs, filters, side in ((shape[0], 64, sides[0]), (64, 128, sides[1])):
        layers += [
            Conv(inputs, filters, kernel(side), 2, LEAKY),
            _leaky(),
            *[Dropout(dropout)] * (dropout > 0),
        ]
    features = 128 * math.prod(sides[2])
    return Network(shape, (*layers, Reshape((features,)), Linear(features, 1)))


def _leaky() -> Activation:
    return Activation("leaky_relu", 0.2)
