"""The networks of a GAN by their names, and how a discriminator judges within a class."""

from __future__ import annotations

from dataclasses import dataclass
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
from udl_dist.methods.networks.gan_r3 import R3Discriminator, R3Generator
from udl_dist.methods.networks.gan_resnet import ResNetDiscriminator, ResNetGenerator

if TYPE_CHECKING:
    from udl_dist.methods.method import Shape

Adversary = Literal["resnet", "r3", "dcgan", "article", "conv"]


@dataclass(frozen=True)
class AdversaryPlan:
    """What the networks are made from: `conv` is the encoder or decoder of `network`."""

    width: int
    r3_widths: tuple[int, ...]
    network: ChainSettings
    dropout: float  # of the article's discriminator


def new_generator(kind: Adversary, plan: AdversaryPlan, inputs: int, shape: Shape) -> nn.Module:
    """A network [N, inputs] -> [N, C, H, W], unbounded."""
    match kind:
        case "resnet":
            return ResNetGenerator(inputs, shape, plan.width)
        case "r3":
            return R3Generator(inputs, shape, plan.width, plan.r3_widths)
        case "dcgan":
            return DCGANGenerator(inputs, shape, plan.width)
        case "article":
            return ArticleGenerator(inputs, shape)
    return decoder(plan.network, (inputs,), shape, DIVERSE)


def new_discriminator(kind: Adversary, plan: AdversaryPlan, shape: Shape) -> nn.Sequential:
    """A chain [N, C, H, W] -> [N, 1] that ends in a linear layer."""
    match kind:
        case "resnet":
            return ResNetDiscriminator(shape, 2 * plan.width)
        case "r3":
            return R3Discriminator(shape, plan.width, plan.r3_widths)
        case "dcgan":
            return DCGANDiscriminator(shape, 2 * plan.width)
        case "article":
            return ArticleDiscriminator(plan.dropout, shape)
    chain = encoder(plan.network, shape, (1,))
    assert isinstance(chain, nn.Sequential), "a dense or conv network: the method refuses others"
    return chain


class Discriminator(nn.Module):
    """The logit of an image being real, [B, C, H, W], [B] int64 -> [B].

    `chain` ends in a linear layer to one number. With classes the logit is w·h + b + v_y·h of the
    features h before that layer (Miyato & Koyama 2018, eq. 3). `relative`: only differences of
    logits count, so there is no b, whose gradient would be nothing but rounding.
    """

    def __init__(
        self, chain: nn.Sequential, classes: tuple[str, ...] = (), relative: bool = False
    ) -> None:
        super().__init__()
        self.smallest = vars(chain).get("smallest")
        *body, head = chain
        assert isinstance(head, nn.Linear), "the chain ends in a linear layer"
        if relative:
            head.register_parameter("bias", None)
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
