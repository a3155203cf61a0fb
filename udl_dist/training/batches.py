"""Batches as a method sees them, on the device where it is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udl_dist.data.loader.records import Records
from udl_dist.methods import pixels
from udl_dist.methods.method import Batch, Method


def to_batch(
    records: Records, seen: int, device: torch.device, channels_last: bool = False
) -> Batch:
    """Records of the stream as a batch on `device`."""
    # uint8 is sent, a quarter of the bytes, and floats in [-1, 1] are made on the device.
    images = pixels.floats(_to_device(records.images, device))
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    keys, record_keys = _to_device(records.keys, device), _to_device(records.record_keys, device)
    # In a source all records have labels or none has, so the first one tells.
    labels = _to_device(records.labels, device) if records.labels[:1].sum() >= 0 else None
    return Batch(images, keys, record_keys, seen, labels)


def batch_memory(device: torch.device) -> Callable[[tuple[int, ...]], NDArray[np.uint8]]:
    """An allocator for batches: pinned memory for a GPU, so that copies overlap with training."""
    if device.type != "cuda":
        return lambda shape: np.empty(shape, np.uint8)

    def pinned(shape: tuple[int, ...]) -> NDArray[np.uint8]:
        # Pinning creates a context on the current device of the calling thread, by default GPU 0.
        torch.cuda.set_device(device)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()

    return pinned


def _to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    # From pinned memory (see `batch_memory`) the copy runs while the device computes.
    return tensor.to(device, non_blocking=True) if device.type == "cuda" else tensor


def dummy_batch(method: Method, rows: int, device: torch.device) -> Batch:
    """Black images [rows, C, H, W], for shapes and names where there is no real image."""
    keys = torch.arange(rows, device=device)
    labels = torch.zeros_like(keys) if method.classes else None
    return Batch(torch.full((rows, *method.shape), -1.0, device=device), keys, keys, 0, labels)
