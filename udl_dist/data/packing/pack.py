"""Packs a source of images into shards: `DEST/train/000000.tar …` with an index, `val`, `test`.

All is written into a hidden folder next to DEST and renamed when the last byte is on disk: complete
or absent. The same source and settings give the same bytes. Threads pack one shard each; decoders
and encoders release Python's lock.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from udl_dist.core.config_schema import as_path
from udl_dist.core.files import finish_folder, partial_folder, whole_file
from udl_dist.data.images.coding import encode
from udl_dist.data.images.headers import Shape
from udl_dist.data.loader import order
from udl_dist.data.loader.selection import none_left
from udl_dist.data.packing.shapes import with_shape
from udl_dist.data.packing.sources import Images, Source, class_names, open_source
from udl_dist.data.packing.stacking import stacked
from udl_dist.data.settings import PackSettings
from udl_dist.data.shards.index import NAME, About
from udl_dist.data.shards.indexing import Progress, index_shards
from udl_dist.data.threads import Report, run_threads
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
    ignored: Mapping[str, int]  # files of the source of unknown kinds, by extension
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return vars(self)

    def lines(self) -> list[str]:
        """The summary for people, what was not packed included."""
        parts = ", ".join(f"{part} {records:,}" for part, records in sorted(self.records.items()))
        channels, size, _ = self.shape
        parts += f", {size} x {size} pixels in {'colour' if channels == 3 else 'gray'},"
        lines = [
            f"packed {parts} into {self.shards} shards of {self.total_bytes / 1e6:.1f} MB in all, "
            f"in {self.seconds:.1f} s: {self.folder!r}"
        ]
        if self.classes:
            lines.append(f"{len(self.classes)} classes: {class_names(self.classes)}")
        if self.left_out:
            lines.append(f"left out {len(self.left_out)} damaged images, listed in {LEFT_OUT}")
        if self.ignored:
            kinds = ", ".join(f"{count} {kind!a}" for kind, count in sorted(self.ignored.items()))
            lines.append(f"ignored files of other kinds: {kinds}")
        return lines


@dataclass(frozen=True)
class Chosen:
    """Images of a part, by their numbers, in the order in which they are packed."""

    images: Images
    numbers: NDArray[np.int64]


def pack(
    source: str, dest: str, settings: PackSettings, progress: Progress | None = None
) -> Summary:
    """Pack what `source` names into the new folder `dest`; `progress(done, total)` counts images.

    Raises UsageError if `dest` has content, DataError if an image cannot be read (unless damaged
    images are skipped).
    """
    opened = open_source(source)
    if settings.held_out_fraction and "val" in opened.parts:
        raise UsageError(f"{source!r} has a val part: set held_out_fraction to 0")
    if settings.stack:
        if settings.channels == 1:
            raise UsageError("--stack makes colour images: leave --channels out")
        opened = stacked(opened, settings.seed)
    return pack_source(opened, as_path(dest), with_shape(settings, opened), progress)


def pack_source(
    source: Source, dest: Path, settings: PackSettings, progress: Progress | None = None
) -> Summary:
    """Pack an opened source; see `pack`."""
    import webdataset  # noqa: F401  # takes two seconds, once, before the threads need it

    began = time.monotonic()
    # Before anything is written: an empty part is refused without a trace.
    parts = _split(source, settings)
    with partial_folder(dest) as folder:
        jobs = {}
        for part, chosen in parts.items():
            (folder / part).mkdir()
            for number, shard in enumerate(_shards(chosen, settings)):
                jobs[folder / part / f"{number:06d}.tar"] = shard
        written = run_threads(
            list(jobs.items()),
            lambda job, report: _write(*job, settings, report),
            settings.threads,
            progress,
            sum(len(shard.numbers) for shard in jobs.values()),
        )
        left_out = tuple(line for lines in written for line in lines)
        if left_out:
            lines = "".join(line + "\n" for line in left_out)
            (folder / LEFT_OUT).write_text(lines, encoding="utf-8")
        about = About(
            source.name,
            settings.license or source.license,
            source.classes,
            settings.format,
            settings.shape,
            len(left_out),
        )
        # Within the hidden folder: shards and index get their names together.
        records = {part: _index(folder / part, about) for part in parts}
        total_bytes = finish_folder(folder, dest)
    return Summary(
        str(dest),
        settings.shape,
        records,
        len(jobs),
        total_bytes,
        source.classes,
        left_out,
        source.ignored,
        time.monotonic() - began,
    )


def _split(source: Source, settings: PackSettings) -> dict[str, Chosen]:
    """The images of each part; a fraction of train becomes val if the settings say so.

    They are shuffled, so that the first images of a shard and of a part have all classes.
    """
    shuffled = {
        part: Chosen(images, order.record_at(settings.seed, 0, np.arange(len(images)), len(images)))
        for part, images in source.parts.items()
    }
    if settings.held_out_fraction:
        train = shuffled["train"]
        keys = (train.images.key(number) for number in train.numbers.tolist())
        # The hash that an index has of each key.
        hashes = np.fromiter((xxhash.xxh3_64_intdigest(key.encode()) for key in keys), np.uint64)
        held = order.held_out(hashes, settings.held_out_fraction, settings.seed)
        shuffled["train"] = Chosen(train.images, train.numbers[~held])
        shuffled["val"] = Chosen(train.images, train.numbers[held])
    for part, chosen in shuffled.items():
        if not chosen.numbers.size:
            count = len(chosen.images)
            raise none_left(part == "val", settings.held_out_fraction, count, source.name)
    return shuffled


def _shards(chosen: Chosen, settings: PackSettings) -> list[Chosen]:
    """Shards of nearly equal numbers of records; bytes are counted as uncompressed pixels."""
    pixels = int(np.prod(settings.shape))
    # image and label, each with its header, padded to blocks of 512 bytes
    record_bytes = 512 + -(-(pixels + 128) // 512) * 512 + 1024
    # Before encoding nothing else is known of their size.
    most = min(settings.shard_records, settings.shard_bytes // record_bytes)
    if most < 1:
        raise UsageError(
            f"shard_bytes {settings.shard_bytes} is less than one record's {record_bytes}: raise it"
        )
    count = -(-len(chosen.numbers) // most)
    # Nearly equal, instead of a last shard of a few records.
    ranges = (order.share(len(chosen.numbers), shard, count) for shard in range(count))
    return [Chosen(chosen.images, chosen.numbers[start:stop]) for start, stop in ranges]


def _write(path: Path, shard: Chosen, settings: PackSettings, report: Report) -> list[str]:
    """Write one shard with webdataset's own writer; return a line for each image left out."""
    from webdataset import TarWriter

    left_out = []
    # encoder: bytes as they are; mtime 0: equal sources give equal tars.
    with whole_file(path) as file, TarWriter(file, encoder=False, mtime=0) as writer:
        for number in shard.numbers.tolist():
            try:
                writer.write(_record(shard.images, number, settings))
            except DataError as error:
                if not settings.skip_damaged:
                    raise
                left_out.append(str(error))
            report(1)
    if len(left_out) == len(shard.numbers):
        path.unlink()  # none of its images could be read
    return left_out


def _record(images: Images, number: int, settings: PackSettings) -> dict[str, str | bytes]:
    """A record for webdataset's writer; the name of the format is the extension."""
    pixels = images.pixels(number, settings.shape, settings.fit, settings.most_pixels)
    extension = "jpg" if settings.format == "jpeg" else settings.format
    image = encode(pixels, settings.format, settings.quality)
    record: dict[str, str | bytes] = {"__key__": images.key(number), extension: image}
    label = images.label(number)
    return {**record, "cls": str(label).encode()} if label >= 0 else record


def _index(folder: Path, about: About) -> int:
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise DataError(f"part {folder.name!r}: not one image could be read: check the source")
    # Without times, so that equal sources give an equal index too.
    return index_shards(shards, folder / NAME, about, stamped=False).records
