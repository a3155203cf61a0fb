"""What makes a network one of classes: an embedding beside the latent, a projection of features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from udl_dist.errors import UsageError

MOST = 64  # numbers of the embedding beside a latent


class ClassEmbedding(nn.Module):
    """Puts learned numbers of a class beside a latent, [B, Z], [B] int64 -> [B, Z + size].

    Raises UsageError if there are no classes.
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        super().__init__()
        if not classes:
            raise UsageError(
                "method.conditional needs a label for every image, and those of data.source have"
                " none (or its sources have different classes): give a folder with a folder for"
                " each class, or shards with .cls members, or leave method.conditional out"
            )
        self.size = min(len(classes), MOST)
        # Standard normal numbers at first, as latents are.
        self.embedding = nn.Embedding(len(classes), self.size)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        return torch.cat([latents, self.embedding(labels)], 1)


class Discriminator(nn.Module):
    """The logit of an image being real, [B, C, H, W], [B] int64 -> [B].

    `chain` ends in a linear layer to one number. With classes the logit is w·h + b + v_y·h of the
    features h before that layer (Miyato & Koyama 2018, eq. 3).
    """

    def __init__(self, chain: nn.Sequential, classes: tuple[str, ...] = ()) -> None:
        super().__init__()
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
