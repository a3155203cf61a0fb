"""The images that somebody names: single files, and whatever a run could be trained on, read by the same stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from udl_dist.errors import DataError
from udl_dist.images.coding import Pixels, decode
from udl_dist.iterables import Batches
from udl_dist.methods import Batch, chance
from udl_dist.models.inputs import scaled
from udl_dist.models.model import BATCH_IMAGES, Model
from udl_dist.packing.finding import LISTS, TARS
from udl_dist.settings import as_path
from udl_dist.stream.loading import Records
from udl_dist.stream.reader import Stream
from udl_dist.training.loop import to_batch

ARRAYS = (".npy", ".npz", ".gz")  # names of many images, as those of IDX files, which have no ending


def read(model: Model, names: Sequence[str], most: int) -> tuple[list[str], Tensor]:
    """The first `most` images of all names, with their keys: [N] and [N, C, H, W] in [-1, 1]; at least one."""
    keys: list[str] = []
    parts: list[Tensor] = []
    for found, batch in batches(model, names, most):
        keys += found
        parts.append(batch.images)
        if len(keys) >= most:
            break
    return keys[:most], torch.cat(parts)[:most]


def batches(
    model: Model, names: Sequence[str], most: int = BATCH_IMAGES, seed: int = 0
) -> Iterator[tuple[list[str], Batch]]:
    """Every image of all names, once, with its key and random keys from `seed`; at most `most` at a time."""
    for number, name in enumerate(names):
        path = as_path(name) if "://" not in name else Path(name)
        if path.suffix and path.is_file() and not name.endswith((*TARS, *LISTS, *ARRAYS)):
            key = chance.keys(seed, 1, number)
            yield [path.stem], Batch(scaled(np.array(open_image(model, path))[None]), key, key, 0)
            continue
        stream = open_stream(model, name, seed=seed)
        for records in stream.once(min(BATCH_IMAGES, most)):
            yield keys_of(stream, records), as_batch(records)


def open_stream(model: Model, source: str, readers: int = 1, seed: int = 0) -> Stream:
    """A source as a stream of all its images, brought to the model's shape."""
    channels, size, _ = model.shape
    return Batches(source, BATCH_IMAGES, seed=seed, size=size, channels=channels, fit=model.origin.fit,
                   readers=readers).stream  # fmt: skip


def keys_of(stream: Stream, records: Records) -> list[str]:
    """The keys of a batch of a stream over one source."""
    (dataset,) = stream.datasets
    return [dataset.index.key(number) for number in records.records.tolist()]


def as_batch(records: Records) -> Batch:
    """Records of a stream as a method sees them."""
    return to_batch(records, 0, torch.device("cpu"))


def open_image(model: Model, path: Path) -> Pixels:  # -> [C, H, W]
    """One image file, as training would see it; raise DataError that names it."""
    try:
        return decode(path.read_bytes(), model.shape, model.origin.fit)
    except DataError as error:
        raise DataError(f"image {str(path)!r} {error}") from None
    except OSError as error:
        raise DataError(f"image {str(path)!r} cannot be read ({error.strerror})") from None
