"""What the held-out latents of a variational autoencoder show: how many are in use, and alarms."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# Variance over the data of the mean of a latent that is in use (Burda et al. 2016, section 5).
ACTIVE = 0.01
# Nats of KL, which bounds what all latents tell about an image; a healthy small VAE dips to 0.2.
COLLAPSED = 0.1


def moments(latents: Tensor) -> dict[str, Tensor]:  # [B, Z] -> two of [B, Z]
    """The means of latents of each image and their squares."""
    # In double: a variance is the small difference of two means.
    latents = latents.double()
    return {"latent": latents, "latent_square": latents.square()}


def metrics(means: Mapping[str, Tensor]) -> dict[str, float]:
    """The number of latents in use, and the root mean square of their means."""
    variance = means["latent_square"] - means["latent"].square()
    return {
        "active_units": float((variance > ACTIVE).sum()),
        "latent_scale": float(means["latent_square"].mean().sqrt()),
    }


def collapse(kl: float, active: float | None, count: int) -> dict[str, str]:
    """The alarm about latents without information; `active` of `count` are in use, if known."""
    if kl >= COLLAPSED and active != 0:
        return {}
    used = f"{active:.0f} of {count} latents in use, " if active is not None else ""
    return {
        "posterior collapse": (
            f"{used}KL {kl:.2g} nats: lower method.beta, or set "
            "method.warmup_images or method.free_bits"
        )
    }
