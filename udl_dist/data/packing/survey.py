"""What a run would see, counted without packing anything; knows no batch and no pixel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from udl_dist.data.loader.opening import open_streams
from udl_dist.data.packing.prepare import cached, is_packed_at_first_use, parts_of, prepare, settled
from udl_dist.data.packing.settings import PackSettings
from udl_dist.data.packing.sources import open_source
from udl_dist.data.settings import DataSettings


@dataclass(frozen=True)
class Survey:
    """Counts of a source; where it is not packed yet, the held-out part is what its fraction
    promises on average.
    """

    records: int
    held_out_records: int
    shards: int
    packed: bool
    classes: tuple[str, ...] = ()  # their names, if they have any
    held_out_is: str = ""  # where held-out images come from
    left_out: int = 0  # records that cannot be read and are not in the index


def survey(settings: DataSettings) -> Survey:
    """Count records and shards. Shards without an index are indexed, images are only listed.

    Raises what `prepare` raises.
    """
    settings = settled(settings)
    sources = (settings.source, *settings.more_sources)
    if all(_is_ready(source, settings) for source in sources):
        train, held_out = open_streams(prepare(settings), 0)
        shards = sum(len(dataset.index.shards) for dataset in train.datasets)
        parts = parts_of(settings.source, settings, None)
        datasets = [*train.datasets, *(held_out.datasets if held_out else ())]
        left_out = sum({str(each.index.path): each.index.left_out for each in datasets}.values())
        part = "val" if parts.val else "test" if parts.test else ""
        return Survey(
            train.records,
            held_out.records if held_out else 0,
            shards,
            True,
            train.datasets[0].index.about.classes,
            _held_out_is(settings, part),
            left_out,
        )
    alone = [replace(settings, source=source, more_sources=(), weights=()) for source in sources]
    each = [_promised(one) if not _is_ready(one.source, one) else survey(one) for one in alone]
    held = (
        each[0].held_out_records if settings.held_out else sum(one.held_out_records for one in each)
    )
    return Survey(
        sum(one.records for one in each),
        held,
        sum(one.shards for one in each),
        False,
        each[0].classes,
        each[0].held_out_is,
    )


def _held_out_is(settings: DataSettings, part: str) -> str:
    """Where the held-out images of the first source come from, in words."""
    if settings.held_out:
        return "data.held_out"
    return part or (
        f"{settings.held_out_fraction:g} of all, by a hash" if settings.held_out_fraction else ""
    )


def _is_ready(source: str, settings: DataSettings) -> bool:
    return not is_packed_at_first_use(source) or _cached(source, settings)[0].exists()


def _cached(source: str, settings: DataSettings) -> tuple[Path, PackSettings]:
    fraction = 0.0 if settings.held_out else settings.held_out_fraction
    return cached(source, replace(settings, held_out_fraction=fraction))


def _promised(settings: DataSettings) -> Survey:
    packing = _cached(settings.source, settings)[1]
    source = open_source(settings.source)
    parts = source.parts
    everything, held_out = len(parts["train"]), 0
    if settings.held_out:
        held_out = survey(
            replace(settings, source=settings.held_out, held_out="", held_out_fraction=0.0)
        ).records
    elif "val" in parts:
        held_out = len(parts["val"])
    elif packing.held_out_fraction:
        held_out = round(everything * packing.held_out_fraction)
        everything -= held_out
    elif "test" in parts:
        held_out = len(parts["test"])
    everything = min(everything, settings.limit) if settings.limit else everything
    part = (
        "val"
        if "val" in parts
        else "test"
        if "test" in parts and not settings.held_out_fraction
        else ""
    )
    return Survey(
        everything,
        held_out,
        ceil(everything / packing.shard_records),
        False,
        source.classes,
        _held_out_is(settings, part),
    )
