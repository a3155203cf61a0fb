"""One optimiser step: the gradients of the whole global batch, phase after phase.

Only this module knows backward, autocast, accumulation and clipping, and the two ways to sum the
gradients of ranks: averaged by DDP during backward, or elastic, where the batch is cut into a fixed
number of virtual ranks whose gradients are added in order, at any world size.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from udl_dist.methods.method import Batch, Loss, Method
from udl_dist.training import optimizers
from udl_dist.training.arithmetic import autocast
from udl_dist.training.batches import dummy_batch
from udl_dist.training.distributed import Ranks
from udl_dist.training.finite_guard import FiniteGuard
from udl_dist.training.meter import ForwardTime
from udl_dist.training.optimizers import like
from udl_dist.training.settings import Rates, TrainSettings
from udl_dist.training.train_state import PhaseState, TrainState


@dataclass(frozen=True)
class PhaseStep:
    """A phase in one step: the rank's parts of the batch, and what its loss sums over each."""

    phase: PhaseState
    parts: list[Batch]
    sums: list[dict[str, Tensor]]
    step: int
    index: int  # of the phase


@dataclass(frozen=True)
class Stepper:
    """Makes the steps of one rank; `on_phase`, a sign of progress, is called before each phase."""

    state: TrainState
    settings: TrainSettings
    ranks: Ranks
    guard: FiniteGuard
    forward: ForwardTime
    on_phase: Callable[[], None]

    def step(self, batch: Batch, number: int, rates: Rates) -> None:
        """Step `number` of the run: every phase that is due, on this rank's rows of the batch."""
        if not self.state.virtual_ranks:
            # Dropout draws from torch's own generator. Seeded at each step, it has no state to
            # save.
            self._seed(number, self.ranks.rank)
        parts = self._cut(batch)
        sums: list[dict[str, Tensor]] = [{} for _ in parts]
        for index, phase in enumerate(self.state.phases):
            asked = phase.phase
            if number % asked.every == 0 and batch.seen >= asked.start_images:
                self.on_phase()
                work = PhaseStep(phase, parts, sums, number, index)
                self._update(work, rates)
        if type(self.state.method).after_step is not Method.after_step:
            self._after_step(sums)

    def warm_up(self) -> None:
        """Run each phase once on black images, which changes nothing but the order of DDP's sums.

        DDP rebuilds its buckets after the first backward of a process, and with three ranks or more
        the position in a bucket decides the order of a sum: without this, the first step after a
        resume would differ in its last bits.
        """
        if self.ranks.world == 1 or self.state.virtual_ranks:
            return
        method = self.state.method
        buffers = [buffer.clone() for buffer in method.own_buffers()]
        batch = dummy_batch(method, self._edges()[1], self.ranks.device)
        for phase in self.state.phases:
            phase.unfreeze_only_its_networks(method)
            self._loss(phase, batch).value.backward()  # type: ignore[no-untyped-call]
            phase.optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(method.own_buffers(), buffers, strict=True):
            buffer.copy_(before)

    def _update(self, work: PhaseStep, rates: Rates) -> None:
        """Gradients of one phase, their norm and the optimiser."""
        phase, parameters = work.phase, work.phase.parameters()
        # The generator's backward goes through the discriminator and must leave no gradient there.
        # A lone phase has its networks from the start: each call walks over all their modules.
        if len(self.state.phases) > 1:
            phase.unfreeze_only_its_networks(self.state.method)
        # `zero_grad` spends longer on its profiling hooks than on this.
        for parameter in parameters:
            parameter.grad = None
        if self.state.virtual_ranks:
            self._elastic_gradients(work)
        else:
            self._averaged_gradients(work)
        # Not by torch's `get_total_norm`, which takes a third longer: it looks at devices first.
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        self.guard.check(norm, phase.optimizer, self.settings.skip_norm)
        # The norm of the whole batch, after the sum over ranks: before it, ranks would clip apart.
        if self.settings.clip_norm:
            clip_grads_with_norm_(parameters, self.settings.clip_norm, norm)
        for group in phase.optimizer.param_groups:
            group["lr"] = rates.learning_rate * phase.phase.optimizer.rate
            if self.settings.beta2_end and phase.phase.optimizer.beta2 is None:
                group["betas"] = (group["betas"][0], rates.beta2)
        optimizers.step(phase.optimizer)

    def _after_step(self, parts: list[dict[str, Tensor]]) -> None:
        """Give the method the sums of the global batch, added over parts and ranks."""
        method, first = self.state.method, parts[0]
        if first:  # else no phase of this step has sums
            # In double: sums over any number of ranks agree to the last digits of a float32.
            flat = [
                torch.cat([value.detach().double().flatten() for value in sums.values()])
                for sums in parts
            ]
            total = self._summed(flat)
            split = torch.split(total, [value.numel() for value in first.values()])
            summed = dict(zip(first, split, strict=True))
            self.guard.check_sums(summed)
            first = {
                name: summed[name].view_as(value).to(value.dtype) for name, value in first.items()
            }
        with torch.no_grad(), self.state.only_buffers_change():
            method.after_step(first)

    def _summed(self, parts: list[Tensor]) -> Tensor:
        """The sum of flat tensors over all parts and ranks; of an elastic run in their order."""
        elastic = self.state.virtual_ranks and self.ranks.world > 1
        if elastic and not self.ranks.is_main:
            return self.ranks.ordered_sum(parts)
        total = functools.reduce(torch.add, parts)
        return self.ranks.ordered_sum([total]) if elastic else self.ranks.sum_of(total)

    def _averaged_gradients(self, work: PhaseStep) -> None:
        for number in range(len(work.parts)):
            with self.ranks.unsynchronised(work.phase.module, number < len(work.parts) - 1):
                # A loss is a mean over its rows and DDP averages over ranks: this weight makes both
                # a mean over the global batch, however uneven the ranks' parts are.
                self._backward(work, number, self.ranks.world / self.settings.batch_size)

    def _elastic_gradients(self, work: PhaseStep) -> None:
        parameters, gradients = work.phase.parameters(), []
        for number in range(len(work.parts)):
            self._seed(work.step, work.index, self.ranks.rank * len(work.parts) + number)
            self._backward(work, number, 1 / self.settings.batch_size)
            # Rank 0's parts come first in the sum: its backward adds them up in this order.
            if not self.ranks.is_main:
                gradients.append(_detach_gradients(parameters))
        if self.ranks.world > 1:
            total = self.ranks.ordered_sum(gradients or [_detach_gradients(parameters)])
            sizes = [parameter.numel() for parameter in parameters]
            for parameter, gradient in zip(parameters, torch.split(total, sizes), strict=True):
                parameter.grad = like(parameter, gradient.view_as(parameter))

    def _backward(self, work: PhaseStep, number: int, weight: float) -> None:
        """Add `weight` times the gradient of the loss, summed over the rows of part `number`."""
        batch = work.parts[number]
        rows = batch.images.shape[0]
        with self.forward.running():
            loss = self._loss(work.phase, batch)
        value, share = loss.value.detach(), rows * weight

        def scaled(one: Tensor) -> Tensor:
            # 0 x inf and 0 x nan are nan: a loss that is not finite makes every gradient nan.
            first = torch.addcmul(one, one, value, value=0)
            return first if share == 1 else first * share

        # By a hook: given to `backward`, it would have torch import sympy, 0.5 s of a start.
        loss.value.register_hook(scaled)  # type: ignore[no-untyped-call]
        loss.value.backward()  # type: ignore[no-untyped-call]
        self.guard.record(loss, rows)
        work.sums[number] |= loss.sums

    def _loss(self, phase: PhaseState, batch: Batch) -> Loss:
        # The forward of the loss too: each loss returns to float32 where it sums over pixels.
        with autocast(self.ranks.device, self.settings.precision):
            loss: Loss = phase.module(phase.phase, batch)
        return loss

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
                labels=None if batch.labels is None else batch.labels[first:end],
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
