"""What a run would see, counted without packing anything; knows no batch and no pixel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from udl_dist.packing.prepare import cached, is_packed_at_first_use, prepare
from udl_dist.packing.settings import PackSettings
from udl_dist.packing.sources import open_source
from udl_dist.stream.opening import open_streams
from udl_dist.stream.settings import DataSettings


@dataclass(frozen=True)
class Survey:
    """Counts of a source; where it is not packed yet, the held-out part is what its fraction promises on average."""

    records: int
    held_out_records: int
    shards: int
    packed: bool


def survey(settings: DataSettings) -> Survey:
    """Count records and shards. Shards without an index are indexed, images are only listed.

    Raises what `prepare` raises.
    """
    fraction = 0.0 if settings.held_out else settings.held_out_fraction
    if is_packed_at_first_use(settings.source):
        where, packing = cached(settings.source, replace(settings, held_out_fraction=fraction))
        if not where.exists():
            return _promised(settings, packing)
    train, held_out = open_streams(prepare(settings), 0)
    return Survey(train.records, held_out.records if held_out else 0, len(train.index.shards), True)


def _promised(settings: DataSettings, packing: PackSettings) -> Survey:
    parts = open_source(settings.source).parts
    everything, held_out = len(parts["train"]), 0
    if settings.held_out:
        held_out = survey(replace(settings, source=settings.held_out, held_out="", held_out_fraction=0.0)).records
    elif "val" in parts:
        held_out = len(parts["val"])
    elif packing.held_out_fraction:
        held_out = round(everything * packing.held_out_fraction)
        everything -= held_out
    elif "test" in parts:
        held_out = len(parts["test"])
    return Survey(everything, held_out, ceil(everything / packing.shard_records), False)
