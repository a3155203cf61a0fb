"""The images that a user names: single files, and every source that a run can be trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from udl_dist.core import rng
from udl_dist.core.config_schema import as_path
from udl_dist.data.images.coding import decode
from udl_dist.data.images.fitting import Pixels
from udl_dist.data.iterables import Batches
from udl_dist.data.loader.opening import open_streams
from udl_dist.data.loader.order import share
from udl_dist.data.loader.reader import Stream
from udl_dist.data.loader.records import Records
from udl_dist.data.packing.finding import LISTS, TARS
from udl_dist.data.packing.prepare import is_packed_at_first_use, prepare
from udl_dist.data.packing.sources import files_below
from udl_dist.errors import DataError
from udl_dist.experiment import Experiment
from udl_dist.inference.inputs import scaled
from udl_dist.inference.model import BATCH_IMAGES, Model
from udl_dist.methods.method import Batch
from udl_dist.training.batches import to_batch

ARRAYS = (".npy", ".npz", ".gz")  # files of many images, like those of IDX, which have no ending


@dataclass(frozen=True)
class NamedImages:
    """What one name refers to: image files, by their paths as given, or a stream of images."""

    files: tuple[str, ...] = ()
    stream: Stream | None = None

    @property
    def images(self) -> int:
        return self.stream.records if self.stream else len(self.files)


@dataclass(frozen=True)
class ReadImages:
    """The first images of all names, with their keys, and how many there are."""

    keys: list[str]
    images: Tensor  # [N, C, H, W] in [-1, 1]
    total: int


def named(model: Model, names: Sequence[str], seed: int = 0) -> list[NamedImages]:
    """What each name refers to; raise DataError for one without images before any is decoded."""
    return [_named(model, name, seed) for name in names]


def read(model: Model, names: Sequence[str], most: int) -> ReadImages:
    """The first `most` images of all names, at least one.

    The key of a file is its path as it was given, that of a record its own.
    """
    every = named(model, names)
    keys: list[str] = []
    images: list[Tensor] = []
    # At most `most` at a time, so that a folder is not decoded for one image.
    for found, batch in batches(model, every, most):
        keys += found
        images.append(batch.images)
        if len(keys) >= most:
            break
    return ReadImages(keys[:most], torch.cat(images)[:most], sum(one.images for one in every))


def batches(
    model: Model, every: Sequence[NamedImages], most: int = BATCH_IMAGES, seed: int = 0
) -> Iterator[tuple[list[str], Batch]]:
    """Every image once, with its key and random keys from `seed`; at most `most` at a time."""
    # `files` counts over all names: an image has the same random key in any batch size.
    at_once, files = min(BATCH_IMAGES, most), 0
    for one in every:
        for start in range(0, len(one.files), at_once):
            # Decoded part by part: a folder may be larger than memory.
            part = one.files[start : start + at_once]
            pixels = np.stack([open_image(model, as_path(file)) for file in part])
            random = rng.keys(seed, len(part), files)
            files += len(part)
            yield list(part), Batch(scaled(pixels), random, random, 0)
        for records in one.stream.once(at_once) if one.stream else ():
            assert one.stream
            # Random keys of records come from the stream, by its seed and epoch 0.
            yield keys_of(one.stream, records), as_batch(records)


def _named(model: Model, name: str, seed: int) -> NamedImages:
    if "://" not in name:
        path = as_path(name)
        # IDX files have no ending, so a file without one is a source.
        if path.suffix and path.is_file() and not name.endswith((*TARS, *LISTS, *ARRAYS)):
            return NamedImages((name,))
        # A plain folder is read file by file, in place: packing a copy is for training.
        if path.is_dir() and is_packed_at_first_use(name) and (below := files_below(path)):
            return NamedImages(tuple(str(Path(name) / file) for file in below))
    return NamedImages(stream=open_stream(model, name, seed=seed))


def open_stream(model: Model, source: str, readers: int = 1, seed: int = 0) -> Stream:
    """A source as a stream of all its images, in the model's shape."""
    channels, size, _ = model.shape
    fit = model.origin.fit
    return Batches(
        source, BATCH_IMAGES, seed=seed, size=size, channels=channels, fit=fit, readers=readers
    ).stream


def open_run(experiment: Experiment) -> tuple[Stream, Stream | None]:
    """The training images of a run and its held-out ones, as they are: without augmentation."""
    data = replace(experiment.data, random_crop=1.0, flip=False)
    return open_streams(prepare(data), experiment.train.seed)


def at_most(stream: Stream, most: int, number: int = 0, parts: int = 1) -> Iterator[Records]:
    """Part `number` of all images in the order of the shards, or of `most` in a random order."""
    # The order is the same for any number of processes.
    if stream.records <= most:
        yield from stream.once(BATCH_IMAGES, number, parts)
        return
    start, stop = share(most, number, parts)
    for records in stream.batches(start, BATCH_IMAGES):
        yield _first_of(records, stop - start)
        start += BATCH_IMAGES
        if start >= stop:
            return


def _first_of(records: Records, count: int) -> Records:
    """The first `count` of a batch."""
    names = ("images", "records", "keys", "record_keys", "labels")
    first = {name: getattr(records, name)[:count] for name in names}
    return replace(records, block=None, ahead=None, **first)


def keys_of(stream: Stream, records: Records) -> list[str]:
    """The keys of a batch of a stream over one source."""
    # A stream over several sources numbers records over all of them.
    (dataset,) = stream.datasets
    return [dataset.index.key(number) for number in records.records.tolist()]


def as_batch(records: Records) -> Batch:
    """Records of a stream as a method takes them."""
    return to_batch(records, torch.device("cpu"))


def open_image(model: Model, path: Path) -> Pixels:  # -> [C, H, W]
    """One image file, as training would read it; raise DataError that names it."""
    try:
        return decode(path.read_bytes(), model.shape, model.origin.fit)
    except DataError as error:
        raise DataError(f"image {str(path)!r} {error}") from None
    except OSError as error:
        raise DataError(f"image {str(path)!r} cannot be read ({error.strerror})") from None
