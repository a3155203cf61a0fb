"""Random numbers as a pure function of (key, name of the draw, element), on any rank and restart.

The hash is splitmix64 (Steele, Lea, Flood 2014), with a start of its own for each key.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15  # the increment of splitmix64: the golden ratio as a fraction of 2^64
BITS = 23  # of a draw: k + 1/2 is then exact in float32, so a uniform number is never 0 and never 1


def keys(seed: int, count: int, start: int = 0) -> Tensor:
    """The random keys number `start` to `start + count` of a seed, [count] int64 on the CPU."""
    import torch

    places = torch.arange(start + 1, start + count + 1, dtype=torch.int64)
    return _mix(_signed(_name("keys") + seed * 0xD1342543DE82EF95) + places * _signed(GOLDEN))


def uniform(keys: Tensor, draw: str, shape: tuple[int, ...]) -> Tensor:
    """Uniform numbers in (0, 1), [B] int64 keys -> [B, *shape] float32."""
    import torch

    size = math.prod(shape)
    starts = _mix(keys ^ _signed(_name(draw)))
    places = torch.arange(1, (size + 1) // 2 + 1, dtype=torch.int64, device=keys.device) * _signed(
        GOLDEN
    )
    # two draws from each 64 bits
    halves = _mix(starts[:, None] + places).view(torch.int32)[:, :size]
    whole = halves.bitwise_right_shift(32 - BITS).bitwise_and((1 << BITS) - 1)
    return ((whole.float() + 0.5) * 2.0**-BITS).view(-1, *shape)


def normal(keys: Tensor, draw: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers, [B] int64 keys -> [B, *shape] float32."""
    import torch

    size = math.prod(shape)
    first, second = uniform(keys, draw, (2, (size + 1) // 2)).unbind(1)
    radius, angle = (-2 * first.log()).sqrt(), 2 * math.pi * second  # Box & Muller 1958
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :size].reshape(-1, *shape)


def _mix(bits: Tensor) -> Tensor:
    """Mix `bits` in place (splitmix64's finaliser, Stafford's variant 13).

    Multiplication of int64 wraps, but its right shift copies the sign: a mask makes it the shift
    of an unsigned number.
    """
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = bits.bitwise_xor_(
            bits.bitwise_right_shift(shift).bitwise_and_((1 << 64 - shift) - 1)
        )
        bits = bits.mul_(_signed(factor))
    return bits.bitwise_xor_(bits.bitwise_right_shift(31).bitwise_and_((1 << 33) - 1))


def _name(text: str) -> int:
    """A 64-bit hash of a name (FNV-1a), the same in every process, unlike `hash`."""
    bits = 0xCBF29CE484222325
    for byte in text.encode():
        bits = (bits ^ byte) * 0x100000001B3 % 2**64
    return bits


def _signed(bits: int) -> int:
    """The int64 with the same lowest 64 bits."""
    return (bits + 2**63) % 2**64 - 2**63
