"""Which shards a source names: a tar, a folder, a brace pattern, a list file; on disk or in object storage."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from udl_dist.errors import DataError, UsageError
from udl_dist.packing.sources import READ
from udl_dist.settings import as_path
from udl_dist.storage.places import is_remote, joined, parse, refuse_scheme, split

TARS = (".tar", ".tgz", ".tar.gz")
LISTS = (".txt", ".list")
LONGEST_LIST = 2**26  # bytes of a list file
MOST_SHARDS = 2**20  # that a brace pattern may stand for


def list_shards(source: str) -> list[str]:
    """The shards that a source names, as absolute paths or URIs; empty if it is none.

    Raises DataError for a list that names nothing and a folder that mixes shards and images, UsageError for a scheme
    that is never opened and for braces that do not match.
    """
    refuse_scheme(source)
    if is_remote(source):
        return _list_remote(source)
    path = as_path(source)
    if path.is_dir():
        return _tars(path)
    if path.suffix in LISTS and path.is_file():
        return _listed(source, _read_list(path))
    return expanded(str(path)) if path.name.endswith(TARS) or "{" in source else []


def is_prefix(uri: str) -> bool:
    """Whether a URI names what is below it, rather than a shard, a pattern of them or a list."""
    path = parse(uri).path
    return not path.endswith((*TARS, *LISTS)) and "{" not in path


def _list_remote(uri: str) -> list[str]:
    from udl_dist.storage.objects import list_tars, open_blob

    path = parse(uri).path
    if path.endswith(LISTS):
        blob = open_blob(uri)
        _refuse_long(blob.name, blob.size)
        return _listed(uri, blob.read(0, blob.size))
    return list_tars(uri) if is_prefix(uri) else expanded(uri)


def subfolders(source: str) -> list[str]:
    """The names of the folders directly below a folder or prefix, hidden ones left out."""
    if is_remote(source):
        from udl_dist.storage.objects import list_folders

        names = list_folders(source)
    else:
        names = [entry.name for entry in os.scandir(as_path(source)) if entry.is_dir()]
    return sorted(name for name in names if not name.startswith("."))


def _read_list(path: Path) -> bytes:
    try:
        _refuse_long(str(path), path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"list file {str(path)!r} cannot be read ({error.strerror}): put it right") from None


def _refuse_long(name: str, size: int) -> None:
    if size > LONGEST_LIST:
        raise DataError(f"list file {name!r} has {size} bytes, {LONGEST_LIST} are the most: is it a list?")


def _listed(source: str, content: bytes) -> list[str]:
    """The shards of a list file; names are relative to it."""
    try:
        lines = [line.strip() for line in content.decode().splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(
            f"list file {source!r} is no text in UTF-8 (byte {error.start}): write one path a line"
        ) from None
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise DataError(f"list file {source!r} names no shard: write one path a line")
    for name in names:
        refuse_scheme(name)
    return [shard for name in names for shard in expanded(_beside(source, name))]


def _beside(source: str, name: str) -> str:
    if is_remote(name) or Path(name).is_absolute():
        return name
    if is_remote(source):
        return joined(split(source)[0], name)
    return str(as_path(name) if name.startswith("~") else as_path(source).parent / name)


def _tars(folder: Path) -> list[str]:
    """The tars of a folder, which must not hold images as well: one of the two would be passed over."""
    shards = sorted(folder.glob("*.tar"), key=os.fsencode)
    odd = next((path for path in folder.iterdir() if path.suffix.lower() in READ), None) if shards else None
    if odd is not None:
        raise DataError(f"folder {str(folder)!r} holds shards and images ({odd.name!r}): keep them apart")
    return [str(shard) for shard in shards]


def expanded(pattern: str) -> list[str]:
    """A brace pattern as webdataset expands it; raise UsageError if it makes no sense."""
    if "{" not in pattern:
        return [pattern]
    import braceexpand  # what webdataset itself calls

    try:
        found = list(islice(braceexpand.braceexpand(pattern), MOST_SHARDS + 1))
    except ValueError:
        raise UsageError(f"{pattern!r} is no pattern of shards, its braces do not match: write {{000..099}}") from None
    if len(found) > MOST_SHARDS:
        raise UsageError(f"{pattern!r} stands for more than {MOST_SHARDS:,} shards: name them in a list file")
    return found
