"""Which of how many ranks this process is, and the few collective acts there are. Only here is
torch.distributed known.

Every act is called by all ranks in the same order. With one rank nothing is sent.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

BUCKET = 2**18  # numbers that travel at once in an elastic sum


class Ranks:
    """This process among its `world`; `device` is where its networks live."""

    def __init__(self, device: torch.device | None = None) -> None:
        joined = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if joined else 0
        self.world = dist.get_world_size() if joined else 1
        self.device = device or torch.device("cpu")
        # events, generators and pinned memory belong to the current device
        if self.device.type == "cuda":
            self.device = torch.device("cuda", self.device.index or 0)
            torch.cuda.set_device(self.device)
        # Words travel apart from gradients, and on the CPU: reading them must not wait for the
        # device.
        self._words = dist.new_group(backend="gloo") if self.world > 1 else None
        self._pending: tuple[Tensor, dist.Work] | None = None

    @property
    def backend(self) -> str:
        """What gradients travel by; "" where nothing does."""
        return str(dist.get_backend()) if self.world > 1 else ""

    @property
    def leads(self) -> bool:
        """Whether this rank is the one that writes."""
        return self.rank == 0

    def wrap(self, learner: nn.Module) -> nn.Module:
        """`learner` whose gradients are averaged over all ranks during backward."""
        if self.world == 1:
            return learner
        # Buffers are rank 0's (see `agree_on_buffers`): broadcasting them at each forward breaks
        # two forwards before a backward on CUDA (pytorch#175024).
        where = [self.device] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            # Its new name (torch 2.13) is unknown to older releases.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return DistributedDataParallel(
                learner, device_ids=where, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def unsynchronised(self, learner: nn.Module, on: bool) -> AbstractContextManager[None]:
        """While `on`, backward keeps gradients local: all parts of an accumulated batch but the
        last.
        """
        return (
            learner.no_sync()
            if on and isinstance(learner, DistributedDataParallel)
            else nullcontext()
        )

    def total(
        self, values: Mapping[str, float | Tensor], maximum: bool = False
    ) -> dict[str, float]:
        """The sums (or maxima) over ranks of named scalars, equal on each rank; names are the same
        on all.
        """
        listed = [torch.as_tensor(value, device=self.device).double() for value in values.values()]
        return dict(zip(values, self._reduced(torch.stack(listed), maximum).tolist(), strict=True))

    def totals(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums over ranks of named tensors, on the CPU; names and shapes are the same on all
        ranks.
        """
        flat = self._reduced(torch.cat([value.double().flatten() for value in values.values()]))
        parts = torch.split(flat, [value.numel() for value in values.values()])
        return {
            name: part.view_as(value)
            for (name, value), part in zip(values.items(), parts, strict=True)
        }

    def _reduced(self, flat: Tensor, maximum: bool = False) -> Tensor:
        flat = flat.cpu()  # one wait for the device, not one a value
        if self.world > 1:
            dist.all_reduce(
                flat, dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM, group=self._words
            )
        return flat

    def announce(self, *flags: bool) -> tuple[bool, ...]:
        """Send rank 0's flags of this step to all ranks; return those of the *last* step, so that
        nobody waits.

        A broadcast goes down a tree: 9 hops to 512 ranks, where a sum over them goes around a ring
        of 1,022.
        """
        if self._words is None:
            return flags
        outcome = (False,) * len(flags)
        if self._pending:
            sent, work = self._pending
            work.wait()
            outcome = tuple(bool(flag) for flag in sent.tolist())
        mine = torch.tensor(flags, dtype=torch.int32)
        self._pending = mine, dist.broadcast(mine, 0, group=self._words, async_op=True)
        return outcome

    def await_announced(self) -> None:
        """Receive the last announcement, so that no message is left on its way."""
        if self._pending:
            self._pending[1].wait()
            self._pending = None

    def gather(self, numbers: list[float]) -> list[list[float]]:
        """The numbers of every rank, by rank, on every rank."""
        if self.world == 1:
            return [numbers]
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(counts, torch.tensor([len(numbers)]), group=self._words)
        mine = torch.zeros(max(int(count) for count in counts), dtype=torch.float64)
        mine[: len(numbers)] = torch.tensor(numbers, dtype=torch.float64)
        everybody = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(everybody, mine, group=self._words)
        return [
            theirs[: int(count)].tolist() for theirs, count in zip(everybody, counts, strict=True)
        ]

    def fold(self, shares: list[Tensor]) -> Tensor:
        """The sum of the flat shares of all ranks, each added to the sum of those before it, in the
        order of ranks.

        A chain: a rank takes the sum so far from the one before it, adds its shares one by one and
        hands it on; in buckets, so that all are at work at once. The last one tells everybody.
        """
        before, behind = self.rank - 1, self.rank + 1
        total = shares[0] if self.leads else torch.empty_like(shares[0])
        sent = []
        for start in range(0, total.numel(), BUCKET):
            place = slice(start, start + BUCKET)
            if not self.leads:
                dist.recv(total[place], before)
                for share in shares:
                    total[place] += share[place]
            if behind < self.world:
                sent.append(dist.isend(total[place], behind))
        for work in sent:
            work.wait()  # type: ignore[union-attr]
        dist.broadcast(total, self.world - 1)
        return total

    def from_leader(self, number: int) -> int:
        """Rank 0's number, on every rank."""
        told = torch.tensor([number], dtype=torch.int64)
        if self.world > 1:
            dist.broadcast(told, 0, group=self._words)
        return int(told.item())

    def bytes_from_leader(self, content: bytes) -> bytes:
        """Rank 0's bytes, on every rank; what the others give is not looked at."""
        if self.world == 1:
            return content
        size = self.from_leader(len(content))
        buffer = (
            torch.frombuffer(bytearray(content if self.leads else size), dtype=torch.uint8)
            if size
            else None
        )
        if buffer is not None:
            dist.broadcast(buffer, 0, group=self._words)
        return b"" if buffer is None else buffer.numpy().tobytes()

    def agree_on_buffers(self, networks: nn.Module) -> None:
        """Give every rank rank 0's buffers (running statistics of BatchNorm), which no gradient
        makes equal.
        """
        if self.world > 1:
            for buffer in networks.buffers():
                dist.broadcast(buffer, 0)
