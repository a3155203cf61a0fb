"""One optimiser step: the gradients of the whole global batch, phase after phase.

Only this module knows backward, autocast, accumulation and clipping, and the two ways to sum the
gradients of ranks: averaged by DDP during backward, or elastic, where the batch is cut into a fixed
number of virtual ranks whose gradients are added in order, at any world size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from udl_dist.methods import Batch
from udl_dist.training.batches import dummy_batch
from udl_dist.training.distributed import Ranks
from udl_dist.training.finite_guard import FiniteGuard
from udl_dist.training.settings import TrainSettings
from udl_dist.training.train_state import PhaseState, TrainState, like


@dataclass(frozen=True)
class Stepper:
    """Makes the steps of one rank; `on_phase`, a sign of progress, is called before each phase."""

    state: TrainState
    settings: TrainSettings
    ranks: Ranks
    guard: FiniteGuard
    on_phase: Callable[[], None]

    def step(self, batch: Batch, number: int, learning_rate: float) -> None:
        """Step `number` of the run: every phase that is due, on this rank's rows of the batch."""
        parts = self._cut(batch)
        for index, phase in enumerate(self.state.phases):
            if number % phase.phase.every == 0:
                self.on_phase()
                self._update(phase, parts, (number, index), learning_rate)

    def warm_up(self) -> None:
        """Run each phase once on black images, which changes nothing but the order of DDP's sums.

        DDP rebuilds its buckets after the first backward of a process, and with three ranks or more
        the position in a bucket decides the order of a sum: without this, the first step after a
        resume would differ in its last bits.
        """
        if self.ranks.world == 1 or self.state.virtual_ranks:
            return
        networks = self.state.method.networks
        buffers = [buffer.clone() for buffer in networks.buffers()]
        batch = dummy_batch(self.state.method, self._edges()[1], self.ranks.device)
        for phase in self.state.phases:
            phase.unfreeze_only_its_networks(self.state.method)
            loss, _ = self._loss(phase, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            phase.optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(networks.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def _update(
        self, phase: PhaseState, parts: list[Batch], place: tuple[int, int], learning_rate: float
    ) -> None:
        """Gradients of one phase, their norm and the optimiser; `place` is (step, phase)."""
        # The generator's backward goes through the discriminator and must leave no gradient there.
        phase.unfreeze_only_its_networks(self.state.method)
        phase.optimizer.zero_grad(set_to_none=True)
        if self.state.virtual_ranks:
            self._elastic_gradients(phase, parts, place)
        else:
            self._averaged_gradients(phase, parts, place)
        parameters = phase.parameters()
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.guard.check(norm, phase.optimizer)
        # The norm of the whole batch, after the sum over ranks: before it, ranks would clip apart.
        if self.settings.clip_norm:
            clip_grads_with_norm_(parameters, self.settings.clip_norm, norm)
        for group in phase.optimizer.param_groups:
            group["lr"] = learning_rate * phase.phase.rate
        phase.optimizer.step()

    def _averaged_gradients(
        self, phase: PhaseState, parts: list[Batch], place: tuple[int, int]
    ) -> None:
        step, index = place
        if index == 0:
            # Dropout draws from torch's own generator. Seeded at each step, it has no state to
            # save.
            self._seed(step, self.ranks.rank)
        for number, part in enumerate(parts):
            with self.ranks.unsynchronised(phase.module, number < len(parts) - 1):
                # A loss is a mean over its rows and DDP averages over ranks: this weight makes both
                # a mean over the global batch, however uneven the ranks' parts are.
                self._backward(phase, part, self.ranks.world / self.settings.batch_size)

    def _elastic_gradients(
        self, phase: PhaseState, parts: list[Batch], place: tuple[int, int]
    ) -> None:
        parameters, gradients = phase.parameters(), []
        for number, part in enumerate(parts):
            self._seed(*place, self.ranks.rank * len(parts) + number)
            self._backward(phase, part, 1 / self.settings.batch_size)
            # Rank 0's parts come first in the sum: its backward adds them up in this order.
            if not self.ranks.is_main:
                gradients.append(_detach_gradients(parameters))
        if self.ranks.world > 1:
            total = self.ranks.ordered_sum(gradients or [_detach_gradients(parameters)])
            sizes = [parameter.numel() for parameter in parameters]
            for parameter, gradient in zip(parameters, torch.split(total, sizes), strict=True):
                parameter.grad = like(parameter, gradient.view_as(parameter))

    def _backward(self, phase: PhaseState, batch: Batch, weight: float) -> None:
        """Add `weight` times the gradient of the loss, summed over the rows of `batch`."""
        rows = batch.images.shape[0]
        loss, plots = self._loss(phase, batch)
        # 0 x inf and 0 x nan are nan: a loss that is not finite makes every gradient nan.
        loss.backward(loss.detach() * 0 + rows * weight)  # type: ignore[no-untyped-call]
        self.guard.record(loss.detach(), plots, rows)

    def _loss(self, phase: PhaseState, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        # The forward of the loss too: each loss returns to float32 where it sums over pixels.
        bfloat16 = self.settings.precision == "bfloat16"
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=bfloat16):
            loss, plots = phase.module(phase.phase, batch)
        return loss, plots

    def _cut(self, batch: Batch) -> list[Batch]:
        edges = self._edges()
        if len(edges) == 2:
            return [batch]
        return [
            replace(
                batch,
                images=batch.images[first:end],
                keys=batch.keys[first:end],
                record_keys=batch.record_keys[first:end],
            )
            for first, end in itertools.pairwise(edges)
        ]

    def _edges(self) -> list[int]:
        settings, virtual_ranks = self.settings, self.state.virtual_ranks
        return part_edges(settings.batch_size, virtual_ranks, settings.accumulate, self.ranks)

    def _seed(self, *parts: int) -> None:
        """Seed torch's generators of the CPU and of this device; torch.manual_seed costs 1 ms."""
        # SeedSequence hashes its words, so that neighbouring steps have unrelated draws.
        words = np.random.SeedSequence((self.settings.seed, *parts)).generate_state(1, np.uint64)
        seed = int(words[0] >> np.uint64(1))
        torch.default_generator.manual_seed(seed)
        if self.ranks.device.type == "cuda":
            torch.cuda.manual_seed(seed)


def part_edges(batch_size: int, virtual_ranks: int, accumulate: int, ranks: Ranks) -> list[int]:
    """Where a rank cuts its rows: into `accumulate` parts, or at the ends of virtual ranks."""
    # Shares differ by one row where the world does not divide the batch.
    first, end = (batch_size * rank // ranks.world for rank in (ranks.rank, ranks.rank + 1))
    if not virtual_ranks:
        return [(end - first) * part // accumulate for part in range(accumulate + 1)]
    every = [batch_size * part // virtual_ranks for part in range(virtual_ranks + 1)]
    # A world that divides the virtual ranks has its own edges among these.
    return [edge - first for edge in every if first <= edge <= end]


def _detach_gradients(parameters: list[torch.nn.Parameter]) -> Tensor:
    """The gradients as one flat tensor; the parameters have none afterwards."""
    # A parameter that this part of the loss did not use has no gradient: zeros take its place.
    flat = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    )
    for parameter in parameters:
        parameter.grad = None
    return flat
