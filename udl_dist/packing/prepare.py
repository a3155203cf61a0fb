"""What `data.source` names becomes indexes on disk: packed at first use, or indexed where shards exist already.

Knows no batch: `open_streams` in `reader` reads what is prepared here. Any number of processes may prepare at once:
each writes under a name of its own, the first to finish is taken by all.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from udl_dist.errors import DataError, UsageError
from udl_dist.packing.pack import pack_source
from udl_dist.packing.settings import PackSettings
from udl_dist.packing.sources import READ, identify, open_source
from udl_dist.stream.index import NAME, Index
from udl_dist.stream.indexing import Progress, index_shards
from udl_dist.stream.opening import Prepared
from udl_dist.stream.settings import DataSettings, cache_folder

CACHE_VERSION = 1
SMALL = 64  # pixels: up to here the cache holds npy, read many times faster than PNG; above it PNG, which is smaller
URL = ("s3://", "gs://", "http://", "https://", "pipe:", "hf://", "file:")


@dataclass(frozen=True)
class Parts:
    """The indexes that a source has, by the part they are of."""

    train: Path
    val: Path | None = None
    test: Path | None = None


def prepare(settings: DataSettings, progress: Progress | None = None) -> Prepared:
    """Find, pack or index the images of a run; `progress(done, total)` counts images packed or shards indexed.

    Raises DataError for what is missing or damaged, UsageError for what cannot be meant.
    """
    fraction = 0.0 if settings.held_out else settings.held_out_fraction
    parts = _parts(settings.source, replace(settings, held_out_fraction=fraction), progress)
    if settings.held_out:
        found = _parts(settings.held_out, replace(settings, held_out_fraction=0.0), progress)
        held_out: Path | None = found.train
    else:
        held_out = parts.val or parts.test
    if held_out is not None and held_out.samefile(parts.train):
        raise UsageError(f"data.held_out {settings.held_out!r} holds the very images of data.source: name others")
    return Prepared(settings, str(parts.train), str(held_out or ""), 0.0 if held_out else fraction)


def _parts(source: str, settings: DataSettings, progress: Progress | None) -> Parts:
    """The indexes of whatever a source is."""
    if source.startswith(URL):
        raise UsageError(f"{source!r} is a URL, only files are read: copy the shards and name their folder")
    if source == "digits":
        return _packed(source, settings, progress)
    folder = Path(source).expanduser().absolute()
    train = _part(folder / "train", settings, progress)
    if train:
        return Parts(train, *(_part(folder / part, settings, progress) for part in ("val", "test")))
    shards = list_shards(source)
    return Parts(_indexed(shards, settings, progress)) if shards else _packed(source, settings, progress)


def list_shards(source: str) -> list[Path]:
    """The shards that a source names: a tar, a folder of tars, a brace pattern or a list file; empty if it is none."""
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        return _tars(path)
    if path.suffix in (".txt", ".list") and path.is_file():
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        names = [line for line in lines if line and not line.startswith("#")]
        if not names:
            raise DataError(f"list file {source!r} names no shard: write one path a line")
        return [shard for name in names for shard in _expanded(str(path.parent / Path(name).expanduser()))]
    is_tar = path.suffix in (".tar", ".tgz") or path.name.endswith(".tar.gz") or "{" in source
    return _expanded(str(path)) if is_tar else []


def _tars(folder: Path) -> list[Path]:
    """The tars of a folder, which must not hold images as well: one of the two would be passed over."""
    shards = sorted(folder.glob("*.tar"), key=os.fsencode)
    odd = next((path for path in folder.iterdir() if path.suffix.lower() in READ), None) if shards else None
    if odd is not None:
        raise DataError(f"folder {str(folder)!r} holds shards and images ({odd.name!r}): keep them apart")
    return shards


def _expanded(pattern: str) -> list[Path]:
    """A brace pattern as webdataset expands it."""
    if "{" not in pattern:
        return [Path(pattern)]
    import braceexpand  # what webdataset itself calls

    return [Path(name) for name in braceexpand.braceexpand(pattern)]


def _part(folder: Path, settings: DataSettings, progress: Progress | None) -> Path | None:
    """The index of one part of a packed folder, if there is such a part."""
    shards = list_shards(str(folder)) if folder.is_dir() else []
    return _indexed(shards, settings, progress) if shards else None


def _indexed(shards: list[Path], settings: DataSettings, progress: Progress | None) -> Path:
    """The index of shards: beside them if they fill their folder and it can be written, else in the cache."""
    folder = shards[0].parent
    if shards == list_shards(str(folder)):
        if (folder / NAME).exists():
            return _matching(folder / NAME, shards)
        if os.access(folder, os.W_OK):
            return index_shards(shards, folder / NAME, progress=progress).path
    hashed = xxhash.xxh3_128()
    for shard in shards:
        if not shard.exists():
            raise DataError(f"shard {str(shard)!r} is missing: check the path, or copy the shard again")
        hashed.update(f"{str(shard)!r} {shard.stat().st_size} {shard.stat().st_mtime_ns}\n".encode())
    path = _writable(cache_folder(settings.cache) / "indexes") / f"{hashed.hexdigest()}.udl"
    return path if path.exists() else index_shards(shards, path, progress=progress).path


def _matching(path: Path, shards: list[Path]) -> Path:
    """An index that lies beside its shards, if it is of just these."""
    known, there = {shard.name for shard in Index.open(path).shards}, {shard.name for shard in shards}
    if known != there:
        odd = sorted(known ^ there)[0]
        what = "is in the index but not in the folder" if odd in known else "is not in the index"
        raise DataError(f"shard {str(path.parent / odd)!r} {what}: put it right, or delete {str(path)!r} to index anew")
    return path


def _packed(source: str, settings: DataSettings, progress: Progress | None) -> Parts:
    """The parts of a source that is packed into the cache at first use."""
    dest, packing = cached(source, settings)
    _writable(dest.parent)
    if not dest.exists():
        opened = open_source(source)
        packing = replace(packing, held_out_fraction=0.0) if "val" in opened.parts else packing
        try:
            pack_source(opened, dest, packing, progress)
        except (UsageError, DataError):
            if not dest.exists():  # else another process was quicker, and its shards are as good as ours
                raise
    found = [dest / part / NAME for part in ("train", "val", "test")]
    return Parts(found[0], *(path if path.exists() else None for path in found[1:]))


def cached(source: str, settings: DataSettings) -> tuple[Path, PackSettings]:
    """Where the packed form of a source lies in the cache, or will, and how it is packed."""
    packing = PackSettings(size=settings.size, channels=settings.channels, fit=settings.fit,
                           format="npy" if settings.size <= SMALL else "png",
                           held_out_fraction=settings.held_out_fraction)  # fmt: skip
    name = xxhash.xxh3_128_hexdigest(f"{CACHE_VERSION} {identify(source)} {packing}".encode())
    return cache_folder(settings.cache) / "packed" / name, packing


def is_packed_at_first_use(source: str) -> bool:
    """Whether a source is no shards yet, neither a packed folder nor tars."""
    if source.startswith(URL):
        return False
    path = Path(source).expanduser().absolute()
    packed = (path / "train" / NAME).exists() or any((path / "train").glob("*.tar"))
    return source == "digits" or not (packed or list_shards(source))


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {str(folder)!r} ({error.strerror}): set data.cache") from None
    return folder
