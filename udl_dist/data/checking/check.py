"""Checks a set of shards: examines each in a thread, then finds copies and leaks among all.

In memory are one image a thread, the rows and keys of the shards in work, and 50 bytes a record.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from udl_dist.core.config_schema import as_path
from udl_dist.core.files import finish_folder, partial_folder
from udl_dist.data.checking.duplicates import Table, count_near, exact_groups
from udl_dist.data.checking.examine import TABLE, Examination, Whole
from udl_dist.data.checking.findings import LISTED, Damaged, Findings, Looked
from udl_dist.data.checking.sources import ShardJob, Sources, find
from udl_dist.data.settings import CheckSettings, cache_folder
from udl_dist.data.shards.index import shown
from udl_dist.data.shards.indexing import Progress
from udl_dist.data.shards.reading import cut_out
from udl_dist.data.shards.records import key_at
from udl_dist.data.shards.tar import BLOCK
from udl_dist.data.threads import Report, run_threads
from udl_dist.errors import UsageError
from udl_dist.storage.uris import SCHEME, name_of

Groups = list[list[int]]  # rows of the table with equal payloads


@dataclass(frozen=True)
class Examined:
    """What the examination of one shard found."""

    records: Table
    damage: list[Damaged]
    readable: int  # records of the index
    shard_bytes: int


def check(source: str, settings: CheckSettings, progress: Progress | None = None) -> Findings:
    """Check the shards that `source` names; `progress(done, total)` counts bytes.

    Damage is part of the findings. Raises DataError if `source` names no shards, UsageError if the
    clean copy cannot be written.
    """
    began = time.monotonic()
    sources = find(source, cache_folder(settings.cache))
    # Before all shards are read.
    _refuse_idle(settings, {job.part for job in sources.jobs})
    dest = as_path(settings.fix) if settings.fix else None
    with ExitStack() as stack:
        folder = stack.enter_context(partial_folder(dest)) if dest else None
        total = sum(job.shard_bytes for job in sources.jobs)
        examined = run_threads(
            sources.jobs,
            lambda job, report: _examine(job, sources, settings, report),
            settings.threads,
            progress if total else None,  # unknown for remote shards without an index
            total,
        )
        table = np.concatenate([one.records for one in examined])
        # Only after all shards: a copy may lie in any other one, and a leak always does.
        groups = exact_groups(table, lambda record: _digest(sources, table[record]))
        found = _findings(sources, settings, examined, table, groups)
        if folder and dest:
            # webdataset takes two seconds to import
            from udl_dist.data.checking.fix import write_clean

            dropped = _dropped(sources, table, groups, settings)
            fixed = write_clean(sources, settings, folder, dropped)
            found = dataclasses.replace(found, fixed=fixed)
            # Complete or absent: an error above removes the hidden folder.
            finish_folder(folder, dest)
    return dataclasses.replace(found, seconds=time.monotonic() - began)


def _refuse_idle(settings: CheckSettings, parts: set[str]) -> None:
    """Raise UsageError for a setting that has no effect or cannot have its effect."""
    if (settings.drop_copies or settings.drop_leaks) and not settings.fix:
        raise UsageError(
            "drop_copies and drop_leaks are for the clean copy: name a folder for it with --fix"
        )
    if settings.drop_leaks and len(parts) < 2:
        raise UsageError(
            "drop_leaks compares training images with held-out ones: name a folder with train"
            " and val"
        )
    if SCHEME.match(settings.fix):
        raise UsageError(
            f"a clean copy is written to a disk, not to {settings.fix!r}: name a folder, and copy"
            " it there"
        )


def _examine(job: ShardJob, sources: Sources, settings: CheckSettings, report: Report) -> Examined:
    rows, damage, readable, at = [], list[Damaged](), 0, 0
    examination = Examination(
        job,
        sources.shape_of(job),
        settings.decode,
        near=settings.near_bits >= 0,
        most_pixels=settings.most_pixels,
    )
    for found in examination.run():
        if isinstance(found, Whole):
            rows.append(found.as_row(job))
            readable += found.indexed
            # Records that only the index knows come last, out of order: progress never goes back.
            report(max(0, found.offset - at))
            at = max(at, found.offset)
        else:
            damage.append(found)
    report(max(0, job.shard_bytes - at))
    return Examined(np.array(rows, TABLE), damage, readable, examination.shard_bytes)


def _findings(
    sources: Sources,
    settings: CheckSettings,
    examined: list[Examined],
    table: Table,
    groups: Groups,
) -> Findings:
    indexed = [job.indexed_shard for job in sources.jobs if job.indexed_shard]
    records = dict.fromkeys((job.part for job in sources.jobs), 0)
    for job, one in zip(sources.jobs, examined, strict=True):
        records[job.part] += len(one.records)
    labels, counts = np.unique(table["label"][table["label"] >= 0], return_counts=True)
    names = dict(enumerate(sources.about.classes))
    labelled = zip(labels.tolist(), counts.tolist(), strict=True)
    # A group of held-out images only is a copy, not a leak.
    held_out = [table["held_out"][group] for group in groups]
    damage = [Damaged(where, 0, "", what, 0) for where, what in sources.broken]
    return Findings(
        source=sources.name,
        shards=len(sources.jobs),
        total_bytes=sum(one.shard_bytes for one in examined),
        compared=len(indexed),
        undigested=sum(not shard.digest for shard in indexed),
        indexed=sum(shard.records for shard in indexed),
        readable=sum(one.readable for one in examined),
        records=records,
        classes={names.get(label, str(label)): count for label, count in labelled},
        keys_again=len(table) - len(np.unique(table["key_hash"])),
        copies=sum(len(group) - 1 for group in groups),
        copied=[_named(sources, table, group) for group in groups[:LISTED]],
        leaks=sum(int(held.sum()) for held in held_out if not held.all()),
        damage=damage + [entry for one in examined for entry in one.damage],
        looked=_looked(table, groups, settings.near_bits) if settings.decode else None,
    )


def _dropped(
    sources: Sources, table: Table, groups: Groups, settings: CheckSettings
) -> dict[tuple[int, int], str]:
    """The copies that a clean copy leaves out: (shard, offset) -> why."""
    dropped = {}
    for group in groups if settings.drop_copies or settings.drop_leaks else ():
        # A training image stays, or a leak would be cured by training on less.
        trained = [record for record in group if not table["held_out"][record]]
        stays = (trained or group)[0]
        for record in group:
            leak = bool(table["held_out"][record] and trained)
            if record != stays and (settings.drop_copies or leak):
                row = table[record]
                what = "is held out and a copy of" if leak else "is a copy of"
                place = int(row["shard"]), int(row["offset"])
                dropped[place] = f"{what} the image at {_named(sources, table, [stays])[0]}"
    return dropped


def _looked(table: Table, groups: Groups, near_bits: int) -> Looked:
    """What decoding showed; near copies are counted among the first ones of exact copies."""
    sizes = Counter(f"{width} x {height}" for width, height in table[["width", "height"]].tolist())
    channels = Counter(str(count) for count in table["channels"].tolist())
    near = leaks = 0
    if near_bits >= 0:
        # Exact copies are near copies too, and would be counted twice.
        repeated = [record for group in groups for record in group[1:]]
        near, leaks = count_near(np.delete(table, repeated), near_bits)
    return Looked(dict(sizes), dict(channels), int(table["constant"].sum()), near, leaks)


def _digest(sources: Sources, row: Any) -> bytes:
    path, start = sources.jobs[int(row["shard"])].path, int(row["offset"])
    return xxhash.xxh3_128_digest(cut_out(path, start, start + int(row["length"])))


def _named(sources: Sources, table: Table, group: list[int]) -> list[str]:
    """Records for people: shard, byte, and the key if its header shows it."""
    named = []
    for row in table[group[:LISTED]]:
        path, start = sources.jobs[int(row["shard"])].path, int(row["offset"])
        # The header is the block in front of the content: keys are not in the table.
        header = cut_out(path, max(0, start - BLOCK), start)
        key = shown(key_at(header, 0, sources.about.naming))
        named.append(f"{name_of(path)} at byte {start}, key {key}")
    return named
