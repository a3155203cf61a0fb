"""A checkpoint is what the state was when it was asked for, whatever the training does while it is
written.
"""

import threading
from collections.abc import Mapping

import pytest
import torch

from udl_dist.training import async_writer
from udl_dist.training.async_writer import AsyncWriter
from udl_dist.training.checkpoint import Files


class Disk:
    """A disk that writes when it is let, and keeps what it was given."""

    def __init__(self, error: OSError | None = None) -> None:
        self.free, self.error = threading.Event(), error
        self.kept: dict[int, list[float]] = {}
        self.told: list[tuple[int, str]] = []
        self.writer = AsyncWriter(
            self._write, lambda images, failed: self.told.append((images, failed))
        )

    def _write(self, images: int, files: Files, facts: Mapping[str, object]) -> None:
        assert self.free.wait(30)
        if self.error:
            raise self.error
        self.kept[images] = files["networks"]["a"].tolist()


def test_the_state_may_change_while_it_is_written() -> None:
    disk, state = Disk(), torch.zeros(2)
    disk.writer.put(1, {"networks": {"a": state}}, {})
    state.add_(1)
    disk.free.set()
    disk.writer.put(2, {"networks": {"a": state}}, {})
    state.add_(1)
    disk.writer.wait()
    assert disk.kept == {1: [0, 0], 2: [1, 1]}
    assert disk.told == [(1, ""), (2, "")]


def test_a_disk_that_stalls_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_writer, "WAIT_SECONDS", 0.01)
    disk, state = Disk(), torch.zeros(2)
    disk.writer.put(1, {"networks": {"a": state}}, {})
    with pytest.raises(TimeoutError, match="the one before it is not written"):
        disk.writer.put(2, {"networks": {"a": state.add_(1)}}, {})
    disk.free.set()
    disk.writer.wait()
    assert disk.kept == {1: [0, 0]}, (
        "what is being written is not overwritten by what came too early"
    )


def test_a_failure_is_reported_and_the_next_one_is_written() -> None:
    disk = Disk(OSError(28, "No space left on device"))
    disk.free.set()
    disk.writer.put(1, {"networks": {"a": torch.zeros(1)}}, {})
    disk.writer.wait()
    disk.error = None
    disk.writer.put(2, {"networks": {"a": torch.zeros(1)}}, {})
    disk.writer.wait()
    assert disk.told == [(1, "No space left on device"), (2, "")]
