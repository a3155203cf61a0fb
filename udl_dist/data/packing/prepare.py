"""What `data.source` names becomes indexes on disk: packed at first use, or indexed where shards
exist already.

Knows no batch: `open_streams` reads what is prepared here. Any number of processes may prepare at
once: each writes under a name of its own, the first to finish is taken by all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from udl_dist.core.config_schema import as_path
from udl_dist.data.images.kinds import Shape
from udl_dist.data.loader.opening import Prepared, open_index
from udl_dist.data.packing import looking
from udl_dist.data.packing.finding import is_prefix, list_shards, subfolders
from udl_dist.data.packing.indexes import index_of, refuse_left_out, writable
from udl_dist.data.packing.pack import pack_source
from udl_dist.data.packing.parts import divided, divided_by_name, part_named
from udl_dist.data.packing.settings import PackSettings
from udl_dist.data.packing.sources import identify, open_source
from udl_dist.data.settings import DataSettings, cache_folder
from udl_dist.data.shards.index import NAME, About, Index
from udl_dist.data.shards.indexing import Progress
from udl_dist.errors import DataError, UsageError
from udl_dist.storage.uris import is_remote, joined, name_of, refuse_scheme, split

CACHE_VERSION = 2
# pixels: up to here the cache holds npy, read many times faster than PNG; above it PNG, which is
# smaller
SMALL = 64


@dataclass(frozen=True)
class Parts:
    """Where the indexes of a source are, by the part they are of; empty if there is no such
    part.
    """

    train: str
    val: str = ""
    test: str = ""


def prepare(settings: DataSettings, progress: Progress | None = None) -> Prepared:
    """Find, pack or index the images of a run; `progress(done, total)` counts images packed or
    shards indexed.

    Raises DataError for what is missing or damaged, UsageError for what cannot be meant.
    """
    settings = settled(settings, progress)
    fraction = 0.0 if settings.held_out else settings.held_out_fraction
    own = replace(settings, held_out_fraction=fraction)
    sources = [
        parts_of(source, own, progress) for source in (settings.source, *settings.more_sources)
    ]
    train = tuple(parts.train for parts in sources)
    if settings.held_out:
        found = parts_of(
            settings.held_out, replace(settings, held_out_fraction=0.0), progress
        ).train
        held_out: tuple[str, ...] = (found,) + ("",) * (len(train) - 1)
    else:
        held_out = tuple(parts.val or parts.test for parts in sources)
    if len(set(train)) < len(train):
        raise UsageError(
            "data.more_sources names the same images twice: name each source once, and set"
            " data.weights"
        )
    if set(train) & set(held_out):
        raise UsageError(
            f"data.held_out {settings.held_out!r} holds the very images of data.source: name others"
        )
    return Prepared(
        settings, train, held_out, tuple(0.0 if held else fraction for held in held_out)
    )


def settled(settings: DataSettings, progress: Progress | None = None) -> DataSettings:
    """The same settings with `size` and `channels` taken from the images where they are 0; shards
    get their index.
    """
    if settings.size and settings.channels:
        return settings
    sources = (settings.source, *settings.more_sources)
    shapes = [_stored_shape(source, settings, progress) for source in sources]
    channels = max(shape[0] for shape in shapes)
    return replace(
        settings,
        size=settings.size or shapes[0][1],
        channels=settings.channels or looking.gray_or_colour(channels),
    )


def _stored_shape(source: str, settings: DataSettings, progress: Progress | None) -> Shape:
    """The shape of the images of one source, from a look at some of them."""
    cache = cache_folder(settings.cache)
    if is_packed_at_first_use(source):
        return looking.shape_of_source(open_source(source), settings.fit, settings.most_pixels)
    where = parts_of(source, settings, progress).train
    return looking.shape_of_index(open_index(where, cache), settings.fit, settings.most_pixels)


def parts_of(source: str, settings: DataSettings, progress: Progress | None) -> Parts:
    """The indexes of whatever a source is."""
    cache = cache_folder(settings.cache)
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
    found = {
        part: index_of(listed, cache, progress, about, skip) for part, listed in shards.items()
    }
    for where in found.values():
        _refuse_damage(open_index(where, cache), settings)
    return Parts(**found)


def _refuse_damage(index: Index, settings: DataSettings) -> None:
    """Raise DataError if records are missing from an index, unless they may be skipped and are few
    enough.
    """
    refuse_left_out(index, settings.damaged == "skip")
    if index.left_out > settings.damaged_limit * (index.records + index.left_out):
        raise DataError(
            f"{str(index.path)!r} left out {index.left_out:,} records that cannot be read, beside"
            f" {index.records:,}: more than data.damaged_limit = {settings.damaged_limit:g} allows:"
            " run udl check"
        )


def shards_of_parts(source: str) -> dict[str, list[str]]:
    """The shards of train, val and test, by folders or by the names of shards; empty if a source
    has no such parts.

    Raises DataError if it cannot be told which shards are for training.
    """
    # a pattern with a name behind it would be one of other shards
    if is_remote(source) and not is_prefix(source):
        return {}
    if not is_remote(source) and not as_path(source).is_dir():
        return {}
    folders = subfolders(source)
    shards = {
        folder: found
        for folder in folders
        if part_named(folder) and (found := _below(source, folder))
    }
    if not shards:
        return divided_by_name(list_shards(source))
    others = {folder for folder in folders if not part_named(folder) and _below(source, folder)}
    beside = [split(shard)[1] for shard in list_shards(source)]
    return {
        part: shards[folder]
        for part, folder in divided(name_of(source), {*shards, *others}, beside).items()
    }


def _below(source: str, folder: str) -> list[str]:
    return list_shards(
        joined(source, folder) if is_remote(source) else str(as_path(source) / folder)
    )


def _packed(source: str, settings: DataSettings, progress: Progress | None) -> Parts:
    """The parts of a source that is packed into the cache at first use."""
    dest, packing = cached(source, settings)
    writable(dest.parent)
    if not dest.exists():
        opened = open_source(source)
        packing = replace(packing, held_out_fraction=0.0) if "val" in opened.parts else packing
        try:
            pack_source(opened, dest, packing, progress)
        except (UsageError, DataError):
            # else another process was quicker, and its shards are as good as ours
            if not dest.exists():
                raise
    found = {part: dest / part / NAME for part in ("train", "val", "test")}
    return Parts(**{part: str(path) for part, path in found.items() if path.exists()})


def cached(source: str, settings: DataSettings) -> tuple[Path, PackSettings]:
    """Where the packed form of a source lies in the cache, or will, and how it is packed."""
    packing = PackSettings(
        size=settings.size,
        channels=settings.channels,
        fit=settings.fit,
        format="npy" if settings.size <= SMALL else "png",
        held_out_fraction=settings.held_out_fraction,
        most_pixels=settings.most_pixels,
    )
    name = xxhash.xxh3_128_hexdigest(f"{CACHE_VERSION} {identify(source)} {packing}".encode())
    return cache_folder(settings.cache) / "packed" / name, packing


def is_packed_at_first_use(source: str) -> bool:
    """Whether a source is no shards yet, neither a packed folder nor tars."""
    refuse_scheme(source)
    if is_remote(source):
        return False
    return source == "digits" or not (shards_of_parts(source) or list_shards(source))
