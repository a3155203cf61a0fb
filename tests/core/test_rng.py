"""Chance looks like chance, and is a pure function of key, draw and element."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from udl_dist.core import rng

KEYS = rng.keys(0, 4000)
Draw = Callable[[Tensor, str, tuple[int, ...]], Tensor]


def distance(values: Tensor) -> float:
    """Kolmogorov's √n · sup |F_n - F| from the uniform distribution; above 1.95 once in a thousand
    times.
    """
    ordered, steps = (
        values.flatten().double().sort().values,
        torch.arange(values.numel() + 1).double() / values.numel(),
    )
    return float(
        torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).max() * math.sqrt(values.numel())
    )


def correlation(one: Tensor, other: Tensor) -> float:
    """√n times the correlation: normal if they are independent."""
    pair = torch.stack([one.flatten(), other.flatten()]).double()
    return float(torch.corrcoef(pair)[0, 1] * math.sqrt(one.numel()))


def test_uniform_numbers_are_uniform_and_never_zero_or_one() -> None:
    values = rng.uniform(KEYS, "a", (100,))
    assert values.dtype == torch.float32
    assert 0 < values.min() < 1e-5
    assert 1 - 1e-5 < values.max() < 1
    assert distance(values) < 1.95


def test_the_ends_of_the_range_are_exact_in_float32() -> None:
    ends = (torch.tensor([0, 2**rng.BITS - 1]).float() + 0.5) * 2.0**-rng.BITS
    assert ends[0] > 0
    assert ends[1] < 1
    assert ends[0] == 1 - ends[1]


def test_normal_numbers_are_normal() -> None:
    values = rng.normal(KEYS, "a", (101,))
    assert values.dtype == torch.float32
    scaled = math.sqrt(values.numel())
    assert abs(values.mean()) * scaled < 4
    assert abs(values.square().mean() - 1) * scaled < 4 * math.sqrt(2)
    assert abs(values.pow(4).mean() - 3) * scaled < 4 * math.sqrt(96)
    assert distance(torch.special.ndtr(values.double())) < 1.95


@pytest.mark.parametrize(
    "keys",
    [
        KEYS,
        torch.arange(4000),
        torch.arange(4000) << 40,
        -torch.arange(4000),
        torch.arange(4000) * 2 + 1,
    ],
    ids=["hashed", "counting", "high bits", "negative", "odd numbers"],
)
def test_neighbouring_keys_draws_and_elements_are_independent(keys: Tensor) -> None:
    a, b = rng.normal(keys, "a", (40,)), rng.normal(keys, "b", (40,))
    assert abs(correlation(a, b)) < 4.5
    assert abs(correlation(a[1:], a[:-1])) < 4.5
    for lag in (1, 2, 20):
        assert abs(correlation(a[:, lag:], a[:, :-lag])) < 4.5
    uniform = rng.uniform(keys, "a", (40,))
    assert distance(uniform[:, 0]) < 1.95
    assert distance(uniform[:, 1]) < 1.95
    assert abs(correlation((uniform[:, 1:] - 0.5).square(), (uniform[:, :-1] - 0.5).square())) < 4.5


def test_no_two_keys_share_numbers() -> None:
    keys = torch.cat([rng.keys(seed, 50_000) for seed in range(4)])
    assert len(set(keys.tolist())) == keys.numel()
    pairs = (rng.uniform(keys, "a", (2,)) * 2**rng.BITS).long()
    assert len(set((pairs[:, 0] << rng.BITS | pairs[:, 1]).tolist())) == keys.numel()


def test_each_bit_of_a_key_changes_half_of_the_bits_drawn() -> None:
    key = torch.tensor([123456789])
    flipped = torch.cat([key ^ (1 << bit) for bit in range(63)] + [key ^ -(2**63)])
    drawn = [(rng.uniform(keys, "a", (64,)) * 2**rng.BITS).long() for keys in (key, flipped)]
    changed = (
        torch.stack([(drawn[0] ^ drawn[1]) >> bit & 1 for bit in range(rng.BITS)])
        .float()
        .mean((0, 2))
    )
    assert changed.min() > 0.4
    assert changed.max() < 0.6


@pytest.mark.parametrize("draw", [rng.uniform, rng.normal])
@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3, 5)])
def test_a_draw_does_not_depend_on_its_company(draw: Draw, shape: tuple[int, ...]) -> None:
    keys = KEYS[:64]
    whole = draw(keys, "a", shape)
    assert whole.shape == (64, *shape)
    assert torch.equal(
        torch.cat([draw(part, "a", shape) for part in (keys[:1], keys[1:31], keys[31:])]), whole
    )
    assert torch.equal(draw(keys.flip(0), "a", shape), whole.flip(0))


@pytest.mark.parametrize("draw", [rng.uniform, rng.normal])
@pytest.mark.parametrize("shape", [(), (7,), (3, 4, 4)])
def test_numbers_drawn_for_many_keys_at_once_are_the_same(
    draw: Draw, shape: tuple[int, ...]
) -> None:
    together = KEYS[:700].clone()
    rng.draws_together(together)
    for first, end in ((0, 128), (128, 256), (130, 131), (699, 700)):
        numbers = draw(together[first:end], "a", shape)
        assert torch.equal(numbers, draw(KEYS[first:end].clone(), "a", shape))
        numbers += 1  # the caller's own
    assert torch.equal(draw(together[5:9][1:3], "a", shape), draw(KEYS[6:8].clone(), "a", shape))


def test_many_keys_are_drawn_at_once_where_that_takes_little_memory() -> None:
    together = KEYS[:700].clone()
    rng.draws_together(together)
    counted = Operations()  # type: ignore[no-untyped-call]
    with counted:
        for first in range(0, 700, 10):
            rng.normal(together[first : first + 10], "a", (16,))
    assert counted.count < 70 * 8
    rng.normal(together[:10], "b", (3, 64, 64))
    assert len(together.drawn) == 1  # type: ignore[attr-defined]


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that torch dispatches."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_keys_continue_where_others_stopped() -> None:
    assert torch.equal(torch.cat([rng.keys(3, 5), rng.keys(3, 4, start=5)]), rng.keys(3, 9))
    assert not torch.equal(rng.keys(3, 5), rng.keys(4, 5))


def test_drawing_leaves_the_keys_as_they_were() -> None:
    keys = rng.keys(0, 3)
    rng.normal(keys, "a", (2,))
    assert torch.equal(keys, rng.keys(0, 3))


def test_the_hash_is_splitmix64_as_published() -> None:
    def mix(bits: int) -> int:
        bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
        return bits ^ bits >> 31

    for key in (0, 1, -1, 2**63 - 1, -(2**63)):
        # FNV-1a of "a", as published
        start, (golden, name) = key % 2**64, (0x9E3779B97F4A7C15, 0xAF63DC4C8601EC8C)
        bits = mix((mix(start ^ name) + golden) % 2**64)
        expected = [((half >> 9) + 0.5) * 2**-23 for half in (bits % 2**32, bits >> 32)]
        assert rng.uniform(torch.tensor([key]), "a", (2,)).tolist() == [expected]
