"""A clean copy of shards: plain tars with an index beside them, and a list of what could not be
kept.

Kept is what the index's checksum vouches for; without a checksum, what decodes. Labels come from
the index where it has them. Nothing is written under a name that would leave its folder, were the
copy ever extracted.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from webdataset import TarWriter

from udl_dist.data.checking.examine import Damaged, Examination, Whole
from udl_dist.data.checking.sources import Job, Sources
from udl_dist.data.settings import CheckSettings
from udl_dist.data.shards.index import NAME, shown
from udl_dist.data.shards.indexing import index_shards
from udl_dist.data.shards.naming import LABEL
from udl_dist.data.shards.reading import opened
from udl_dist.data.shards.records import LARGEST_IMAGE
from udl_dist.data.shards.tar import BLOCK, Data
from udl_dist.errors import DataError
from udl_dist.storage.places import name_of, split

LEFT_OUT = "left_out.txt"


# (number of the shard, offset of the image): why it is left out
Dropped = Mapping[tuple[int, int], str]


def write_clean(sources: Sources, settings: CheckSettings, folder: Path, dropped: Dropped) -> str:
    """Write what can be kept of every shard into `folder`, without what is `dropped`; say in words
    what was.
    """
    kept, left_out, parts = 0, list[str](), dict[str, list[Path]]()
    taken = Counter((job.part, _stem(job)) for job in sources.jobs)
    for job in sources.jobs:
        own = _stem(job)
        stem = own if taken[job.part, own] == 1 else f"{job.number:06d}"
        path = folder / job.part / f"{stem}.tar"
        path.parent.mkdir(exist_ok=True)
        records, lines = _copy(job, path, settings, sources, dropped)
        kept, left_out = kept + records, left_out + lines
        parts.setdefault(job.part, []).extend([path] if records else [])
    for part, shards in parts.items():
        if not shards:
            raise DataError(
                f"nothing of {part or 'the shards'} can be kept: no clean copy is written"
            )
        about = dataclasses.replace(sources.about, left_out=sources.about.left_out + len(left_out))
        index_shards(sorted(shards, key=os.fsencode), folder / part / NAME, about)
    (folder / LEFT_OUT).write_text("".join(f"{line}\n" for line in left_out), encoding="utf-8")
    return (
        f"{kept:,} records, {len(left_out):,} things left out, listed in {LEFT_OUT}:"
        f" {settings.fix!r}"
    )


def _stem(job: Job) -> str:
    return Path(split(job.path)[1]).stem


def _copy(
    job: Job, path: Path, settings: CheckSettings, sources: Sources, dropped: Dropped
) -> tuple[int, list[str]]:
    """Write what can be kept of one shard; give the count of its records and a line for each thing
    left out.
    """
    shape = sources.about.shape if job.index is None else job.index.about.shape
    examination = Examination(
        job, shape, settings.decode, decode_unknown=True, most_pixels=settings.most_pixels
    )
    kept, places, damage, lines = 0, set[int](), list[Damaged](), list[str]()
    with path.open("wb") as file, ExitStack() as stack:
        data: Data | None = None
        with TarWriter(file, encoder=False, mtime=0) as writer:
            for found in examination.run():
                if isinstance(found, Damaged):
                    damage.append(found)
                    continue
                if why := dropped.get((job.number, found.offset)):
                    lines.append(f"{_where(job, found)} {why}")
                    continue
                # a walk of its own, behind the examination
                data = data or stack.enter_context(opened(job.path))[0]
                written, odd = _write(writer, data, job, found)
                lines += odd
                kept += written
                places |= (
                    {found.offset - BLOCK, found.group.at if found.group else 0}
                    if written
                    else set()
                )
        file.flush()
        os.fsync(file.fileno())
    if not kept:
        path.unlink()
    return kept, [entry.line() for entry in damage if entry.at not in places or entry.lost] + lines


def _write(writer: TarWriter, data: Data, job: Job, whole: Whole) -> tuple[int, list[str]]:
    """Write one record; give 1 if it was written, and a line for each member left out."""
    where = _where(job, whole)
    if not is_plain(whole.key):
        return 0, [f"{where}: its key is no plain relative name in UTF-8"]
    record: dict[str, str | bytes] = {
        "__key__": whole.key.decode(),
        whole.extension.decode(): data[whole.offset : whole.offset + whole.length],
    }
    if whole.label >= 0:
        record["cls"] = str(whole.label).encode()
    odd = _add_others(record, data, whole)
    writer.write(record)
    return 1, [f"{where}: its member {shown(extension)} is left out" for extension in odd]


def _where(job: Job, whole: Whole) -> str:
    return f"shard {name_of(job.path)!r} at byte {whole.offset - BLOCK}, key {shown(whole.key)}"


def _add_others(record: dict[str, str | bytes], data: Data, whole: Whole) -> list[bytes]:
    """Add the members that are neither image nor label, unopened; give those that are left out."""
    odd = []
    for extension, member in whole.group.members if whole.group else ():
        if extension == whole.extension or (extension == LABEL and "cls" in record):
            continue
        name = extension.decode("ascii", "replace")
        if (
            name in record
            or name.startswith("_")
            or not is_plain(extension)
            or member.length > LARGEST_IMAGE
        ):
            odd.append(extension)
        else:
            record[name] = data[member.offset : member.offset + member.length]
    return odd


def is_plain(name: bytes) -> bool:
    """Whether a name is printable UTF-8 and stays below the folder in which it is extracted."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return False
    path = PurePosixPath(text)
    return (
        bool(text)
        and text.isprintable()
        and not path.is_absolute()
        and ".." not in path.parts
        and "\\" not in text
    )
