"""No step is taken on a loss or a gradient that is no number. All ranks find the same and decide
the same.

A loss that is not finite makes the gradient of its rank not finite, the sum over ranks carries that
to every rank, and the norm of the sum says so: there is nothing to send. The optimiser's kernel
reads the verdict where it is made, so a bad step is never applied; the host reads it one step later
on a GPU, and waits for nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from udl_dist.data.loader.records import Records
from udl_dist.errors import TrainingError
from udl_dist.training.distributed import Ranks
from udl_dist.training.meter import Sums
from udl_dist.training.train_state import Learning, Turn

SKIPS = 3  # steps in a row that may be left out
# steps that the host reads verdicts behind the device, by its type; else it reads them at once
LAG = {"cuda": 1}
ROLLBACKS = 2  # times that a run may go back to its last checkpoint


@dataclass(frozen=True)
class Kept:
    """What a checkpoint keeps beside tensors: sums for the next point, steps left out in a row,
    rollbacks.
    """

    sums: Sums = field(default_factory=dict)
    skips: int = 0
    rollbacks: int = 0


@dataclass(frozen=True)
class Rejected:
    """A step that was not taken, after `images`: by rank, the losses of its phases and the numbers
    of its records.
    """

    images: int
    losses: list[list[float]]
    records: list[list[int]]

    def why(self) -> str:
        """What was no number, and where."""
        bad = [
            f"the loss of rank {rank} is {loss:g}"
            for rank, losses in enumerate(self.losses)
            for loss in losses
            if loss - loss != 0
        ]
        return " and ".join(bad) or "every loss is finite, but the gradient is not"


class Diverged(TrainingError):
    """More steps in a row than `SKIPS` were no numbers, in a run that had gone back `rollbacks`
    times.
    """

    def __init__(self, message: str, rollbacks: int) -> None:
        super().__init__(message)
        self.rollbacks = rollbacks


@dataclass
class Step:
    """One step until it is known whether it was a good one."""

    images: int
    records: Records
    buffers: list[Tensor]
    plots: list[tuple[dict[str, Tensor], int]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    flags: list[Tensor] = field(default_factory=list)
    told: Tensor | None = None
    copied: torch.cuda.Event | None = None


class Guard:
    """Watches the steps of one rank."""

    def __init__(self, learning: Learning, ranks: Ranks) -> None:
        self.alone = len(learning.turns) == 1  # one phase: its loss is the loss
        self._ranks = ranks
        self._buffers = list(learning.method.networks.buffers())
        self._step: Step
        self._unread: deque[Step] = deque()

    def begin(self, images: int, records: Records) -> None:
        """A step begins; running statistics of now are kept, for a forward spoils them before
        anybody can know.
        """
        self._step = Step(images, records, [buffer.clone() for buffer in self._buffers])

    def backward(self, loss: Tensor, weight: float) -> None:
        """Gradients of `weight` x loss; none of them is a number if the loss is not (0 x inf and 0
        x nan are nan).
        """
        loss.backward(loss.detach() * 0 + weight)  # type: ignore[no-untyped-call]
        self._step.losses.append(loss.detach())

    def plot(self, figures: dict[str, Tensor], rows: int) -> None:
        """Figures that count if the step is a good one."""
        self._step.plots.append((figures, rows))

    def judge(self, turn: Turn) -> Tensor:
        """The norm of the gradients of all ranks; if it is no number, this turn's optimiser will
        not move.
        """
        norm = get_total_norm([value.grad for value in turn.parameters() if value.grad is not None])
        flag = (~norm.isfinite()).float()
        turn.optimizer.found_inf = flag  # type: ignore[attr-defined]  # as torch's own GradScaler tells it
        self._step.flags.append(flag)
        return norm

    def end(self) -> None:
        """The step is over; its verdict is on its way."""
        step = self._step
        step.told = torch.stack(step.flags).amax()
        if self._ranks.device.type == "cuda":
            there = step.told
            step.told = torch.empty_like(there, device="cpu", pin_memory=True).copy_(
                there, non_blocking=True
            )
            step.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            step.copied.record()
        self._unread.append(step)

    def read(self, all_of_them: bool) -> Iterator[tuple[Step, Rejected | None]]:
        """The steps whose verdict can be read without waiting for the last one, or all, oldest
        first.
        """
        lag = 0 if all_of_them else LAG.get(self._ranks.device.type, 0)
        while len(self._unread) > lag:
            step = self._unread.popleft()
            if step.copied is not None:
                step.copied.synchronize()
            assert step.told is not None
            yield step, self._reject(step) if step.told.item() else None

    def _reject(self, step: Step) -> Rejected:
        """Give back the running statistics, and gather what each rank had."""
        for buffer, kept in zip(self._buffers, step.buffers, strict=True):
            buffer.copy_(kept)
        # A step that began before this verdict was read has copied statistics that this one had
        # spoiled. If it was a good one, what it added to them is lost.
        for later in self._unread:
            later.buffers = step.buffers
        losses = self._ranks.gather([float(loss) for loss in step.losses])
        records = self._ranks.gather([float(number) for number in step.records.records.tolist()])
        return Rejected(
            step.images, losses, [[int(number) for number in numbers] for numbers in records]
        )
