"""Random numbers, hashes and permutations as pure functions of a key, on any rank and restart.

The first half is in numpy, for the order and the augmentation of images: no list is stored, and any
place can be computed alone. The second half is in torch, for the methods: a number is a function of
(key of the image, name of the draw, element). All use splitmix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

U64 = NDArray[np.uint64]

MASK = 2**64 - 1
# Places; up to here permutations take more rounds, see `permuted`.
FEW = 2**12
GOLDEN = 0x9E3779B97F4A7C15  # the increment of splitmix64: the golden ratio as a fraction of 2^64
DRAWN_AHEAD = 2**20  # numbers drawn at once, at most: for more, memory costs more than calls
BITS = 23  # of a draw: k + 1/2 is then exact in float32, so a uniform number is never 0 and never 1


def mix64(values: U64) -> U64:
    """The finaliser of SplitMix64 (Steele et al. 2014): a bijection that mixes all bits."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


@lru_cache(4096)
def chain(*parts: int) -> int:
    """A 64-bit hash of several whole numbers in their order."""
    # The constant makes zeros count: mix64(0) is 0, so chain(0, x) would equal chain(x).
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = mix64(state + np.uint64(GOLDEN) + np.array([part & MASK], np.uint64))
    return int(state[0])


def permuted(places: U64, size: int, key: int) -> U64:
    """The image of each place in a keyed permutation of 0 … size-1. [B] -> [B]

    A Feistel network over a rectangle of about sqrt(size) rows and columns that just covers all
    places (Black and Rogaway 2002, "generalised Feistel"); results outside of it are permuted again
    until they are inside.
    """
    # Ten rounds pass every test against a full shuffle; for few places all orders are equally
    # likely only after more.
    rounds = 10 if size > FEW else 32
    rows = math.isqrt(max(size, 1) - 1) + 1  # the square root, rounded up
    return _walked(places, np.uint64(size), np.uint64(rows), np.array([key], np.uint64), rounds)


def permuted_each(places: U64, sizes: U64, keys: U64) -> U64:
    """The same with a size (up to a few thousand) and a key for each place. 3 x [B] -> [B]"""
    rows = np.ceil(np.sqrt(sizes.astype(np.float64))).astype(np.uint64)  # exact below 2^52
    return _walked(places, sizes, rows, keys, 32)


def _walked(
    places: U64, sizes: U64 | np.uint64, rows: U64 | np.uint64, keys: U64, count: int
) -> U64:
    # The rectangle has fewer than `rows` places too many, about 1 in sqrt(size), so that few values
    # are walked on.
    columns = (sizes + rows - np.uint64(1)) // rows
    # The keys of the rounds, [count, B or 1].
    rounds = mix64(np.arange(1, count + 1, dtype=np.uint64)[:, None] * np.uint64(GOLDEN) + keys)
    values = _permute(places, rows, columns, rounds)
    outside = np.flatnonzero(values >= sizes)
    while outside.size:
        values[outside] = _permute(
            values[outside], _of(rows, outside), _of(columns, outside), _of(rounds, outside)
        )
        outside = outside[values[outside] >= _of(sizes, outside)]
    return values


def _of(per_place: U64 | np.uint64, places: NDArray[np.int64]) -> U64 | np.uint64:
    """The entries for some places of an array that may have one entry for all."""
    array = np.asarray(per_place)
    return per_place if array.ndim == 0 or array.shape[-1] == 1 else array[..., places]


def _permute(
    values: U64, rows: U64 | np.uint64, columns: U64 | np.uint64, rounds: U64 | np.uint64
) -> U64:
    """One pass of the Feistel network: hashes of the column shift the row, and vice versa."""
    row, column = np.divmod(values, columns)
    for number, key in enumerate(np.asarray(rounds)):
        if number % 2:
            column = _shift(column, mix64(row ^ key), columns)
        else:
            row = _shift(row, mix64(column ^ key), rows)
    return row * columns + column


