"""Makes indexes of what `data.source` names: packed at first use, or existing shards indexed.

Any number of processes may prepare at once: each writes under a name of its own, and all use the
result of the first to finish. `survey` counts the same without packing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import xxhash

from udl_dist.data.images.headers import Shape
from udl_dist.data.loader.opening import Prepared, open_index, open_streams
from udl_dist.data.packing.finding import list_shards
from udl_dist.data.packing.indexes import index_of, refuse_left_out, writable
from udl_dist.data.packing.pack import pack_source
from udl_dist.data.packing.parts import Parts, shards_of_parts
from udl_dist.data.packing.shapes import gray_or_colour, shape_of_index, shape_of_source
from udl_dist.data.packing.sources import identify, open_source
from udl_dist.data.settings import DataSettings, PackSettings, cache_folder
from udl_dist.data.shards.index import NAME, About, Index
from udl_dist.data.shards.indexing import Progress
from udl_dist.errors import DataError, UsageError
from udl_dist.storage.uris import is_remote, refuse_scheme

CACHE_VERSION = 2  # a new one where packing changes, so that old caches are not used
# pixels: up to here the cache holds npy, which is read many times faster than PNG; above it PNG,
# which is smaller
LARGEST_NPY = 64


@dataclass(frozen=True)
class Survey:
    """Counts of a source; of one not packed yet, the held-out part is an expected count."""

    records: int  # 0: unknown
    held_out_records: int
    shards: int
    packed: bool
    classes: tuple[str, ...] = ()  # their names, if they have any
    held_out_is: str = ""  # where held-out images come from
    left_out: int = 0  # records that cannot be read and are not in the index


def prepare(settings: DataSettings, progress: Progress | None = None) -> Prepared:
    """Find, pack or index the images of a run; `progress(done, total)` counts images or shards.

    Raises DataError for what is missing or damaged, UsageError for contradictory settings.
    """
    settings = settled(settings, progress)
    own = _without_hash(settings)
    sources = [
        parts_of(source, own, progress) for source in (settings.source, *settings.more_sources)
    ]
    train = tuple(parts.train for parts in sources)
    held_out = tuple(parts.val or parts.test for parts in sources)
    if settings.held_out:
        found = parts_of(settings.held_out, own, progress).train
        held_out = (found,) + ("",) * (len(train) - 1)
    if len(set(train)) < len(train):
        raise UsageError(
            "data.more_sources names the same images twice: name each source once, and set"
            " data.weights"
        )
    if set(train) & set(held_out):
        raise UsageError(
            f"data.held_out {settings.held_out!r} holds the very images of data.source: name others"
        )
    fractions = tuple(0.0 if held else own.held_out_fraction for held in held_out)
    return Prepared(settings, train, held_out, fractions)


def _without_hash(settings: DataSettings) -> DataSettings:
    """The settings without a hashed fraction, where a source of held-out images is named."""
    return replace(settings, held_out_fraction=0.0) if settings.held_out else settings


def settled(settings: DataSettings, progress: Progress | None = None) -> DataSettings:
    """The settings, with `size` and `channels` of the images where they are 0."""
    if settings.size and settings.channels:
        return settings
    sources = (settings.source, *settings.more_sources)
    shapes = [_stored_shape(source, settings, progress) for source in sources]
    channels = gray_or_colour(max(shape[0] for shape in shapes))
    _, height, width = shapes[0]
    size = settings.size or (height if height == width else (height, width))
    return replace(settings, size=size, channels=settings.channels or channels)


def _stored_shape(source: str, settings: DataSettings, progress: Progress | None) -> Shape:
    if is_packed_at_first_use(source):
        return shape_of_source(open_source(source), settings)
    where = parts_of(source, settings, progress).train
    return shape_of_index(open_index(where, cache_folder(settings.cache)), settings)


def parts_of(source: str, settings: DataSettings, progress: Progress | None) -> Parts:
    """The indexes of a source of any kind."""
    if source == "digits":
        return _packed(source, settings, progress)
    shards = shards_of_parts(source) or {"train": list_shards(source)}
    if not shards["train"]:
        if is_remote(source):
            raise DataError(
                f"{source!r} holds no tar shards: pack images on a disk, and copy the shards there"
            )
        return _packed(source, settings, progress)
    about, skip = About(image=settings.image, key_dot=settings.key_dot), settings.damaged == "skip"
    cache, found = cache_folder(settings.cache), dict[str, str]()
    for part, listed in shards.items():
        found[part] = index_of(listed, cache, progress, about, skip)
    for where in found.values():
        _refuse_damage(open_index(where, cache), settings)
    return Parts(**found)


def _refuse_damage(index: Index, settings: DataSettings) -> None:
    """Raise DataError if more records are missing from an index than the settings allow."""
    refuse_left_out(index, settings.damaged == "skip")
    if index.left_out > settings.damaged_limit * (index.records + index.left_out):
        raise DataError(
            f"{str(index.path)!r} left out {index.left_out:,} records that cannot be read and has"
            f" {index.records:,}: more than data.damaged_limit = {settings.damaged_limit:g} allows:"
            " run udl check"
        )


def _packed(source: str, settings: DataSettings, progress: Progress | None) -> Parts:
    """The parts of a source that is packed into the cache at first use."""
    dest, packing = _cached(source, settings)
    writable(dest.parent)
    if not dest.exists():
        opened = open_source(source)
        packing = replace(packing, held_out_fraction=0.0) if "val" in opened.parts else packing
        try:
            pack_source(opened, dest, packing, progress)
        except (UsageError, DataError):
            # if it exists now, another process was faster, and its shards are equal
            if not dest.exists():
                raise
    found = {part: dest / part / NAME for part in ("train", "val", "test")}
    return Parts(**{part: str(path) for part, path in found.items() if path.exists()})


def _cached(source: str, settings: DataSettings) -> tuple[Path, PackSettings]:
    """Where the cache has, or will have, a packed source, and how it is packed."""
    packing = PackSettings(
        size=settings.size,
        channels=settings.channels,
        fit=settings.fit,
        format="npy" if max(settings.shape[1:]) <= LARGEST_NPY else "png",
        held_out_fraction=settings.held_out_fraction,
        most_pixels=settings.most_pixels,
    )
    name = xxhash.xxh3_128_hexdigest(f"{CACHE_VERSION} {identify(source)} {packing}".encode())
    return cache_folder(settings.cache) / "packed" / name, packing


def is_packed_at_first_use(source: str) -> bool:
    """Whether a source names images, neither a packed folder nor tars."""
    refuse_scheme(source)
    if is_remote(source):
        return False
    return source == "digits" or not (shards_of_parts(source) or list_shards(source))


def survey(settings: DataSettings) -> Survey:
    """Count records and shards. Shards without an index are indexed, images are only listed.

    Raises what `prepare` raises.
    """
    settings = settled(settings)
    own, sources = _without_hash(settings), (settings.source, *settings.more_sources)
    unpacked = [
        source
        for source in sources
        if is_packed_at_first_use(source) and not _cached(source, own)[0].exists()
    ]
    if not unpacked:
        return _survey_prepared(settings)
    alone = [replace(settings, source=source, more_sources=(), weights=()) for source in sources]
    each = [_expected(one) if one.source in unpacked else survey(one) for one in alone]
    held_out = [one.held_out_records for one in each]
    return Survey(
        sum(one.records for one in each),
        held_out[0] if settings.held_out else sum(held_out),
        sum(one.shards for one in each),
        False,
        each[0].classes if len({one.classes for one in each}) == 1 else (),
        each[0].held_out_is,
    )


def _survey_prepared(settings: DataSettings) -> Survey:
    train, held_out = open_streams(prepare(settings), 0)
    parts = parts_of(settings.source, settings, None)
    datasets = [*train.datasets, *(held_out.datasets if held_out else ())]
    left_out = {str(dataset.index.path): dataset.index.left_out for dataset in datasets}
    return Survey(
        train.records,
        held_out.records if held_out else 0,
        sum(len(dataset.index.shards) for dataset in train.datasets),
        True,
        train.classes,
        _held_out_is(settings, "val" if parts.val else "test" if parts.test else ""),
        sum(left_out.values()),
    )


def _held_out_is(settings: DataSettings, part: str) -> str:
    """Where the held-out images of the first source come from, in words."""
    if settings.held_out or part:
        return "data.held_out" if settings.held_out else part
    fraction = settings.held_out_fraction
    return f"{fraction:g} of all, by a hash" if fraction else ""


def _expected(settings: DataSettings) -> Survey:
    """The counts of one source that is not packed yet."""
    packing = _cached(settings.source, _without_hash(settings))[1]
    source = open_source(settings.source)
    records, held_out, part = len(source.parts["train"]), 0, ""
    if settings.held_out:
        alone = replace(settings, source=settings.held_out, held_out="", held_out_fraction=0.0)
        held_out = survey(alone).records
    elif "val" in source.parts:
        part = "val"
    elif packing.held_out_fraction:
        held_out = round(records * packing.held_out_fraction)
        records -= held_out
    elif "test" in source.parts:
        part = "test"
    if part:
        held_out = len(source.parts[part])
    records = min(records, settings.limit or records)
    return Survey(
        records,
        held_out,
        ceil(records / packing.shard_records),
        False,
        source.classes,
        _held_out_is(settings, part),
    )
