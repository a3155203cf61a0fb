"""Rejects optimiser steps whose loss or gradient is not finite on any rank.

A loss that is not finite makes the gradient of its rank not finite, the sum over ranks carries that
to every rank, and the norm of the sum shows it: no message is needed. The optimiser's fused kernel
reads the flag on the device, so a bad step is never applied; on a GPU the host reads it one step
later, and never waits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from udl_dist.data.loader.records import Records
from udl_dist.errors import TrainingError
from udl_dist.methods.method import Loss
from udl_dist.training.distributed import Ranks
from udl_dist.training.train_state import TrainState

MAX_SKIPS = 3  # rejected steps in a row before a run goes back to its last checkpoint
MAX_ROLLBACKS = 2  # times that a run may go back
LAG = {"cuda": 1}  # steps that the host is behind the device when it reads flags; else 0


@dataclass(frozen=True)
class RejectedStep:
    """A rejected step, after `images`: losses of phases and record numbers, by rank.

    `others` names what else is not finite, alike on every rank: the gradient, sums of `after_step`.
    """

    images: int
    losses: list[list[float]]
    records: list[list[int]]
    others: tuple[str, ...]

    def why(self) -> str:
        """What was not finite, and of a loss on which rank."""
        bad = [
            f"the loss of rank {rank} is {loss:g}"
            for rank, losses in enumerate(self.losses)
            for loss in losses
            if not math.isfinite(loss)
        ]
        others = " and ".join(self.others)
        return " and ".join(bad) or f"every loss is finite, but not {others}"


class Diverged(TrainingError):
    """More than `MAX_SKIPS` bad steps in a row, in a run that had gone back `rollbacks` times."""

    def __init__(self, message: str, rollbacks: int) -> None:
        super().__init__(message)
        self.rollbacks = rollbacks


@dataclass
class PendingStep:
    """One step whose flag the host has not read yet."""

    images: int
    records: Records
    buffers: list[Tensor]
    plots: list[tuple[dict[str, Tensor], int]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    flags: list[Tensor] = field(default_factory=list)  # of each gradient
    sums: Mapping[str, Tensor] = field(default_factory=dict)  # flat
    rejected: Tensor | None = None
    copied: torch.cuda.Event | None = None


class FiniteGuard:
    """Checks the steps of one rank."""

    def __init__(self, state: TrainState, ranks: Ranks) -> None:
        self._plots_loss = len(state.phases) == 1  # with one phase, its loss is "the" loss
        self._ranks = ranks
        self._buffers = state.method.own_buffers()
        self._step: PendingStep
        self._pending: deque[PendingStep] = deque()

    def begin(self, images: int, records: Records) -> None:
        """Start a step; buffers are copied, since a bad forward spoils running statistics."""
        copies = [torch.empty_like(buffer) for buffer in self._buffers]
        if copies:  # of BatchNorm; one call is one launch on a GPU
            torch._foreach_copy_(copies, self._buffers)
        self._step = PendingStep(images, records, copies)

    def record(self, loss: Loss, rows: int) -> None:
        """Add the loss and the plots of one backward; they count unless the step is rejected."""
        value, plots = loss.value.detach(), dict(loss.plots)
        self._step.losses.append(value)
        self._step.plots.append(({"loss": value, **plots} if self._plots_loss else plots, rows))

    def check_sums(self, sums: Mapping[str, Tensor]) -> None:
        """Reject the step if the flat sums that `after_step` gets are not all finite."""
        self._step.sums = sums

    def check(self, norm: Tensor, optimizer: torch.optim.Optimizer, most: float) -> None:
        """Keep `optimizer` from moving if the gradient norm over all ranks is not finite.

        Or if it is above `most`, which leaves out the phase and does not reject the step; 0: never.
        """
        # inf - inf and nan - nan are nan, which is not 0. `isfinite` has three launches more.
        flag = (norm - norm).ne(0).float()
        self._step.flags.append(flag)
        if most:
            # The norm is of the sum over ranks, so all ranks skip or none does.
            skipped = (norm > most).float()
            self._step.plots.append(({"skipped_steps": skipped}, 1))
            flag = torch.maximum(flag, skipped)
        # With 1 in `found_inf` a fused optimiser leaves weights and moments as they are.
        optimizer.found_inf = flag  # type: ignore[attr-defined]  # the attribute GradScaler sets

    def end(self) -> None:
        """Finish the step; its flag is copied to the host without waiting."""
        step = self._step
        # One bad phase rejects the step, but phases before it have moved their networks.
        sums = [torch.cat([*step.sums.values()])] if step.sums else []
        flags = [*step.flags, *((~flat.isfinite().all()).float() for flat in sums)]
        step.rejected = flags[0] if len(flags) == 1 else torch.stack(flags).amax()
        if self._ranks.device.type == "cuda":
            # Pinned: a copy to ordinary memory would wait for the device.
            on_host = torch.empty_like(step.rejected, device="cpu", pin_memory=True)
            step.rejected = on_host.copy_(step.rejected, non_blocking=True)
            step.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            step.copied.record()
        self._pending.append(step)

    def finished(self, all_of_them: bool) -> Iterator[tuple[PendingStep, RejectedStep | None]]:
        """The oldest steps, up to the lag or all of them, each with its rejection or None."""
        lag = 0 if all_of_them else LAG.get(self._ranks.device.type, 0)
        while len(self._pending) > lag:
            step = self._pending.popleft()
            if step.copied is not None:
                step.copied.synchronize()
            assert step.rejected is not None
            yield step, self._reject(step) if step.rejected.item() else None

    def _reject(self, step: PendingStep) -> RejectedStep:
        """Restore the buffers, and gather losses and records of every rank."""
        for buffer, before in zip(self._buffers, step.buffers, strict=True):
            buffer.copy_(before)
        # A later step that began before this flag was read has copied spoiled statistics. What it
        # added to them is lost, even if it was a good one.
        for later in self._pending:
            later.buffers = step.buffers
        # Collective: every rank has the same flag, so every rank comes here.
        losses = self._ranks.gather([float(loss) for loss in step.losses])
        records = self._ranks.gather([float(number) for number in step.records.records.tolist()])
        whole = [[int(number) for number in numbers] for numbers in records]
        others = ["the gradient"] if any(flag.item() for flag in step.flags) else []
        others += [f"the sum {name}" for name, sum_ in step.sums.items() if not _finite(sum_)]
        return RejectedStep(step.images, losses, whole, tuple(others))


def _finite(values: Tensor) -> bool:
    return bool(values.isfinite().all())