def _shift(values: U64, hashes: U64, size: U64 | np.uint64) -> U64:
    """`values` plus a number below `size` drawn by each hash, modulo `size` (below 2^32)."""
    # The high half of 32 bits times `size` instead of a slow remainder (Lemire 2019). Its bias is
    # at most size / 2^32.
    drawn = ((hashes >> np.uint64(32)) * size) >> np.uint64(32)
    # Both are below `size`: one subtraction is the remainder.
    shifted = values + drawn
    return np.where(shifted >= size, shifted - size, shifted)


def keys(seed: int, count: int, start: int = 0) -> Tensor:
    """The random keys number `start` to `start + count` of a seed, [count] int64 on the CPU."""
    import torch

    # From 1, as SplitMix64 adds its increment before it mixes. The factor spreads consecutive seeds
    # over 2^64, so that their keys do not overlap (Steele and Vigna 2022).
    places = torch.arange(start + 1, start + count + 1, dtype=torch.int64)
    return _mix(_signed(_name("keys") + seed * 0xD1342543DE82EF95) + places * _signed(GOLDEN))


def draws_together(keys: Tensor) -> None:
    """Let a draw for a slice of these keys compute the numbers of all of them.

    Some forty small operations make a draw, whose calls cost more than their arithmetic: for 32
    batches at once they cost a thirtieth. The numbers are the same.
    """
    keys.drawn = {}  # type: ignore[attr-defined]  # it goes with the keys


def uniform(keys: Tensor, draw: str, shape: tuple[int, ...]) -> Tensor:
    """Uniform numbers in (0, 1), [B] int64 keys -> [B, *shape] float32."""
    return _drawn(_uniform, keys, draw, shape)


def normal(keys: Tensor, draw: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers, [B] int64 keys -> [B, *shape] float32."""
    return _drawn(_normal, keys, draw, shape)


def _drawn(
    made: Callable[[Tensor, str, tuple[int, ...]], Tensor],
    keys: Tensor,
    draw: str,
    shape: tuple[int, ...],
) -> Tensor:
    """What `made` gives: a slice of its numbers for all keys where `draws_together` says so."""
    whole = keys._base
    drawn: dict[object, Tensor] | None = getattr(whole, "drawn", None)
    if drawn is None or whole is None or len(whole) * math.prod(shape) > DRAWN_AHEAD:
        return made(keys, draw, shape)
    name = (made, draw, shape)
    if name not in drawn:
        drawn[name] = made(whole, draw, shape)
    first = keys.storage_offset()
    # A copy, as the caller may change it.
    return drawn[name][first : first + len(keys)].clone()


def _uniform(keys: Tensor, draw: str, shape: tuple[int, ...]) -> Tensor:
    import torch

    size = math.prod(shape)
    # A start for each (key, draw); from there elements are counted as in SplitMix64.
    starts = _mix(keys ^ _signed(_name(draw)))
    places = torch.arange(1, (size + 1) // 2 + 1, dtype=torch.int64, device=keys.device) * _signed(
        GOLDEN
    )
    # Two draws from each 64 bits: [B, size / 2] int64 -> [B, size] int32.
    halves = _mix(starts[:, None] + places).view(torch.int32)[:, :size]
    # A right shift of an int32 copies the sign: the mask drops the copies.
    whole = halves.bitwise_right_shift(32 - BITS).bitwise_and((1 << BITS) - 1)
    return ((whole.float() + 0.5) * 2.0**-BITS).view(-1, *shape)


def _normal(keys: Tensor, draw: str, shape: tuple[int, ...]) -> Tensor:
    import torch

    size = math.prod(shape)
    first, second = _uniform(keys, draw, (2, (size + 1) // 2)).unbind(1)
    # Two uniform numbers give two normal ones. `first` is never 0, so its logarithm is finite.
    radius, angle = (-2 * first.log()).sqrt(), 2 * math.pi * second  # Box and Muller 1958
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :size].reshape(-1, *shape)


def _mix(bits: Tensor) -> Tensor:
    """Mix `bits` in place (splitmix64's finaliser, Stafford's variant 13)."""
    # int64 multiplies like an unsigned number, but its right shift copies the sign: hence masks.
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
