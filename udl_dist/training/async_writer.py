"""Asynchronous checkpoints: the state is copied, then a thread writes the copy during training.

One write at a time: the next checkpoint waits for it, up to a time limit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from udl_dist.training.checkpoint import Files

# How long a step may wait for a slow disk; shorter than the patience of any watchdog.
WAIT_SECONDS = 20.0
CLOSE_SECONDS = 600.0  # how long the end of a run waits for its last checkpoint


class Copies:
    """Copies in host memory that is reused; pinned for a GPU, whose copies are asynchronous."""

    def __init__(self) -> None:
        self._buffers: dict[str, dict[str, Tensor]] = {}
        self._copied: torch.cuda.Event | None = None

    def copy(self, files: Files) -> None:
        """Copy the tensors, in order with the work queued on the device."""
        self._buffers = {
            file: {name: self._copy(file, name, value) for name, value in tensors.items()}
            for file, tensors in files.items()
        }
        if any(value.is_cuda for tensors in files.values() for value in tensors.values()):
            # The writing thread waits for this event, so that training need not.
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def ready(self) -> Files:
        """The copies, once the device has made them."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._buffers

    def _copy(self, file: str, name: str, value: Tensor) -> Tensor:
        buffer = self._buffers.get(file, {}).get(name)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            # At the first checkpoint, and when an optimiser has made its moments since.
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        return buffer.copy_(value.detach(), non_blocking=True)


class AsyncWriter:
    """Calls `write(images, files, facts)` in a thread, then `on_written(images, error or "")`."""

    def __init__(
        self,
        write: Callable[[int, Files, Mapping[str, object]], None],
        on_written: Callable[[int, str], None],
    ) -> None:
        self._write = write
        self._on_written = on_written
        self._copies = Copies()
        self._thread: threading.Thread | None = None

    def put(self, images: int, files: Files, facts: Mapping[str, object]) -> None:
        """Copy, then write in a thread; raise TimeoutError if the previous write does not end."""
        self.wait(WAIT_SECONDS)
        self._copies.copy(files)  # training may change the tensors from here on
        self._thread = threading.Thread(
            target=self._run, args=(images, facts), daemon=True, name="checkpoint"
        )
        self._thread.start()

    def wait(self, seconds: float = CLOSE_SECONDS) -> None:
        """Wait for a write in progress; raise TimeoutError if it takes longer."""
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                raise TimeoutError(f"the one before it is not written after {seconds:.0f} s")
            self._thread = None

    def _run(self, images: int, facts: Mapping[str, object]) -> None:
        try:
            self._write(images, self._copies.ready(), facts)
            self._on_written(images, "")
        except OSError as error:  # an error of the disk does not end the training
            self._on_written(images, error.strerror or str(error))
