"""Collective operations over the ranks of a run; the only file that imports torch.distributed.

All ranks call each operation in the same order. With one rank nothing is sent.
"""

from __future__ import annotations

import mmap
import os
import platform
import secrets
import shutil
import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from udl_dist.errors import TrainingError

SHARED = "/dev/shm"  # a folder whose files are memory
# Where another process sees the pixels of a row before the mark that it is filled. On ARM it may
# see the mark first.
STORES_IN_ORDER = ("x86_64", "AMD64")
GROUP_TIMEOUT = timedelta(minutes=30)
BUCKET = 2**18  # floats in one message of an ordered sum: 1 MiB


def join(backend: str, url: str, rank: int, world: int) -> None:
    """Meet the other ranks at `url`; alone a rank needs none."""
    if world > 1:
        # Collectives that wait longer are hung: the watchdog ends the run before.
        dist.init_process_group(
            backend, init_method=url, rank=rank, world_size=world, timeout=GROUP_TIMEOUT
        )


def leave() -> None:
    """End the group of ranks, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


class Ranks:
    """This process among the `world` ranks of a run; its networks are on `device`."""

    def __init__(self, device: torch.device | None = None) -> None:
        joined = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if joined else 0
        self.world = dist.get_world_size() if joined else 1
        self.device = device or torch.device("cpu")
        # Events, generators and pinned memory belong to the current device.
        if self.device.type == "cuda":
            self.device = torch.device("cuda", self.device.index or 0)
            torch.cuda.set_device(self.device)
        # Control messages go by gloo on the CPU: reading them must not wait for the GPU's queue.
        self._control = dist.new_group(backend="gloo") if self.world > 1 else None
        self._pending: tuple[Tensor, dist.Work] | None = None  # an announcement in flight

    @property
    def backend(self) -> str:
        """The backend that sends gradients; "" with one rank."""
        return str(dist.get_backend()) if self.world > 1 else ""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only one that writes files."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` whose gradients are averaged over all ranks during backward."""
        if self.world == 1:
            return module
        # Buffers are rank 0's (see `agree_on`): broadcasting them at each forward breaks
        # two forwards before a backward on CUDA (pytorch#175024).
        where = [self.device] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            # Releases before torch 2.13 do not know its new name.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return DistributedDataParallel(
                module, device_ids=where, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def synchronise_batch_norm(self, networks: Iterable[nn.Module]) -> None:
        """Have batch normalisation in `networks` take its statistics from the images of all ranks.

        Raises TrainingError on CPUs, for which torch has no kernels of it.
        """
        if self.world > 1 and self.device.type != "cuda":
            raise TrainingError(
                "train.sync_batch_norm needs GPUs: leave it out, or set run.workers to 1"
            )
        for network in networks:
            nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]

    def unsynchronised(self, module: nn.Module, on: bool) -> AbstractContextManager[None]:
        """While `on`, backward leaves gradients local; DDP sums them with those of the next one."""
        if on and isinstance(module, DistributedDataParallel):
            return module.no_sync()
        return nullcontext()

    def total(
        self, values: Mapping[str, float | Tensor], maximum: bool = False
    ) -> dict[str, float]:
        """Sums (or maxima) over ranks of named scalars; all ranks must pass the same names."""
        listed = [torch.as_tensor(value, device=self.device).double() for value in values.values()]
        # One message for all names, in the order in which every rank lists them.
        return dict(zip(values, self._reduced(torch.stack(listed), maximum).tolist(), strict=True))

    def totals(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over ranks of named tensors, on the CPU; all ranks pass equal names and shapes."""
        flat = self._reduced(torch.cat([value.double().flatten() for value in values.values()]))
        parts = torch.split(flat, [value.numel() for value in values.values()])
        return {
            name: part.view_as(value)
            for (name, value), part in zip(values.items(), parts, strict=True)
        }

    def _reduced(self, flat: Tensor, maximum: bool = False) -> Tensor:
        flat = flat.cpu()  # one wait for the device instead of one for each value
        if self.world > 1:
            dist.all_reduce(
                flat, dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM, group=self._control
            )
        return flat

    def announce(self, *numbers: int) -> tuple[int, ...]:
        """Send rank 0's numbers; return those of the call before, at first 0, so no rank waits.

        With one rank the numbers themselves are returned.
        """
        # A broadcast goes down a tree, 9 hops to 512 ranks; an all-reduce around a ring, 1,022.
        if self._control is None:
            return numbers
        outcome = (0,) * len(numbers)
        if self._pending:
            sent, work = self._pending
            work.wait()
            outcome = tuple(sent.tolist())  # rank 0's, received in place
        mine = torch.tensor(numbers, dtype=torch.int32)
        self._pending = mine, dist.broadcast(mine, 0, group=self._control, async_op=True)
        return outcome

    def await_announced(self) -> None:
        """Receive the last announcement, so that no message is in flight when a run ends."""
        if self._pending:
            self._pending[1].wait()
            self._pending = None

    def gather(self, numbers: list[float]) -> list[list[float]]:
        """The numbers of every rank, by rank, on every rank."""
        if self.world == 1:
            return [numbers]
        # all_gather needs equal shapes, so the counts go first and shorter lists are padded.
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(counts, torch.tensor([len(numbers)]), group=self._control)
        mine = torch.zeros(max(int(count) for count in counts), dtype=torch.float64)
        mine[: len(numbers)] = torch.tensor(numbers, dtype=torch.float64)
        gathered = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(gathered, mine, group=self._control)
        return [
            values[: int(count)].tolist() for values, count in zip(gathered, counts, strict=True)
        ]

    def ordered_sum(self, parts: list[Tensor]) -> Tensor:
        """The sum of the flat parts of all ranks, added one by one in the order of ranks.

        A pipelined chain: each rank receives the sum so far in buckets, adds its parts and sends it
        on; the last rank broadcasts the result. Float addition is not associative, so this order is
        what makes the bits independent of the world size.
        """
        before, behind = self.rank - 1, self.rank + 1
        # Rank 0 has one part: its backward has summed its virtual ranks already.
        total = parts[0] if self.is_main else torch.empty_like(parts[0])
        sent = []
        # In buckets, so that all ranks of the chain work at the same time.
        for start in range(0, total.numel(), BUCKET):
            place = slice(start, start + BUCKET)
            if not self.is_main:
                dist.recv(total[place], before)
                for part in parts:
                    total[place] += part[place]
            if behind < self.world:
                sent.append(dist.isend(total[place], behind))
        for work in sent:
            work.wait()  # type: ignore[union-attr]
        dist.broadcast(total, self.world - 1)
        return total

    def sum_of(self, values: Tensor) -> Tensor:
        """`values` added over all ranks, in place, on the device."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def shared_zeros(self, count: int) -> NDArray[np.uint8]:
        """Zeros that the ranks of one machine share: as many bytes as the rank that asks for least.

        Where they cannot share, each has its own.
        """
        if self.world == 1:
            return np.zeros(count, np.uint8)
        count = int(-self.total({"": -float(count)}, maximum=True)[""])
        # Named by rank 0, so that two runs on a machine never meet.
        path = Path(SHARED) / f"udl-{self.broadcast_int(secrets.randbits(62)):x}"
        zeros = np.zeros(count, np.uint8)
        shares = platform.machine() in STORES_IN_ORDER
        with suppress(OSError, ValueError):  # no such folder, or nothing to map
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            os.ftruncate(file, count)
            # Pages are taken when they are written, and one too many would be a SIGBUS: half of
            # the folder stays free for others.
            if shares and count <= shutil.disk_usage(SHARED).free // 2:
                zeros = np.frombuffer(mmap.mmap(file, count), np.uint8)
            os.close(file)
        self.total({"": 0.0})  # all have opened it: without a name it ends with the last of them
        path.unlink(missing_ok=True)
        return zeros

    def broadcast_int(self, number: int) -> int:
        """Rank 0's number, on every rank."""
        value = torch.tensor([number], dtype=torch.int64)
        if self.world > 1:
            dist.broadcast(value, 0, group=self._control)
        return int(value.item())

    def broadcast_bytes(self, content: bytes) -> bytes:
        """Rank 0's bytes, on every rank; the arguments of the others are ignored."""
        size = self.broadcast_int(len(content))
        if self.world == 1 or not size:  # frombuffer takes no empty buffer
            return content if self.is_main else b""
        mine = bytearray(content if self.is_main else size)
        buffer = torch.frombuffer(mine, dtype=torch.uint8)
        dist.broadcast(buffer, 0, group=self._control)
        return bytes(mine)

    def agree_on(self, buffers: list[Tensor]) -> None:
        """Copy rank 0's buffers (running statistics of BatchNorm) to all; DDP does not."""
        if self.world > 1:
            for buffer in buffers:
                dist.broadcast(buffer, 0)  # on the device, by the backend of gradients
