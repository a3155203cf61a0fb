"""Codebooks against k-means and an independent package; restarts, FSQ and the use of codes."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ, VectorQuantize

from udl_dist.core import rng
from udl_dist.core.config_schema import from_dict
from udl_dist.errors import UsageError
from udl_dist.methods.losses import codebooks, quantizers
from udl_dist.methods.losses.quantizers import QuantizerSettings, new_quantizer

SMALL = {"codes": 16, "dimensions": 4}
EUCLID = SMALL | {"normalise": False}
LEARNED = pytest.mark.parametrize("kind", ["ema", "gradient"])
NORMALISE = pytest.mark.parametrize("normalise", [False, True], ids=["euclid", "unit"])


def quantizer(**values: Any) -> Any:
    """The quantizer of these settings, built from seed 0."""
    torch.manual_seed(0)
    return new_quantizer(from_dict(QuantizerSettings, values, "method.quantizer."))


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rows(latents: Tensor) -> Tensor:  # [B, D, h, w] -> [B·h·w, D]
    return latents.permute(0, 2, 3, 1).flatten(0, 2)


def placed(of: Any, entries: Tensor) -> Any:
    """The quantizer `of` with these entries, each as if used once."""
    of.codebook.copy_(entries)
    of.counts.fill_(1)
    of.totals.copy_(entries)
    return of


def stepped(of: Any, latents: Tensor, seed: int = 0) -> Any:
    """The quantizer `of` after a step with these latents."""
    of.after_step(of(latents, rng.keys(seed, len(latents))).sums)
    return of


# --- codebooks


def test_a_step_without_decay_is_one_of_kmeans() -> None:
    latents = drawn(32, 4, 5, 5)
    entries = rows(latents)[::50].clone()
    ours = placed(quantizer(**EUCLID, decay=0, dead_below=0), entries)
    means = KMeans(16, init=entries.numpy(), n_init=1, max_iter=1).fit(rows(latents).numpy())
    stepped(ours, latents)
    torch.testing.assert_close(ours.codebook, torch.tensor(means.cluster_centers_))
    assert ours.counts.sum() == 32 * 25


@NORMALISE
def test_three_steps_are_those_of_vector_quantize_pytorch(normalise: bool) -> None:
    theirs = VectorQuantize(
        dim=4,
        codebook_size=16,
        decay=0.9,
        eps=codebooks.EPSILON,
        commitment_weight=0.25,
        threshold_ema_dead_code=0,
        use_cosine_sim=normalise,
        accept_image_fmap=True,
    )
    entries = nn.functional.normalize(drawn(16, 4, seed=2)) if normalise else drawn(16, 4, seed=2)
    ours = placed(quantizer(**SMALL, normalise=normalise, decay=0.9, dead_below=0), entries)
    theirs._codebook.embed.copy_(entries[None])
    theirs._codebook.embed_avg.copy_(entries[None])
    for seed in range(3):
        latents = drawn(3, 4, 5, 6, seed=seed)
        quantized, indices, loss = theirs(latents)
        found = ours(latents, rng.keys(seed, 3))
        assert torch.equal(found.indices, indices)
        torch.testing.assert_close(found.latents, quantized)
        torch.testing.assert_close(found.loss.mean(), loss.squeeze())
        ours.after_step(found.sums)
        torch.testing.assert_close(ours.codebook, theirs._codebook.embed[0])
        torch.testing.assert_close(ours.counts, theirs._codebook.cluster_size[0])


@LEARNED
@NORMALISE
def test_latents_become_their_entries_and_gradients_pass(kind: str, normalise: bool) -> None:
    ours = quantizer(kind=kind, **SMALL, normalise=normalise)
    latents = drawn(2, 4, 3, 5).requires_grad_()
    found = ours(latents, rng.keys(1, 2))
    assert found.indices.shape == (2, 3, 5)
    assert found.indices.dtype == torch.int64
    assert torch.equal(found.latents, ours.lookup(found.indices))
    assert torch.equal(ours.indices(latents), found.indices)
    # Of unit length or not, the nearest entry is that of the raw latent: as `VQModel` looks up.
    distances = torch.cdist(rows(latents), ours.codebook)
    assert torch.equal(found.indices.flatten(), distances.argmin(1))
    weights = drawn(2, 4, 3, 5, seed=3)
    (slope,) = torch.autograd.grad((found.latents * weights).sum(), latents)
    plain = nn.functional.normalize(latents, dim=1) if normalise else latents
    (expected,) = torch.autograd.grad((plain * weights).sum(), latents)
    torch.testing.assert_close(slope, expected)
    if normalise:
        torch.testing.assert_close(found.latents.norm(dim=1), torch.ones(2, 3, 5))


def test_commitment_weighs_the_pull_on_latents_and_not_that_on_entries() -> None:
    ours = quantizer(kind="gradient", **EUCLID, commitment=0.25)
    latents = drawn(2, 4, 3, 3).requires_grad_()
    found = ours(latents, rng.keys(1, 2))
    found.loss.mean().backward()
    entries = ours.weight.detach()[found.indices.flatten()]  # [N, D]
    apart = (rows(latents) - entries).detach() * 2 / latents.numel()
    torch.testing.assert_close(rows(latents.grad), 0.25 * apart)  # type: ignore[arg-type]
    pulled = torch.zeros_like(ours.weight).index_add_(0, found.indices.flatten(), -apart)
    torch.testing.assert_close(ours.weight.grad, pulled)
    squares = (rows(latents) - entries).square().view(2, -1).mean(1)
    torch.testing.assert_close(found.loss, 1.25 * squares)


def test_the_loss_of_a_moving_average_has_the_commitment_alone() -> None:
    ours, latents = quantizer(**EUCLID), drawn(2, 4, 3, 3)
    found = ours(latents, rng.keys(1, 2))
    entries = ours.codebook[found.indices.flatten()]
    squares = (rows(latents) - entries).square().view(2, -1).mean(1)
    torch.testing.assert_close(found.loss, 0.25 * squares)
    assert not list(ours.parameters())


@pytest.mark.parametrize("kind", ["ema", "gradient", "fsq"])
def test_autocast_does_not_reach_a_quantizer(kind: str) -> None:
    ours = quantizer(kind=kind, **({} if kind == "fsq" else {"codes": 512, "dimensions": 4}))
    latents = drawn(4, 4, 16, 16)
    exact = ours(latents, rng.keys(1, 4))
    with torch.autocast("cpu", torch.bfloat16):
        cast = ours(latents, rng.keys(1, 4))
        coarse = nn.functional.normalize(rows(latents)) @ drawn(4, 512)
        assert coarse.dtype == torch.bfloat16
        # What a network hands over under autocast is rounded once, and not again in here.
        handed = ours(latents.bfloat16(), rng.keys(1, 4)).loss
        assert torch.equal(handed, ours(latents.bfloat16().float(), rng.keys(1, 4)).loss)
    assert torch.equal(cast.indices, exact.indices)
    assert torch.equal(cast.latents, exact.latents)
    assert cast.loss.dtype == torch.float32


def test_a_lookup_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, latents = quantizer(**SMALL), drawn(3, 4, 5, 5)
    whole = ours.indices(latents)
    for scores in (1, 16 * 7):
        monkeypatch.setattr(codebooks, "SCORES", scores)
        assert torch.equal(ours.indices(latents), whole)


@pytest.mark.parametrize("kind", ["ema", "gradient", "fsq"])
def test_a_forward_changes_no_state_and_runs_without_numbers(kind: str) -> None:
    ours = quantizer(kind=kind)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    latents, keys = drawn(2, ours.dimensions, 3, 3), rng.keys(1, 2)
    one, other = ours(latents, keys), ours(latents, keys)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    assert all(torch.equal(value, other.sums[name]) for name, value in one.sums.items())
    with torch.device("meta"):
        planned = quantizer(kind=kind)
        found = planned(torch.zeros(2, ours.dimensions, 3, 3), torch.zeros(2, dtype=torch.int64))
    assert found.latents.shape == latents.shape
    assert found.loss.shape == (2,)


# --- restarts


def test_the_first_step_puts_unused_entries_on_latents_of_the_batch() -> None:
    ours = stepped(quantizer(**SMALL), drawn(40, 4, 8, 8) * 0.01 + torch.ones(4, 1, 1))
    # At random, half of the entries would look away from latents that all look one way.
    assert (ours.codebook @ torch.full((4,), 0.5) > 0.99).all()
    torch.testing.assert_close(ours.codebook.norm(dim=1), torch.ones(16))


@NORMALISE
def test_a_restart_sets_the_averages_too(normalise: bool) -> None:
    entries = nn.functional.normalize(drawn(16, 4))
    entries[3] = torch.tensor([0.0, 0.0, 0.0, 50.0])
    ours = placed(quantizer(**SMALL, normalise=normalise), entries)
    ours.counts[3], ours.totals[3] = 1e-4, entries[3] * 1e-4
    latents = drawn(32, 4, 8, 8)
    found = ours(latents, rng.keys(1, 32))
    found.sums["codes"][3] = 0
    ours.after_step(found.sums)
    restarted = ours.codebook[3].clone()
    assert restarted.norm() < 10
    used = 0.99 * (15 + 1e-4) + 0.01 * found.sums["codes"][:, -1].sum()
    torch.testing.assert_close(ours.counts[3].double(), used / 16)
    torch.testing.assert_close(ours.totals[3], restarted * ours.counts[3])
    others = torch.arange(16) != 3
    torch.testing.assert_close(
        ours.counts[others].double(), 0.99 + 0.01 * found.sums["codes"][others, -1]
    )
    # A step that does not use it leaves it there, and does not restart it.
    found = ours(latents, rng.keys(2, 32))
    found.sums["codes"][3] = 0
    ours.after_step(found.sums)
    torch.testing.assert_close(ours.codebook[3], restarted, rtol=1e-4, atol=1e-4)


def test_without_restarts_an_unused_entry_stays() -> None:
    ours = quantizer(**SMALL, dead_below=0)
    start, latents = ours.codebook.clone(), torch.ones(8, 4, 3, 3)
    stepped(ours, latents)
    assert (ours.counts > 0).sum() == 1
    unused = ours.counts == 0
    assert torch.equal(ours.codebook[unused], start[unused])


def test_a_batch_of_fewer_positions_than_entries_restarts_some() -> None:
    ours = quantizer(codes=64, dimensions=4)
    latents = drawn(1, 4, 3, 3)
    unused = torch.ones(64, dtype=torch.bool).index_fill(0, ours.indices(latents).flatten(), False)
    start = ours.codebook.clone()
    stepped(ours, latents)
    moved = (ours.codebook != start).any(1) & unused
    assert 5 < moved.sum() <= 9
    # Each on one of the nine latents.
    nearest = ours.codebook[moved] @ nn.functional.normalize(rows(latents)).T
    torch.testing.assert_close(nearest.amax(1), torch.ones(int(moved.sum())))


def restarted(sums: Mapping[str, Tensor]) -> Any:
    """An untrained quantizer after a step with these sums."""
    ours = quantizer(**SMALL)
    ours.after_step(sums)
    return ours


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(9)), cuts=st.sets(st.integers(1, 8)))
def test_a_restart_is_the_same_however_the_batch_is_cut(order: list[int], cuts: set[int]) -> None:
    latents, keys = drawn(9, 4, 6, 6), rng.keys(5, 9)
    ours = quantizer(**SMALL)
    whole = ours(latents, keys).sums
    parts = [
        ours(latents[order[first:end]], keys[order[first:end]]).sums
        for first, end in itertools.pairwise([0, *sorted(cuts), 9])
    ]
    summed = {name: sum((part[name] for part in parts), torch.zeros(())) for name in whole}
    for name, value in whole.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(summed[name], value)
    one, other = restarted(whole), restarted(summed)
    for name in ("codebook", "counts", "totals"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))


def test_a_restart_takes_one_latent_and_each_as_often_as_any() -> None:
    """Latents of eight kinds: a slot is one of them, and not their mean."""
    kinds = torch.eye(8)[torch.arange(64 * 64) % 8].view(64, 8, 8, 8).permute(0, 3, 1, 2)
    ours = quantizer(codes=1024, dimensions=8, normalise=False)
    slots = ours(kinds, rng.keys(1, 64)).sums["restarts"]
    filled = slots[slots[:, -1] > 0]
    assert len(filled) > 0.97 * 1024  # all but exp(-4) are expected
    shares = filled[:, :-1] / filled[:, -1:]
    largest, which = shares.max(1)
    assert (largest > 0.99).double().mean() > 0.9
    assert (torch.bincount(which, minlength=8) - len(filled) / 8).abs().max() < 4 * math.sqrt(128)


def clusters(seed: int) -> Tensor:  # [16, 2, 4, 4]
    """Points of eight narrow clusters on a ring, the same number of each."""
    angles = (torch.arange(256) % 8) * math.pi / 4
    centres = torch.stack([angles.cos(), angles.sin()], 1)
    points = centres + 0.02 * drawn(256, 2, seed=seed)
    return points.view(16, 4, 4, 2).permute(0, 3, 1, 2)


@pytest.mark.parametrize("dead_below", [0, 0.03])
def test_restarts_bring_all_entries_of_a_bad_start_into_use(dead_below: float) -> None:
    settings = {"codes": 8, "dimensions": 2, "normalise": False, "decay": 0.9}
    ours = quantizer(**settings, dead_below=dead_below)
    away = torch.tensor([9.0, 9.0]).expand(8, 2) + torch.arange(8)[:, None]
    placed(ours, away)
    for seed in range(80):
        stepped(ours, clusters(seed), seed)
    means = quantizers.counts(ours.indices(clusters(99)), 8).mean(0)
    assert quantizers.usage(means) == (1 if dead_below else 1 / 8)


def test_a_step_replaces_no_more_entries_than_there_are_slots() -> None:
    ours = quantizer(codes=4096, dimensions=4)
    start = ours.codebook.clone()
    latents = drawn(48, 4, 16, 16)
    used = ours(latents[:1], rng.keys(1, 1)).sums["codes"]
    sums = {"codes": used, "restarts": ours(latents, rng.keys(1, 48)).sums["restarts"]}
    assert sums["restarts"].shape == (1024, 5)
    ours.after_step(sums)
    moved = (ours.codebook != start).any(1) & (used[:, -1] == 0)
    assert moved.sum() == 1024
    assert not moved[2000:].any()


# --- FSQ


def test_fsq_rounds_to_the_known_levels() -> None:
    ours = quantizer(kind="fsq", levels=[8, 5])
    latents = torch.tensor([-9.0, 0.0, 9.0]).view(3, 1, 1, 1).expand(3, 2, 1, 1)
    found = ours(latents, rng.keys(1, 3))
    assert found.latents.flatten(1).tolist() == [[-1, -1], [0, 0], [0.75, 1]]
    assert found.loss.tolist() == [0, 0, 0]
    assert not found.sums
    assert not ours.state_dict()


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [2, 3, 4], [7]])
def test_fsq_codes_go_there_and_back(levels: list[int]) -> None:
    ours = quantizer(kind="fsq", levels=levels)
    assert ours.size == math.prod(levels)
    assert ours.dimensions == len(levels)
    indices = torch.arange(ours.size).view(1, 1, -1)
    codes = ours.lookup(indices)
    assert len(torch.unique(rows(codes), dim=0)) == ours.size
    assert codes.abs().max() <= 1
    # The latents that tanh takes to these codes.
    half, scale = (torch.tensor(levels) - 1) * 1.001 / 2, torch.tensor(levels) // 2
    offset = (torch.tensor(levels) + 1) % 2 / 2
    inner = ((rows(codes) * scale + offset) / half).atanh() - (offset / half).atanh()
    latents = inner.view(1, 1, -1, len(levels)).permute(0, 3, 1, 2)
    assert torch.equal(ours.indices(latents), indices)
    torch.testing.assert_close(ours(latents, rng.keys(1, 1)).latents, codes)


def test_fsq_is_that_of_vector_quantize_pytorch_with_its_gradient() -> None:
    ours, theirs = quantizer(kind="fsq"), FSQ([8, 5, 5, 5])
    latents = (3 * drawn(2, 4, 6, 7)).requires_grad_()
    quantized, indices = theirs(latents)
    found = ours(latents, rng.keys(1, 2))
    torch.testing.assert_close(found.latents, quantized)
    assert torch.equal(found.indices, indices.long())
    weights = drawn(2, 4, 6, 7, seed=3)
    (slope,) = torch.autograd.grad((found.latents * weights).sum(), latents)
    (expected,) = torch.autograd.grad((quantized * weights).sum(), latents)
    torch.testing.assert_close(slope, expected)
    # Through the rounding the gradient is 1: that of tanh alone is left.
    half = torch.tensor([3.5035, 2.002, 2.002, 2.002]).view(4, 1, 1)
    shift = torch.tensor([0.5, 0, 0, 0]).view(4, 1, 1).div(half).atanh()
    scale = torch.tensor([4, 2, 2, 2]).view(4, 1, 1)
    by_hand = weights * half / scale * (1 - (latents + shift).tanh().square())
    torch.testing.assert_close(slope, by_hand)


# --- the use of codes


def test_counts_are_those_of_each_image() -> None:
    indices = torch.tensor([[[0, 2], [2, 2]], [[1, 1], [3, 0]]])
    assert quantizers.counts(indices, 5).tolist() == [[1, 0, 3, 0, 0], [1, 2, 0, 1, 0]]


def test_perplexity_of_uniform_use_is_the_number_of_codes_and_of_one_code_is_one() -> None:
    uniform = quantizers.counts(torch.arange(64).view(4, 4, 4), 64).mean(0)
    assert quantizers.perplexity(uniform) == pytest.approx(64)
    assert quantizers.usage(uniform) == 1
    one = quantizers.counts(torch.full((4, 4, 4), 7), 64).mean(0)
    assert quantizers.perplexity(one) == 1
    assert quantizers.usage(one) == 1 / 64
    # H = 1/2 log 2 + 2 · 1/4 log 4
    assert quantizers.perplexity(torch.tensor([2.0, 1.0, 1.0, 0.0])) == pytest.approx(2**1.5)


def test_bits_name_the_codes_of_an_image() -> None:
    assert quantizers.bits(1024, 16 * 16) == 2560
    assert quantizers.bits(1000, 1) == pytest.approx(9.9658, abs=1e-4)


# --- settings


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"levels": [8, 8]}, r"levels has no meaning when method.quantizer.kind is ema.*to fsq"),
        ({"kind": "gradient", "decay": 0.5}, "decay has no meaning .* is gradient: .* to ema"),
        ({"kind": "gradient", "dead_below": 0.0}, "dead_below has no meaning"),
        ({"kind": "fsq", "codes": 64}, "codes has no meaning"),
        ({"kind": "fsq", "dimensions": 4}, "dimensions has no meaning"),
        ({"kind": "fsq", "normalise": False}, "normalise has no meaning"),
        ({"kind": "fsq", "commitment": 1.0}, "commitment has no meaning"),
        ({"kind": "fsq", "levels": []}, "levels make 1 codes: name the levels"),
        ({"kind": "fsq", "levels": [8] * 8}, "levels make 16,777,216 codes"),
        ({"kind": "fsq", "levels": [8, 1]}, "method.quantizer.levels must be at least 2, not 1"),
        ({"codes": 1}, "method.quantizer.codes must be at least 2"),
        ({"decay": 1.0}, "method.quantizer.decay must be less than 1"),
        ({"dimensions": 1}, "two entries of unit length"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        quantizer(**values)
