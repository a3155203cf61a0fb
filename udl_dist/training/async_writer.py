"""Off the step's path: the state is copied, then a thread writes the copy while the training goes
on.

One writing at a time. A checkpoint that comes before the last one is written waits for it, but not
for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from udl_dist.training.checkpoint import Files

# that a step may stand still for a slow disk; shorter than any watchdog's patience
WAIT_SECONDS = 20.0
CLOSE_SECONDS = 600.0  # that an end waits for its checkpoint


class Copies:
    """Copies on the host in memory that is used again; pinned where they come from a GPU, which
    need not wait then.
    """

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, Tensor]] = {}
        self._copied: torch.cuda.Event | None = None

    def take(self, files: Files) -> None:
        """Copy the tensors as they are now, in the order of what the device has to do."""
        self._kept = {
            file: {name: self._copy(file, name, value) for name, value in tensors.items()}
            for file, tensors in files.items()
        }
        if any(value.is_cuda for tensors in files.values() for value in tensors.values()):
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def ready(self) -> Files:
        """The copies, once the device has made them."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._kept

    def _copy(self, file: str, name: str, value: Tensor) -> Tensor:
        kept = self._kept.get(file, {}).get(name)
        if kept is None or kept.shape != value.shape or kept.dtype != value.dtype:
            kept = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        return kept.copy_(value.detach(), non_blocking=True)


class Writer:
    """Calls `write(images, files, facts)` on a thread, then `told(images, why it failed or "")`
    there too.
    """

    def __init__(
        self,
        write: Callable[[int, Files, Mapping[str, object]], None],
        told: Callable[[int, str], None],
    ) -> None:
        self._write = write
        self._told = told
        self._copies = Copies()
        self._thread: threading.Thread | None = None

    def put(self, images: int, files: Files, facts: Mapping[str, object]) -> None:
        """Copy and begin to write; raise TimeoutError if the last writing does not end."""
        self.wait(WAIT_SECONDS)
        self._copies.take(files)
        self._thread = threading.Thread(
            target=self._run, args=(images, facts), daemon=True, name="checkpoint"
        )
        self._thread.start()

    def wait(self, seconds: float = CLOSE_SECONDS) -> None:
        """Wait for what is being written; raise TimeoutError if that takes longer."""
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                raise TimeoutError(f"the one before it is not written after {seconds:.0f} s")
            self._thread = None

    def _run(self, images: int, facts: Mapping[str, object]) -> None:
        try:
            self._write(images, self._copies.ready(), facts)
            self._told(images, "")
        except OSError as error:  # a disk that refuses never ends a training by itself
            self._told(images, error.strerror or str(error))
