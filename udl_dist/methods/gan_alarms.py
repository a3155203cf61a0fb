"""How the figures of a validation show that a GAN comes to nothing: thresholds, and what good and
bad runs had.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from udl_dist.methods import exploding

SURE = 8.0  # a logit: one error in 3,000
# Mean softplus loss of a discriminator that has won; of two equals it is 1.4, of healthy runs 0.09
# at its least, soon after the start. Two runs that made garbage for 25,000 images had 0.003 to
# 0.02, with logits of ±6.
WON = 0.05
# Shares of what real images have. On digits a healthy generator has 0.16 of the spread and 0.18 of
# the contrast at its worst, some 1,000 images after the start; one that is lost has less than 0.03
# and 0.0001 (README: how provoked).
COLLAPSED = 0.05
DEAD = 0.01
# Too much of them, or too little detail, is as bad, but a generator starts with noise: it is given
# time to lose it. (Of photographs of 32 px with an average of half-life 5,000: detail 27 after
# 2,000 images, 12 after 10,000, then 2.2.)
SETTLED_IMAGES = 20_000
CRUDE = 2.0  # of the contrast: a healthy one has 0.7 to 1.3, those that made garbage 3.5 to 5.4
# of the detail: healthy ones have 0.8 to 2.2, those that made garbage 5 to 50
NOISY, BLURRED = 5.0, 0.1


def alarms(figures: Mapping[str, float], seen: int) -> dict[str, str]:
    """Who has won, which images are lost or unlike real ones, and what has exploded."""
    scale = max(
        abs(figures.get(name, 0.0))
        for name in ("val/logit_scale", "train/real_logit", "train/fake_logit")
    )
    crude = _unlike(figures) if seen >= SETTLED_IMAGES else {}
    return exploding("logits", scale) | _lost_images(figures) | _won(figures) | crude


def _won(figures: Mapping[str, float]) -> dict[str, str]:
    """The discriminator is so sure of everything that the generator learns nothing from it."""
    real, fake = figures.get("train/real_logit", 0.0), figures.get("train/fake_logit", 0.0)
    loss = figures.get("train/discriminator", math.inf)
    if loss >= WON and (real < SURE or fake > -SURE):
        return {}
    return {
        "the discriminator wins": (
            f"real {real:.2g}, generated {fake:.2g} (logits), its loss {loss:.2g}: lower "
            "method.discriminator_rate, or set method.r1"
        )
    }


def _unlike(figures: Mapping[str, float]) -> dict[str, str]:
    """Generated images are plainly not of the kind of the real ones, whatever the discriminator
    says.
    """
    contrast, detail = figures.get("val/contrast", 1.0), figures.get("val/detail", 1.0)
    said = (
        f"generated images have {contrast:.2g} times the contrast and {detail:.2g} times the fine"
        " detail of real"
    )
    if contrast > CRUDE or detail > NOISY:
        return {"unlike real images": f"{said} ones: set method.r1, or lower train.learning_rate"}
    if detail < BLURRED:
        return {
            "unlike real images": (
                f"{said} ones, they are blurred: train longer, or widen method.network"
            )
        }
    return {}


def _lost_images(figures: Mapping[str, float]) -> dict[str, str]:
    """Every image is blank or at the ends of tanh, or all of them are nearly the same."""
    contrast, headroom = figures.get("val/contrast", 1.0), figures.get("val/headroom", 1.0)
    if contrast < DEAD or headroom < DEAD:
        return {
            "dead generator": (
                f"contrast {contrast:.2g}, headroom {headroom:.2g} of the real images': lower "
                "train.learning_rate, then start again with --run.fresh true"
            )
        }
    spread = figures.get("val/spread", 1.0)
    if spread >= COLLAPSED:
        return {}
    return {
        "mode collapse": (
            f"generated images have {spread:.2g} of the spread of real ones: lower "
            "train.learning_rate, set method.r1, or raise train.batch_size"
        )
    }
