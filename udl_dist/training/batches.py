"""Batches as a method sees them, on the device where it is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udl_dist.core import rng
from udl_dist.data.images.headers import Shape
from udl_dist.data.loader.decoded import DecodedRows, MakeRows, decoded_bytes
from udl_dist.data.loader.reader import Stream
from udl_dist.data.loader.records import I64, KeysAhead, OnDevice, Records
from udl_dist.data.settings import DataSettings
from udl_dist.methods import pixels
from udl_dist.methods.method import Batch, Method
from udl_dist.training.distributed import Ranks

NUMBERS = 4  # of a batch that go to the device before its images: records, keys, two more


class DeviceRows(DecodedRows):
    """Decoded pixels in the memory of a device, where batches are completed.

    Filled in the order of batches, as each is sent; threads that load later ones ask only whether a
    row is there.
    """

    on_device = True

    def __init__(self, records: int, shape: Shape, rows: int, device: torch.device) -> None:
        super().__init__(records, shape, lambda _: np.zeros(0, np.uint8))
        self.rows = rows
        self._marks = np.zeros(rows, np.uint8)
        # One more row, for records that have no place.
        self._stored = torch.empty(
            (rows + 1 if rows else 0, *shape), dtype=torch.uint8, device=device
        )

    def complete(self, images: Tensor | None, plan: Tensor, host: OnDevice) -> Tensor:
        """The whole batch, from its new images and the rows here. [B, C, H, W] uint8

        `images` is None where all are here; `plan` is `host` on the device, [3, B].
        """
        # No size depends on what is where: it would have to come back from the device.
        places, stored, flipped = plan
        places = torch.where(places < 0, self.rows, places)
        if images is None:
            images = self._stored[places]
        elif self.rows:
            if host.stored.any():
                images = torch.where(_rows(stored), self._stored[places], images)
            self._stored.index_copy_(0, places, images)
            self._marks[host.places[host.places >= 0]] = 1
        if host.flipped.any():
            images = torch.where(_rows(flipped), images.flip(-1), images)
        return images


def _rows(mask: Tensor) -> Tensor:  # [B] -> [B, 1, 1, 1]
    return mask.bool()[:, None, None, None]


def decoded_rows(settings: DataSettings, ranks: Ranks) -> MakeRows:
    """Where the ranks keep decoded pixels: one memory of a machine, or each on its own device."""

    def shared(wanted: int) -> NDArray[np.uint8]:
        return ranks.shared_zeros(decoded_bytes(settings, wanted))

    if settings.decoded_on == "host":
        return lambda records, shape: DecodedRows(records, shape, shared)
    device = ranks.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None

    def made(records: int, shape: Shape) -> DeviceRows:
        row_bytes = math.prod(shape)
        rows = decoded_bytes(settings, records * row_bytes, free) // row_bytes
        return DeviceRows(records, shape, rows, device)

    return made


class Sender:
    """Sends batches of a stream to a device."""

    def __init__(self, stream: Stream, device: torch.device, channels_last: bool = False) -> None:
        rows = stream.loader.decoded
        self._rows = rows if isinstance(rows, DeviceRows) else None
        self._device, self._channels_last = device, channels_last
        self._ahead: tuple[I64, Tensor] | None = None
        # A stream of its own: on that of the step a copy would wait until the step before is done.
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if self._side is not None:  # rows that another sender has stored are there
            self._side.wait_stream(torch.cuda.current_stream(device))

    def send(self, records: Records, seen: int) -> Batch:
        """A batch of the stream as one on the device."""
        if self._side is None:
            return self._sent(records, seen)
        with torch.cuda.stream(self._side):
            batch = self._sent(records, seen)
        step = torch.cuda.current_stream(self._device)
        step.wait_stream(self._side)
        for tensor in (batch.images, batch.keys, batch.record_keys, batch.labels):
            if tensor is not None:
                tensor.record_stream(step)  # its memory is not used again before the step is done
        return batch

    def _sent(self, records: Records, seen: int) -> Batch:
        host, count = records.on_device, len(records.keys)
        complete = host is not None and bool(host.stored.all())
        numbers, images = self._block(records, not complete)
        if host is not None:
            assert self._rows is not None
            images = self._rows.complete(images, numbers[NUMBERS:], host)
        assert images is not None
        _, keys, record_keys, labels = numbers[:NUMBERS]
        if records.ahead is not None:
            keys = self._keys_ahead(records.ahead)[records.ahead.start :][:count]
        batch = _batch(images, keys, record_keys, labels, records)
        if self._channels_last:
            batch = replace(
                batch, images=batch.images.contiguous(memory_format=torch.channels_last)
            )
        return replace(batch, seen=seen)

    def _block(self, records: Records, whole: bool) -> tuple[Tensor, Tensor | None]:
        """Numbers [4 or more, B] and, if `whole`, images [B, C, H, W] on the device."""
        # One copy of one piece of memory.
        assert records.block is not None, "a part of a batch is no batch of the stream"
        count, images = len(records.keys), records.images
        end = records.block.size - images.size
        block = torch.from_numpy(records.block if whole else records.block[:end])
        if self._side is not None:
            block = block.to(self._device, non_blocking=True)
        numbers = block[:end].view(torch.int64).view(-1, count)
        return numbers, block[end:].view(images.shape) if whole else None

    def _keys_ahead(self, ahead: KeysAhead) -> Tensor:
        """The keys of several batches on the device, sent with the first of them."""
        if self._ahead is None or self._ahead[0] is not ahead.keys:
            keys = torch.from_numpy(ahead.keys).to(self._device)
            rng.draws_together(keys)
            self._ahead = ahead.keys, keys
        return self._ahead[1]


def to_batch(records: Records, device: torch.device) -> Batch:
    """A batch of any stream on `device`, for use outside of training."""
    arrays = (records.images, records.keys, records.record_keys, records.labels)
    images, keys, record_keys, labels = (torch.from_numpy(each).to(device) for each in arrays)
    return _batch(images, keys, record_keys, labels, records)


def _batch(
    images: Tensor, keys: Tensor, record_keys: Tensor, labels: Tensor, records: Records
) -> Batch:
    # In a source all records have labels or none has, so the first one tells.
    labelled = records.labels[:1].sum() >= 0
    # uint8 was sent, a quarter of the bytes; floats in [-1, 1] are made on the device.
    return Batch(pixels.floats(images), keys, record_keys, 0, labels if labelled else None)


def batch_memory(device: torch.device) -> Callable[[tuple[int, ...]], NDArray[np.uint8]]:
    """An allocator for batches: pinned memory for a GPU, so that copies overlap with training."""
    if device.type != "cuda":
        return lambda shape: np.empty(shape, np.uint8)

    def pinned(shape: tuple[int, ...]) -> NDArray[np.uint8]:
        # Pinning creates a context on the current device of the calling thread, by default GPU 0.
        torch.cuda.set_device(device)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()

    return pinned


def dummy_batch(method: Method, rows: int, device: torch.device) -> Batch:
    """Black images [rows, C, H, W], for shapes and names where there is no real image."""
    keys = torch.arange(rows, device=device)
    labels = torch.zeros_like(keys) if method.classes else None
    return Batch(torch.full((rows, *method.shape), -1.0, device=device), keys, keys, 0, labels)
