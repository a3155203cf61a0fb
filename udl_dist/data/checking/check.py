"""A set of shards checked: each shard gone through in a thread, then what only all of them together
can show.

Holds one image a thread, the rows and keys of the shards in work, and 49 bytes of each record.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import xxhash

from udl_dist.core.config_schema import as_path
from udl_dist.core.files import finish_folder, partial_folder
from udl_dist.data.checking.duplicates import Table, exact_groups, near_records
from udl_dist.data.checking.examine import TABLE, Damaged, Examination, Whole, as_row
from udl_dist.data.checking.findings import LISTED, Findings, Looked
from udl_dist.data.checking.sources import Job, Sources, find
from udl_dist.data.packing.pack import run_threads
from udl_dist.data.settings import CheckSettings, cache_folder
from udl_dist.data.shards.index import shown
from udl_dist.data.shards.indexing import Progress
from udl_dist.data.shards.reading import cut_out
from udl_dist.data.shards.records import key_at
from udl_dist.data.shards.tar import BLOCK
from udl_dist.errors import UsageError
from udl_dist.storage.places import SCHEME, name_of

# Through one shard: its records, its damage, records of the index that are whole, and its bytes.
Gone = tuple[Table, list[Damaged], int, int]


def check(source: str, settings: CheckSettings, progress: Progress | None = None) -> Findings:
    """Check the shards that `source` names; `progress(done, total)` counts bytes.

    Raises DataError if it names none, UsageError if the clean copy cannot be written; damage is a
    finding.
    """
    began = time.monotonic()
    sources = find(source, cache_folder(settings.cache))
    _refuse_idle(settings, {job.part for job in sources.jobs})
    if not settings.fix:
        findings, _ = _together(source, sources, settings, _go_through(sources, settings, progress))
        return dataclasses.replace(findings, seconds=time.monotonic() - began)
    if SCHEME.match(settings.fix):
        raise UsageError(
            f"a clean copy is written to a disk, not to {settings.fix!r}: name a folder, and copy"
            " it there"
        )
    dest = as_path(settings.fix)
    with partial_folder(dest) as folder:
        from udl_dist.data.checking.fix import write_clean  # webdataset takes two seconds to import

        findings, dropped = _together(
            source, sources, settings, _go_through(sources, settings, progress)
        )
        fixed = write_clean(sources, settings, folder, dropped)
        finish_folder(folder, dest)
    return dataclasses.replace(findings, fixed=fixed, seconds=time.monotonic() - began)


def _refuse_idle(settings: CheckSettings, parts: set[str]) -> None:
    """Raise UsageError for a setting that would do nothing."""
    if (settings.drop_copies or settings.drop_leaks) and not settings.fix:
        raise UsageError(
            "drop_copies and drop_leaks are for the clean copy: name a folder for it with --fix"
        )
    if settings.drop_leaks and len(parts) < 2:
        raise UsageError(
            "drop_leaks compares training images with held-out ones: name a folder with train"
            " and val"
        )


def _go_through(sources: Sources, settings: CheckSettings, progress: Progress | None) -> list[Gone]:
    """Every shard."""
    total = sum(job.shard_bytes for job in sources.jobs)
    # Of shards in object storage without an index it is not known before, and may grow.
    told = (lambda done, total: progress(min(done, total), total)) if progress and total else None
    return run_threads(
        sources.jobs,
        lambda job, done: _through(job, sources, settings, done),
        settings.threads,
        told,
        total,
    )


def _through(
    job: Job, sources: Sources, settings: CheckSettings, done: Callable[[int], None]
) -> Gone:
    """One shard."""
    shape = sources.about.shape if job.index is None else job.index.about.shape
    rows, damage, readable = [], [], 0
    examination = Examination(
        job, shape, settings.decode, near=settings.near_bits >= 0, most_pixels=settings.most_pixels
    )
    for found in examination.run():
        if isinstance(found, Whole):
            rows.append(as_row(found, job))
            readable += found.indexed
            done(found.offset)
        else:
            damage.append(found)
    done(job.shard_bytes)
    return np.array(rows, TABLE), damage, readable, examination.shard_bytes


def _together(
    source: str, sources: Sources, settings: CheckSettings, gone: list[Gone]
) -> tuple[Findings, dict[tuple[int, int], str]]:
    """What all shards show together, and which records a clean copy leaves out: (shard, offset) ->
    why.
    """
    table = np.concatenate([records for records, *_ in gone])
    parts = np.array([job.part for job in sources.jobs])[table["shard"]]
    held_out = (parts != "train") & (parts != "")
    groups = exact_groups(table, lambda record: _digest(sources, table[record]))
    again, leaked = np.zeros(len(table), bool), np.zeros(len(table), bool)
    for group in groups:
        again[group[1:]] = True
        leaked[group] = held_out[group] & bool((~held_out[group]).any())
    damage = [Damaged(where, 0, "", what, 0) for where, what in sources.broken]
    damage += [entry for _, found, *_ in gone for entry in found]
    found = Findings(
        source=source,
        shards=len(sources.jobs),
        total_bytes=sum(shard_bytes for *_, shard_bytes in gone),
        compared=sum(job.index is not None for job in sources.jobs),
        undigested=sum(
            job.index is not None and not job.index.shards[job.shard].digest for job in sources.jobs
        ),
        indexed=sum(job.indexed for job in sources.jobs),
        readable=sum(readable for _, _, readable, _ in gone),
        records={
            part: int((parts == part).sum())
            for part in dict.fromkeys(job.part for job in sources.jobs)
        },
        classes=_classes(table, sources),
        keys_again=len(table) - len(np.unique(table["key_hash"])),
        copies=int(again.sum()),
        copied=[_named(sources, table, group) for group in groups[:LISTED]],
        leaks=int(leaked.sum()),
        damage=damage,
        looked=_looked(table, held_out, ~again, settings) if settings.decode else None,
        fixed="",
        seconds=0.0,
    )
    return found, _dropped(sources, table, held_out, groups, settings)


def _dropped(
    sources: Sources, table: Table, held_out: Any, groups: list[list[int]], settings: CheckSettings
) -> dict[tuple[int, int], str]:
    """The copies that a clean copy leaves out."""
    dropped = {}
    for group in groups if settings.drop_copies or settings.drop_leaks else ():
        trained = [record for record in group if not held_out[record]]
        stays = (trained or group)[0]
        for record in group:
            leak = bool(held_out[record] and trained)
            if record != stays and (settings.drop_copies or leak):
                row = table[record]
                what = "is held out and a copy of" if leak else "is a copy of"
                place = int(row["shard"]), int(row["offset"])
                dropped[place] = f"{what} the image at {_named(sources, table, [stays])[0]}"
    return dropped


def _looked(table: Table, held_out: Any, first: Any, settings: CheckSettings) -> Looked:
    """What decoding showed; near copies are sought among the `first` of exact ones, and training
    comes first.
    """
    sizes = Counter(f"{width} x {height}" for width, height in table[["width", "height"]].tolist())
    channels = Counter(str(count) for count in table["channels"].tolist())
    near = leaks = np.zeros(0, bool)
    if settings.near_bits >= 0:
        near, leaks = near_records(table[first], held_out[first], settings.near_bits)
    return Looked(
        dict(sizes), dict(channels), int(table["constant"].sum()), int(near.sum()), int(leaks.sum())
    )


def _classes(table: Table, sources: Sources) -> dict[str, int]:
    """Records by the name of their class, or by label where there are no names."""
    labels, counts = np.unique(table["label"][table["label"] >= 0], return_counts=True)
    names = dict(enumerate(sources.about.classes))
    return {
        names.get(label, str(label)): count
        for label, count in zip(labels.tolist(), counts.tolist(), strict=True)
    }


def _digest(sources: Sources, row: Any) -> bytes:
    """What tells the payload of a record from any other."""
    start = int(row["offset"])
    return xxhash.xxh3_128_digest(
        cut_out(sources.jobs[int(row["shard"])].path, start, start + int(row["length"]))
    )


def _named(sources: Sources, table: Table, group: list[int]) -> list[str]:
    """Records in words: shard, byte, and the key where its header shows it whole."""
    named = []
    for row in table[group[:LISTED]]:
        path, start = sources.jobs[int(row["shard"])].path, int(row["offset"])
        header = cut_out(path, max(0, start - BLOCK), start)
        named.append(
            f"{name_of(path)} at byte {start}, key {shown(key_at(header, 0, sources.about.naming))}"
        )
    return named
