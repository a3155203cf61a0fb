"""Which shards a source names: a tar, a folder, a brace pattern, a list file; on disk or remote."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from glob import glob, has_magic
from itertools import islice
from pathlib import Path

from udl_dist.core.config_schema import as_path
from udl_dist.errors import DataError, UsageError
from udl_dist.storage.objects import Object, list_folders, list_tars
from udl_dist.storage.uris import is_remote, is_web, name_of, parse, refuse_scheme, sibling, split

READ = (".png", ".jpg", ".jpeg", ".webp", ".npy")  # extensions of images
COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
UNPACK = "unpack them (gunzip, for instance): positions within compressed tars cannot be found"
TARS = (".tar", *COMPRESSED)
JOINED = "::"  # between shards, as webdataset writes it
LISTS = (".txt", ".list")
LONGEST_LIST = 2**26  # bytes of a list file
# {0..999999999} would fill the memory before it is refused.
MOST_SHARDS = 2**20  # that a brace pattern may stand for


def list_shards(source: str) -> list[str]:
    """The shards that a source names, as absolute paths or URIs; empty if it names images.

    Raises DataError for a list or a glob that names nothing and a folder that mixes shards and
    images, UsageError for an unsupported scheme and for braces that do not match.
    """
    refuse_scheme(source)
    # A folder may have `::` in its name.
    if JOINED in source and (is_remote(source) or not as_path(source).exists()):
        return [shard for part in source.split(JOINED) for shard in _some_shards(part)]
    if is_remote(source):
        return _list_remote(source)
    path = as_path(source)
    if path.is_dir():
        return _tars_of_folder(path)
    if path.suffix in LISTS and path.is_file():
        return _list_file(source, path)
    if "{" in source or has_magic(source):
        return [shard for pattern in expanded(str(path)) for shard in _matching(pattern)]
    return [str(path)] if path.name.lower().endswith(TARS) else []


def _some_shards(source: str) -> list[str]:
    if shards := list_shards(source):
        return shards
    raise DataError(f"{source!r} names no tar shard: check the path")


def _matching(pattern: str) -> list[str]:
    """The shards that a glob matches; an existing path and one without wildcards match alone."""
    # shards[1].tar may be a name: it is tried first.
    if not has_magic(pattern) or os.path.exists(pattern):
        return [pattern]
    found = [path for path in sorted(glob(pattern), key=os.fsencode) if _is_shard(Path(path))]
    if not found:
        raise DataError(f"{pattern!r} matches no tar shard: check it, or name a folder")
    return found


def _is_shard(path: Path) -> bool:
    """Whether a path is a visible tar file; macOS adds hidden `._x.tar`, and folders may match."""
    return path.name.lower().endswith(".tar") and not path.name.startswith(".") and path.is_file()


def _tars_of_folder(folder: Path) -> list[str]:
    """The tars of a folder; raise DataError if it also holds what would be ignored."""
    shards = sorted((path for path in folder.iterdir() if _is_shard(path)), key=os.fsencode)
    # Without a tar it is a folder of images, or empty, which others report.
    for path in folder.iterdir() if shards else ():
        if path.name.lower().endswith(COMPRESSED):
            raise DataError(
                f"folder {str(folder)!r} holds compressed tars ({path.name!r}) and others: {UNPACK}"
            )
        if path.suffix.lower() in READ:
            raise DataError(
                f"folder {str(folder)!r} holds shards and images ({path.name!r}): keep them apart"
            )
    return [str(shard) for shard in shards]


def ignored_tars(source: str) -> int:
    """How many entries of a folder have the name of a shard and are hidden or folders."""
    if is_remote(source) or not as_path(source).is_dir():
        return 0
    named = [path for path in as_path(source).iterdir() if path.name.lower().endswith(".tar")]
    return sum(not _is_shard(path) for path in named)


def is_prefix(uri: str) -> bool:
    """Whether a URI names what is below it, rather than a shard, a pattern of them or a list."""
    path = parse(uri).path
    if is_web(uri):
        return path.endswith("/")
    return not path.lower().endswith((*TARS, *LISTS)) and not any(
        sign in path for sign in ("{", "*", JOINED)
    )


def _list_remote(uri: str) -> list[str]:
    path = parse(uri).path
    if path.endswith(LISTS):
        blob = Object(uri)
        _refuse_long(blob.name, blob.size)
        return _listed(uri, blob.read(0, blob.size))
    if is_prefix(uri):
        return list_tars(uri)
    return [shard for pattern in expanded(uri) for shard in _matching_remote(pattern)]


def _matching_remote(uri: str) -> list[str]:
    """The objects that a glob in the last part of a URI matches."""
    folder, pattern = split(uri)
    if "*" not in parse(uri).path:
        return [uri]
    # Each `*` higher up would need a listing of all that lies below.
    if "*" in parse(folder).path:
        raise UsageError(
            f"{name_of(uri)!r}: in object storage only the last part of a name may be a pattern"
        )
    shards = [shard for shard in list_tars(folder) if fnmatchcase(split(shard)[1], pattern)]
    if not shards:
        raise DataError(f"{name_of(uri)!r} matches no tar shard: check it, or name a prefix")
    return shards


def subfolders(source: str) -> list[str]:
    """The names of the visible folders directly below a folder or prefix."""
    if is_remote(source):
        names = list_folders(source)
    else:
        names = [entry.name for entry in os.scandir(as_path(source)) if entry.is_dir()]
    return sorted(name for name in names if not name.startswith("."))


def _list_file(source: str, path: Path) -> list[str]:
    try:
        _refuse_long(str(path), path.stat().st_size)
        return _listed(source, path.read_bytes())
    except OSError as error:
        raise DataError(
            f"list file {str(path)!r} cannot be read ({error.strerror}): check its permissions"
        ) from None


def _refuse_long(name: str, size: int) -> None:
    if size > LONGEST_LIST:
        raise DataError(
            f"list file {name!r} has {size} bytes, {LONGEST_LIST} are the most: is it a list?"
        )


def _listed(source: str, content: bytes) -> list[str]:
    """The shards of a list file; names are relative to it."""
    try:
        lines = [line.strip() for line in content.decode().splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(
            f"list file {source!r} is not text in UTF-8 (byte {error.start}): write one path a line"
        ) from None
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise DataError(f"list file {source!r} names no shard: write one path a line")
    for name in names:
        refuse_scheme(name)
    return [shard for name in names for shard in expanded(_relative_to(source, name))]


def _relative_to(source: str, name: str) -> str:
    if is_remote(name) or Path(name).is_absolute():
        return name
    if is_remote(source):
        return sibling(source, name)
    # Absolute already, though they do not look so.
    alone = name.startswith(("~", "file://"))
    return str(as_path(name) if alone else as_path(source).parent / name)


def expanded(pattern: str) -> list[str]:
    """A brace pattern as webdataset expands it."""
    if "{" not in pattern:
        return [pattern]
    import braceexpand  # what webdataset itself calls

    try:
        # One more than allowed, to see that there are more.
        found = list(islice(braceexpand.braceexpand(pattern), MOST_SHARDS + 1))
    except ValueError:
        raise UsageError(
            f"{pattern!r} is not a pattern of shards, its braces do not match: write {{000..099}}"
        ) from None
    if len(found) > MOST_SHARDS:
        raise UsageError(
            f"{pattern!r} stands for more than {MOST_SHARDS:,} shards: name them in a list file"
        )
    return found
