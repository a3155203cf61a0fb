"""What a discriminator and a generator minimise, and the gradient penalties of a discriminator.

Logits are [B], real and generated ones of the same row of the batch; losses are means over rows.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from udl_dist.core import rng

LossName = Literal[
    "non_saturating", "minimax", "hinge", "least_squares", "wasserstein", "relativistic"
]


@dataclass(frozen=True)
class AdversarialLoss:
    """Both sides of a game, of the logits of real and generated images.

    `chance` is the discriminator's loss when all logits are 0, None if the loss has no least value.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]  # real, fake: [B], [B] -> []
    generator: Callable[[Tensor], Tensor]  # fake, or by pairs fake - real: [B] -> []
    chance: float | None
    pairs: bool = False
    # Only differences of logits count: a bias of the discriminator's last layer has the gradient 0.
    relative: bool = False


# softplus(-a) = -log sigmoid(a), but finite for any logit (Goodfellow et al. 2014, eq. 1).
def _cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    return softplus(-real).mean() + softplus(fake).mean()


# By name: of Goodfellow et al. 2014 (section 3 has the non-saturating one), Lim & Ye 2017, Mao et
# al. 2017 (labels 0 and 1), Arjovsky et al. 2017, and by pairs Jolicoeur-Martineau 2019, as in
# R3GAN (Huang et al. 2024).
LOSSES: Mapping[LossName, AdversarialLoss] = {
    "non_saturating": AdversarialLoss(
        _cross_entropy, lambda fake: softplus(-fake).mean(), 2 * math.log(2)
    ),
    "minimax": AdversarialLoss(
        _cross_entropy, lambda fake: -softplus(fake).mean(), 2 * math.log(2)
    ),
    "hinge": AdversarialLoss(
        lambda real, fake: relu(1 - real).mean() + relu(1 + fake).mean(),
        lambda fake: -fake.mean(),
        2.0,
    ),
    "least_squares": AdversarialLoss(
        lambda real, fake: ((real - 1).square().mean() + fake.square().mean()) / 2,
        lambda fake: (fake - 1).square().mean() / 2,
        0.5,
    ),
    "wasserstein": AdversarialLoss(
        lambda real, fake: fake.mean() - real.mean(),
        lambda fake: -fake.mean(),
        None,
        relative=True,
    ),
    "relativistic": AdversarialLoss(
        lambda real, fake: softplus(fake - real).mean(),
        lambda difference: softplus(-difference).mean(),
        math.log(2),
        relative=True,
        pairs=True,
    ),
}


# [B, C, H, W] -> []
def _squared_length(gradient: Tensor) -> Tensor:
    return gradient.square().flatten(1).sum(1).mean()


# [B, C, H, W] -> []
def _distance_from_one(gradient: Tensor) -> Tensor:
    # vector_norm has the gradient 0 at 0, where a root has none.
    lengths: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return (lengths - 1).square().mean()


# The images of each penalty, and what it asks of the discriminator's gradient there: R1 and R2 of
# Mescheder et al. 2018 (eq. 9 and 10, without γ/2), WGAN-GP of Gulrajani et al. 2017 (eq. 3).
PENALTIES: Mapping[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "r1": ("real", _squared_length),
    "r2": ("fake", _squared_length),
    "gradient_penalty": ("between", _distance_from_one),
}


# [B, C, H, W] twice, [B] int64 -> [B, C, H, W]
def between(real: Tensor, fake: Tensor, keys: Tensor) -> Tensor:
    """A point drawn on the line from each real image to the generated one of its row."""
    share = rng.uniform(keys, "gradient_penalty", (1, 1, 1)).to(real.dtype)
    return share * real + (1 - share) * fake


def penalties(
    weights: Mapping[str, float], images: Mapping[str, Tensor], logits: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Each penalty of `weights`, times its weight: name -> [].

    `images`, [B, C, H, W], and their `logits`, [B], are by the names in `PENALTIES`.
    """
    if not weights:
        return {}
    # The sum of logits has each image's own gradient, as long as images do not mix: under batch
    # normalisation this would be the gradient of a whole batch.
    kinds = [PENALTIES[name][0] for name in weights]
    gradients = torch.autograd.grad(
        [logits[kind].sum() for kind in kinds], [images[kind] for kind in kinds], create_graph=True
    )
    return {
        name: PENALTIES[name][1](gradient) * weight
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }


def full_precision(images: Tensor) -> AbstractContextManager[None]:
    """Float32 whatever autocast is in force around it."""
    kind = images.device.type
    # The meta device has no autocast.
    if not torch.amp.is_autocast_available(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)
