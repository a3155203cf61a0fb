"""An alarm that several methods share."""

from __future__ import annotations

EXPLODED = 100.0  # root mean square of latents or logits; healthy runs stay below 10


def exploding(what: str, scale: float) -> dict[str, str]:
    """The alarm about latents or logits whose root mean square is above any healthy one."""
    if scale < EXPLODED:
        return {}
    return {
        "exploding scale": (
            f"{what} of size {scale:.2g}: lower train.learning_rate, or set train.clip_norm"
        )
    }
