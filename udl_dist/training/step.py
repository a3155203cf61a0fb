"""One phase of one step: gradients of the whole global batch, then the optimiser.

It alone knows autocast, accumulation and clipping, and the two ways in which ranks add up their
gradients: averaged by DDP during backward, or elastic: one share of the batch after the other,
added up in their order whatever the world is.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from udl_dist.methods import Batch, Method
from udl_dist.training.distributed import Ranks
from udl_dist.training.finite_guard import Guard
from udl_dist.training.settings import TrainSettings
from udl_dist.training.train_state import Learning, Turn, like


def edges_of_parts(batch_size: int, shares: int, accumulate: int, ranks: Ranks) -> list[int]:
    """Where a rank cuts its rows: into `accumulate` parts, or where the `shares` of the global
    batch end.
    """
    first, last = (batch_size * rank // ranks.world for rank in (ranks.rank, ranks.rank + 1))
    if not shares:
        return [(last - first) * part // accumulate for part in range(accumulate + 1)]
    every = [batch_size * share // shares for share in range(shares + 1)]
    return [edge - first for edge in every if first <= edge <= last]


def cut(batch: Batch, edges: list[int]) -> list[Batch]:
    """The batch in parts."""
    if len(edges) == 2:
        return [batch]
    return [
        replace(
            batch,
            images=batch.images[a:b],
            keys=batch.keys[a:b],
            record_keys=batch.record_keys[a:b],
        )
        for a, b in itertools.pairwise(edges)
    ]


def take(
    turn: Turn,
    learning: Learning,
    parts: list[Batch],
    place: tuple[int, int, int],
    rate: float,
    settings: TrainSettings,
    ranks: Ranks,
    guard: Guard,
) -> None:
    """Let one phase take its turn; `place` is (seed, step, number of the turn)."""
    for name, network in learning.method.networks.items():
        network.requires_grad_(name in turn.phase.trains)
    turn.optimizer.zero_grad(set_to_none=True)
    if learning.shares:
        _elastic(turn, parts, place, settings, ranks, guard)
    else:
        _averaged(turn, parts, place, settings, ranks, guard)
    norm = guard.judge(turn)
    if settings.clip_norm:
        torch.nn.utils.clip_grads_with_norm_(turn.parameters(), settings.clip_norm, norm)
    for group in turn.optimizer.param_groups:
        group["lr"] = rate * turn.phase.rate
    turn.optimizer.step()


def black(method: Method, rows: int, device: torch.device) -> Batch:
    """So many black images: what stands in where none are at hand."""
    keys = torch.arange(rows, device=device)
    return Batch(torch.full((rows, *method.shape), -1.0, device=device), keys, keys, 0)


def warm_up(learning: Learning, edges: list[int], settings: TrainSettings, ranks: Ranks) -> None:
    """Run each phase once on black images, and leave no trace but the order in which DDP adds up
    gradients.

    It lays its buckets anew after the first backward of a process, and with three ranks or more the
    place in a bucket is the order of a sum: without this, the first step after a resume would
    differ in its last bits.
    """
    if ranks.world == 1 or learning.shares:
        return
    batch, device = black(learning.method, edges[1], ranks.device), ranks.device
    networks = learning.method.networks
    before = [buffer.clone() for buffer in networks.buffers()]
    for turn in learning.turns:
        for name, network in networks.items():
            network.requires_grad_(name in turn.phase.trains)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            loss, _ = turn.learner(turn.phase, batch)
        loss.backward()
        turn.optimizer.zero_grad(set_to_none=True)
    for buffer, kept in zip(networks.buffers(), before, strict=True):
        buffer.copy_(kept)


def _averaged(
    turn: Turn,
    parts: list[Batch],
    place: tuple[int, int, int],
    settings: TrainSettings,
    ranks: Ranks,
    guard: Guard,
) -> None:
    seed, step, number = place
    if number == 0:
        # Dropout and its like draw from torch's own generator: so there is no state to keep.
        _seed(ranks.device, seed, step, ranks.rank)
    for part, batch in enumerate(parts):
        with ranks.unsynchronised(turn.learner, part < len(parts) - 1):
            # A loss is a mean over its rows and DDP averages over ranks: the weight makes both a
            # mean over the global batch, however uneven the shares are.
            _learn(turn, batch, ranks.world / settings.batch_size, settings, ranks, guard)


def _elastic(
    turn: Turn,
    parts: list[Batch],
    place: tuple[int, int, int],
    settings: TrainSettings,
    ranks: Ranks,
    guard: Guard,
) -> None:
    parameters, shares = turn.parameters(), []
    for part, batch in enumerate(parts):
        seed, step, number = place
        _seed(ranks.device, seed, step, number, ranks.rank * len(parts) + part)
        _learn(turn, batch, 1 / settings.batch_size, settings, ranks, guard)
        # the first rank's shares come first: backward itself adds them up in their order
        if not ranks.leads:
            shares.append(_taken(parameters))
    if ranks.world > 1:
        total = ranks.fold(shares if shares else [_taken(parameters)])
        for parameter, gradient in zip(
            parameters, torch.split(total, [p.numel() for p in parameters]), strict=True
        ):
            parameter.grad = like(parameter, gradient.view_as(parameter))


def _taken(parameters: list[torch.nn.Parameter]) -> Tensor:
    """The gradients as one flat tensor; the parameters have none any more."""
    taken = torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
    )
    for parameter in parameters:
        parameter.grad = None
    return taken


def _learn(
    turn: Turn, batch: Batch, weight: float, settings: TrainSettings, ranks: Ranks, guard: Guard
) -> None:
    rows = batch.images.shape[0]
    with torch.autocast(
        ranks.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"
    ):
        loss, figures = turn.learner(turn.phase, batch)
    guard.backward(loss, rows * weight)
    guard.plot({"loss": loss, **figures} if guard.alone else figures, rows)


def _seed(device: torch.device, *parts: int) -> None:
    """Seed torch's generators of the CPU and of this device alone: torch.manual_seed costs 1 ms
    more.
    """
    seed = int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
