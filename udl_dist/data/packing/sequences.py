"""Which shards a source names that can only be read in sequence, and what makes no sense with them.

A pipe runs a command, so it is taken from `data.source` alone, as it was written there, and never
from a list.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urljoin, urlsplit

from udl_dist.core.config_schema import as_path
from udl_dist.data.packing.finding import LISTS, LONGEST_LIST, expanded
from udl_dist.data.settings import DataSettings
from udl_dist.errors import DataError, UsageError
from udl_dist.storage.fetching import Limits
from udl_dist.storage.places import is_sequential, scheme_of
from udl_dist.storage.web import read_whole, url_name

# Settings of an order, a selection or a storage that these shards do not have.
IDLE = ("weights", "keys", "without_labels", "limit", "order", "storage_cache_bytes")


def list_sequence(settings: DataSettings) -> tuple[str, ...]:
    """The shards of all sources in order; raise UsageError for what cannot be meant, DataError for
    an empty list.
    """
    default = DataSettings()
    idle = [name for name in IDLE if getattr(settings, name) != getattr(default, name)]
    if idle:
        raise UsageError(
            f"data.{idle[0]} has no meaning with data.sequential, which knows no record: leave"
            " one out"
        )
    if settings.held_out_fraction not in (0.0, default.held_out_fraction):
        raise UsageError(
            "data.held_out_fraction has no meaning with data.sequential: let data.held_out name a"
            " source that can be indexed"
        )
    found = tuple(
        shard
        for source in (settings.source, *settings.more_sources)
        for shard in _shards(source, settings.storage)
    )
    if len(set(found)) < len(found):
        raise UsageError("data.source and data.more_sources name a shard twice: name each once")
    return found


def indexed(settings: DataSettings) -> DataSettings:
    """The settings for the held-out source, which is indexed like any other."""
    return replace(
        settings,
        source=settings.held_out,
        held_out="",
        held_out_fraction=0.0,
        more_sources=(),
        sequential=False,
    )


def _shards(source: str, limits: Limits) -> Iterator[str]:
    if not is_sequential(source) and not _is_list(source):
        raise UsageError(
            f"data.sequential is for http:, https: and pipe:, and {source!r} can be indexed: leave"
            " it out"
        )
    if scheme_of(source) == "pipe":
        if not source.partition(":")[2].strip():
            raise UsageError("pipe: names no command")
        yield from expanded(source)
    elif is_sequential(source) and not urlsplit(source).path.endswith(LISTS):
        for url in expanded(source):
            url_name(url)
            yield url
    else:
        yield from _listed(source, limits)


def _is_list(source: str) -> bool:
    return not scheme_of(source) and source.endswith(LISTS)


def _listed(source: str, limits: Limits) -> Iterator[str]:
    """The URLs of a list, on a disk or itself at a URL, to which its lines may be relative."""
    if is_sequential(source):
        text = read_whole(source, limits, LONGEST_LIST).decode("utf-8", "replace")
    else:
        path = as_path(source)
        if not path.is_file():
            raise DataError(f"list file {source!r} is missing")
        text = path.read_text("utf-8")
    lines = [line.strip() for line in text.splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise DataError(f"list file {source!r} names no shard: write one URL a line")
    for name in names:
        url = urljoin(source, name) if is_sequential(source) else name
        if scheme_of(url) not in ("http", "https"):
            raise UsageError(
                f"list file {source!r} names {name[:80]!r}: with data.sequential a list holds http:"
                " and https: URLs alone"
            )
        url_name(url)
        yield from expanded(url)
