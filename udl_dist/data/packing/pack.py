"""A source of images becomes shards: `DEST/train/000000.tar …` with an index, `DEST/val`,
`DEST/test` likewise.

All is written into a hidden folder beside DEST and renamed when the last byte is on disk: complete
or absent. The same source and settings give the same bytes. Threads pack one shard each; decoders
and encoders release Python's lock.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from udl_dist.core.config_schema import as_path
from udl_dist.data.images.coding import encode
from udl_dist.data.images.kinds import Shape
from udl_dist.data.loader import order
from udl_dist.data.loader.selection import none_left
from udl_dist.data.packing.folders import finish_folder, partial_folder
from udl_dist.data.packing.looking import settled
from udl_dist.data.packing.settings import PackSettings
from udl_dist.data.packing.source import Images, Source, in_words
from udl_dist.data.packing.sources import open_source
from udl_dist.data.packing.threads import on_each
from udl_dist.data.shards.index import NAME, About
from udl_dist.data.shards.indexing import Progress, index_shards
from udl_dist.errors import DataError, UsageError

LEFT_OUT = "left_out.txt"


@dataclass(frozen=True)
class Summary:
    """What was packed."""

    folder: str
    shape: Shape  # C, H, W of every image
    records: dict[str, int]  # of each part
    shards: int
    total_bytes: int
    classes: tuple[str, ...]
    left_out: tuple[str, ...]  # one line for each damaged image, if they were to be skipped
    ignored: dict[str, int]  # files of the source that are no images we read, by extension
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain values."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """The figures for people, what was not packed included."""
        parts = ", ".join(f"{part} {records:,}" for part, records in sorted(self.records.items()))
        channels, size, _ = self.shape
        parts += f", {size} x {size} pixels in {'colour' if channels == 3 else 'gray'},"
        lines = [
            f"packed {parts} into {self.shards} shards of {self.total_bytes / 1e6:.1f} MB in all, "
            f"in {self.seconds:.1f} s: {self.folder!r}"
        ]
        if self.classes:
            lines.append(f"{len(self.classes)} classes: {in_words(self.classes)}")
        if self.left_out:
            lines.append(f"left out {len(self.left_out)} damaged images, listed in {LEFT_OUT}")
        if self.ignored:
            kinds = ", ".join(f"{count} {kind!a}" for kind, count in sorted(self.ignored.items()))
            lines.append(f"passed by files that are no images we read: {kinds}")
        return lines


@dataclass(frozen=True)
class Job:
    """One shard to be written: which images of which part, in order."""

    path: Path
    images: Images
    numbers: NDArray[np.int64]


def pack(
    source: str, dest: str, settings: PackSettings, progress: Progress | None = None
) -> Summary:
    """Pack what `source` names into the new folder `dest`; `progress(done, total)` counts images.

    Raises UsageError if `dest` holds something, DataError if an image cannot be read (unless it is
    to be skipped).
    """
    opened = open_source(source)
    if settings.held_out_fraction and "val" in opened.parts:
        raise UsageError(f"{source!r} has a val part: set held_out_fraction to 0")
    return pack_source(opened, as_path(dest), settled(settings, opened), progress)


def pack_source(
    source: Source, dest: Path, settings: PackSettings, progress: Progress | None = None
) -> Summary:
    """Pack an opened source; see `pack`."""
    began = time.monotonic()
    parts = _split(source, settings)
    with partial_folder(dest) as folder:
        jobs = [
            job for part, chosen in parts.items() for job in _jobs(folder / part, *chosen, settings)
        ]
        left_out = _write_all(jobs, settings, progress)
        about = About(
            source.name,
            settings.license or source.license,
            source.classes,
            settings.format,
            settings.shape,
            len(left_out),
        )
        records = {part: _index(folder / part, about) for part in parts}
        if left_out:
            (folder / LEFT_OUT).write_text(
                "".join(line + "\n" for line in left_out), encoding="utf-8"
            )
        total_bytes = finish_folder(folder, dest)
    return Summary(
        str(dest),
        settings.shape,
        records,
        len(jobs),
        total_bytes,
        source.classes,
        tuple(left_out),
        source.ignored,
        time.monotonic() - began,
    )


def _split(source: Source, settings: PackSettings) -> dict[str, tuple[Images, NDArray[np.int64]]]:
    """The numbers of each part's images in the order in which they are packed, a part of train held
    out if asked.

    The order is mixed, so that a shard read from its start has all classes, and so have the first
    images of a part.
    """
    mixed, parts = {}, source.parts
    for part, images in parts.items():
        numbers = order.record_at(settings.seed, 0, np.arange(len(images)), len(images))
        mixed[part] = (images, numbers)
    if settings.held_out_fraction:
        images, numbers = mixed["train"]
        hashes = (
            xxhash.xxh3_64_intdigest(images.key(number).encode()) for number in numbers.tolist()
        )
        held = order.held_out(
            np.fromiter(hashes, np.uint64), settings.held_out_fraction, settings.seed
        )
        mixed["train"], mixed["val"] = (images, numbers[~held]), (images, numbers[held])
    for part, chosen in mixed.items():
        if not chosen[1].size:
            there = len(parts.get(part, parts["train"]))
            raise none_left(part == "val", settings.held_out_fraction, there, source.name)
    return mixed


def _jobs(
    folder: Path, images: Images, numbers: NDArray[np.int64], settings: PackSettings
) -> list[Job]:
    """Shards of nearly equal numbers of records. Encoded sizes are not known yet: bytes are those
    of bare pixels.
    """
    folder.mkdir()
    pixels = int(np.prod(settings.shape))
    # image and label, each with its header
    record_bytes = 512 + -(-(pixels + 128) // 512) * 512 + 1024
    most = min(settings.shard_records, settings.shard_bytes // record_bytes)
    if most < 1:
        raise UsageError(
            f"shard_bytes {settings.shard_bytes} is less than one record's {record_bytes}: raise it"
        )
    shards = -(-len(numbers) // most)
    ranges = [order.share(len(numbers), shard, shards) for shard in range(shards)]
    return [
        Job(folder / f"{shard:06d}.tar", images, numbers[start:stop])
        for shard, (start, stop) in enumerate(ranges)
    ]


def _write_all(jobs: list[Job], settings: PackSettings, progress: Progress | None) -> list[str]:
    """Write all shards, the first error stopping all; give the lines about images left out, in
    order.
    """
    import webdataset  # noqa: F401  # takes two seconds, once, before the threads need it

    total = sum(len(job.numbers) for job in jobs)
    left_out = on_each(
        jobs, lambda job, done: _write(job, settings, done), settings.threads, progress, total
    )
    return [line for lines in left_out for line in lines]


def _write(job: Job, settings: PackSettings, done: Callable[[int], None]) -> list[str]:
    """Write one shard with webdataset's own writer; give a line for each image left out."""
    from webdataset import TarWriter

    left_out = []
    with job.path.open("wb") as file:
        with TarWriter(file, encoder=False, mtime=0) as writer:
            for count, number in enumerate(job.numbers.tolist(), 1):
                try:
                    writer.write(_record(job.images, number, settings))
                except DataError as error:
                    if not settings.skip_damaged:
                        raise
                    left_out.append(str(error))
                done(count)
        file.flush()
        os.fsync(file.fileno())
    if len(left_out) == len(job.numbers):
        job.path.unlink()  # not one image of it could be read
    return left_out


def _record(images: Images, number: int, settings: PackSettings) -> dict[str, str | bytes]:
    """A record as webdataset's writer takes it; the extension is the format's name."""
    pixels = images.pixels(number, settings.shape, settings.fit, settings.most_pixels)
    record: dict[str, str | bytes] = {"__key__": images.key(number)}
    record["jpg" if settings.format == "jpeg" else settings.format] = encode(
        pixels, settings.format, settings.quality
    )
    label = images.label(number)
    return {**record, "cls": str(label).encode()} if label >= 0 else record


def _index(folder: Path, about: About) -> int:
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise DataError(f"part {folder.name!r}: not one image could be read: check the source")
    return index_shards(shards, folder / NAME, about, stamped=False).records
