"""The networks of a GAN by their names, and how a discriminator judges within a class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from udl_dist.methods.networks import ChainSettings, decoder, encoder
from udl_dist.methods.networks.gan import (
    DIVERSE,
    ArticleDiscriminator,
    ArticleGenerator,
    DCGANDiscriminator,
    DCGANGenerator,
)
from udl_dist.methods.networks.gan_resnet import ResNetDiscriminator, ResNetGenerator

if TYPE_CHECKING:
    from udl_dist.methods.method import Shape

Adversary = Literal["resnet", "dcgan", "article", "conv"]


def new_generator(
    kind: Adversary, width: int, network: ChainSettings, inputs: int, shape: Shape
) -> nn.Module:
    """A network [N, inputs] -> [N, C, H, W], unbounded; `conv` is the decoder of `network`."""
    match kind:
        case "resnet":
            return ResNetGenerator(inputs, shape, width)
        case "dcgan":
            return DCGANGenerator(inputs, shape, width)
        case "article":
            return ArticleGenerator(inputs, shape)
    return decoder(network, (inputs,), shape, DIVERSE)


def new_discriminator(
    kind: Adversary, width: int, network: ChainSettings, dropout: float, shape: Shape
) -> nn.Sequential:
    """A chain [N, C, H, W] -> [N, 1] that ends in a linear layer; `dropout` is the article's."""
    match kind:
        case "resnet":
            return ResNetDiscriminator(shape, width)
        case "dcgan":
            return DCGANDiscriminator(shape, width)
        case "article":
            return ArticleDiscriminator(dropout, shape)
    chain = encoder(network, shape, (1,))
    assert isinstance(chain, nn.Sequential), "a dense or conv network: the method refuses others"
    return chain


class Discriminator(nn.Module):
    """The logit of an image being real, [B, C, H, W], [B] int64 -> [B].

    `chain` ends in a linear layer to one number. With classes the logit is w·h + b + v_y·h of the
    features h before that layer (Miyato & Koyama 2018, eq. 3).
    """

    def __init__(self, chain: nn.Sequential, classes: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.smallest = vars(chain).get("smallest")
        *body, head = chain
        assert isinstance(head, nn.Linear), "the chain ends in a linear layer"
        self.body, self.head = nn.Sequential(*body), head
        # From zero: at first the discriminator judges all classes alike.
        self.classes = nn.Embedding(len(classes), head.in_features) if classes else None
        if self.classes is not None:
            nn.init.zeros_(self.classes.weight)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        features = self.body(images)
        logits: Tensor = self.head(features).squeeze(1)
        if self.classes is not None:
            logits = logits + (self.classes(labels) * features).sum(1)
        return logits
