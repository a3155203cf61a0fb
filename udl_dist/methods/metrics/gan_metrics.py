"""How generated images differ from real ones, and the failures of a GAN that this shows."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from udl_dist.methods.metrics import descriptor, frechet
from udl_dist.methods.metrics.alarms import exploding

SURE = 8.0  # a logit: one error in 3,000
# Mean loss of a discriminator that has won, over that of one that cannot tell real from generated.
# By cross-entropy, 2 log 2 = 1.4 for the latter, healthy runs had at least 0.09, soon after the
# start; two that made garbage for 25,000 images had 0.003 to 0.02, with logits of ±6.
WON = 0.05 / (2 * math.log(2))
# Ratios to real images. On digits a healthy generator has 0.16 of the spread and 0.18 of the
# contrast at its worst, some 1,000 images after the start; a failed one has less than 0.03 and
# 0.0001.
COLLAPSED = 0.05
DEAD = 0.01
# Too much contrast or too little detail is as bad, but a generator starts with noise and needs time
# to lose it. (On photographs of 32 px, averaged with half-life 5,000: detail 27 after 2,000 images,
# 12 after 10,000, then 2.2.)
SETTLED_IMAGES = 20_000
CRUDE = 2.0  # contrast: 0.7 to 1.3 in healthy runs, 3.5 to 5.4 in those that made garbage
# Detail: 0.8 to 2.2 in healthy runs, 5 to 50 in those that made garbage.
NOISY, BLURRED = 5.0, 0.1
# Share of the variance of real images: 0.01 to 0.26 in healthy runs, 0.4 to 2 in those that made
# mosaics or garbage.
STRANGE = 0.35


# [B, C, H, W] twice -> each [B] or [B, D]
def values_of(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """What each image adds to the means that `metrics` compares."""
    values = dict[str, Tensor]()
    for name, images in (("real", real), ("fake", fake)):
        pixels = images.flatten(1)
        # Moments of D features are D² numbers an image: 64 of 8×8 grey pixels make 4,096.
        values |= frechet.moments(frechet.small(images), f"{name}_small")
        values |= frechet.moments(descriptor.describe(images), f"{name}_described")
        values |= {
            name: pixels,
            f"{name}_square": pixels.square(),
            f"{name}_contrast": images.flatten(2).var(2, correction=0).mean(1),
            f"{name}_detail": descriptor.fine_energy(images),
        }
    return values


def metrics(means: Mapping[str, Tensor]) -> dict[str, float]:
    """Fréchet distances, and ratios of generated to real images.

    `spread`: the variance of a pixel over images; `contrast`: that within an image; `detail`: the
    energy of what is finer than 3×3 pixels; `headroom`: 1 - x², the slope of tanh, without which no
    gradient reaches the generator. A ratio to nearly 0 is left out. `frechet_detail`: the distance
    of the Gaussians of both sets in the features of `descriptor`; `frechet_8x8`: in 8×8 pixels,
    blind to finer detail; `frechet_share`: the latter ÷ the variance of real images there, 1 for a
    generator that makes nothing but their mean. None is FID.
    """
    of = {
        name: {
            "spread": float((means[f"{name}_square"] - means[name].square()).sum()),
            "contrast": float(means[f"{name}_contrast"]),
            "detail": float(means[f"{name}_detail"]),
            "headroom": float((1 - means[f"{name}_square"]).mean()),
        }
        for name in ("real", "fake")
    }
    ratios = {name: of["fake"][name] / real for name, real in of["real"].items() if real > 1e-6}
    distances = {
        "frechet_detail": frechet.distance(means, "real_described", "fake_described"),
        "frechet_8x8": frechet.distance(means, "real_small", "fake_small"),
    }
    variance = frechet.variance(means, "real_small")
    if variance > 1e-6:
        ratios["frechet_share"] = distances["frechet_8x8"] / variance
    return distances | ratios


def alarms(metrics: Mapping[str, float], seen: int, chance: float | None) -> dict[str, str]:
    """The alarms of a validation; `metrics` are its metrics by name.

    `chance` is the loss of a discriminator that cannot tell real from generated images; None: its
    logits have no scale.
    """
    scale = max(
        abs(metrics.get(name, 0.0))
        for name in ("val/logit_scale", "train/real_logit", "train/fake_logit")
    )
    crude = _unlike(metrics) if seen >= SETTLED_IMAGES else {}
    lost = _lost_images(metrics)
    if chance is None:
        return lost | crude
    return exploding("logits", scale) | lost | _won(metrics, chance) | crude


def _won(metrics: Mapping[str, float], chance: float) -> dict[str, str]:
    """The discriminator is so sure that the generator gets no useful gradient from it."""
    real, fake = metrics.get("train/real_logit", 0.0), metrics.get("train/fake_logit", 0.0)
    loss = metrics.get("train/discriminator", math.inf)
    if loss >= WON * chance and (real < SURE or fake > -SURE):
        return {}
    return {
        "the discriminator wins": (
            f"real {real:.2g}, generated {fake:.2g} (logits), its loss {loss:.2g}: lower "
            "method.discriminator_rate, or set method.r1"
        )
    }


def _unlike(metrics: Mapping[str, float]) -> dict[str, str]:
    """Generated images have another contrast or detail, whatever the discriminator outputs."""
    contrast, detail = metrics.get("val/contrast", 1.0), metrics.get("val/detail", 1.0)
    compared = (
        f"generated images have {contrast:.2g} times the contrast and {detail:.2g} times the fine"
        " detail of real ones"
    )
    if contrast > CRUDE or detail > NOISY:
        return {"unlike real images": f"{compared}: set method.r1, or lower train.learning_rate"}
    if detail < BLURRED:
        return {
            "unlike real images": (
                f"{compared}, they are blurred: train longer, or widen method.network"
            )
        }
    share = metrics.get("val/frechet_share", 0.0)
    if share > STRANGE:
        return {
            "unlike real images": (
                f"in 8×8 pixels generated images are {share:.2g} of the variance of real ones away"
                " from them: train longer, set method.r1, or lower train.learning_rate"
            )
        }
    return {}


def _lost_images(metrics: Mapping[str, float]) -> dict[str, str]:
    """Every image is blank or saturates tanh, or all images are nearly the same."""
    contrast, headroom = metrics.get("val/contrast", 1.0), metrics.get("val/headroom", 1.0)
    if contrast < DEAD or headroom < DEAD:
        return {
            "dead generator": (
                f"contrast {contrast:.2g}, headroom {headroom:.2g} of the real images': lower "
                "train.learning_rate, then start again with --run.fresh true"
            )
        }
    spread = metrics.get("val/spread", 1.0)
    if spread >= COLLAPSED:
        return {}
    return {
        "mode collapse": (
            f"generated images have {spread:.2g} of the spread of real ones: lower "
            "train.learning_rate, set method.r1, or raise train.batch_size"
        )
    }
