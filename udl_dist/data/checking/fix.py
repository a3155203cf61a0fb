"""Writes a clean copy of shards: plain tars with an index, and a list of what was left out.

The copy has what the index's checksum confirms; without a checksum, what decodes. Labels come from
the index where it has them. No name in the copy leads out of its folder when it is extracted.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from webdataset import TarWriter

from udl_dist.core.files import whole_file
from udl_dist.data.checking.examine import Examination, Whole
from udl_dist.data.checking.findings import Damaged
from udl_dist.data.checking.sources import ShardJob, Sources
from udl_dist.data.packing.pack import LEFT_OUT
from udl_dist.data.settings import CheckSettings
from udl_dist.data.shards.index import NAME, shown
from udl_dist.data.shards.indexing import index_shards
from udl_dist.data.shards.naming import LABEL
from udl_dist.data.shards.records import LARGEST_IMAGE
from udl_dist.data.shards.tar import BLOCK, Data
from udl_dist.errors import DataError
from udl_dist.storage.uris import name_of, split

# (number of the shard, offset of the image): why it is left out
Dropped = Mapping[tuple[int, int], str]


def write_clean(sources: Sources, settings: CheckSettings, folder: Path, dropped: Dropped) -> str:
    """Write the whole records of every shard into `folder`, without the `dropped`; summarise."""
    copied, left_out, parts = 0, list[str](), dict[str, list[Path]]()
    # Names stay where they are unique; shards of several folders may share one.
    stems = [(job.part, Path(split(job.path)[1]).stem) for job in sources.jobs]
    count = Counter(stems)
    for job, stem in zip(sources.jobs, stems, strict=True):
        name = stem[1] if count[stem] == 1 else f"{job.number:06d}"
        path = folder / job.part / f"{name}.tar"
        path.parent.mkdir(exist_ok=True)
        records, lines = _copy(job, path, settings, sources, dropped)
        copied, left_out = copied + records, left_out + lines
        parts.setdefault(job.part, []).extend([path] if records else [])
    for part, shards in parts.items():
        if not shards:
            raise DataError(
                f"no record of {part or 'the shards'} can be copied: no clean copy is written"
            )
        about = dataclasses.replace(sources.about, left_out=sources.about.left_out + len(left_out))
        index_shards(sorted(shards, key=os.fsencode), folder / part / NAME, about)
    (folder / LEFT_OUT).write_text("".join(f"{line}\n" for line in left_out), encoding="utf-8")
    return (
        f"{copied:,} records, {len(left_out):,} things left out, listed in {LEFT_OUT}:"
        f" {settings.fix!r}"
    )


def _copy(
    job: ShardJob, path: Path, settings: CheckSettings, sources: Sources, dropped: Dropped
) -> tuple[int, list[str]]:
    """Copy one shard; return the count of its records and a line for each thing left out."""
    examination = Examination(
        job,
        sources.shape_of(job),
        settings.decode,
        decode_unknown=True,
        most_pixels=settings.most_pixels,
    )
    copied, places, damage, lines = 0, set[int](), list[Damaged](), list[str]()
    # encoder: bytes as they are; mtime 0: equal records give equal tars.
    with whole_file(path) as file, TarWriter(file, encoder=False, mtime=0) as writer:
        for found in examination.run():
            if isinstance(found, Damaged):
                damage.append(found)
                continue
            where = f"shard {name_of(job.path)!r} at byte {found.offset - BLOCK}"
            where = f"{where}, key {shown(found.key)}"
            # Examined a second time: no image stayed in memory.
            if why := dropped.get((job.number, found.offset)):
                lines.append(f"{where} {why}")
            # Damage can put any bytes into a name, also `../`, which `tar x` would follow.
            elif not is_plain(found.key):
                lines.append(f"{where}: its key is not a plain relative name in UTF-8")
            else:
                others = _write(writer, examination.data, found)
                lines += [f"{where}: its member {shown(other)} is left out" for other in others]
                copied += 1
                places |= {found.offset - BLOCK, found.group.at if found.group else 0}
    if not copied:
        path.unlink()
    # damage to a record that the copy has anyway is not listed
    lost = [entry.line() for entry in damage if entry.at not in places or entry.lost]
    return copied, lost + lines


def _write(writer: TarWriter, data: Data, whole: Whole) -> list[bytes]:
    """Write one record, its other members unopened; return the members that are left out."""
    record: dict[str, str | bytes] = {
        "__key__": whole.key.decode(),
        whole.extension.decode(): data[whole.offset : whole.offset + whole.length],
    }
    # From the index where it has one: the member's header or digits may be what is damaged.
    if whole.label >= 0:
        record["cls"] = str(whole.label).encode()
    left_out = []
    for extension, member in whole.group.members if whole.group else ():
        if extension == whole.extension or (extension == LABEL and "cls" in record):
            continue
        name = extension.decode("ascii", "replace")
        fits = is_plain(extension) and member.length <= LARGEST_IMAGE
        # webdataset keeps names with an underscore for itself (__key__, __url__).
        if not fits or name in record or name.startswith("_"):
            left_out.append(extension)
        else:
            record[name] = data[member.offset : member.offset + member.length]
    writer.write(record)
    return left_out


def is_plain(name: bytes) -> bool:
    """Whether a name is printable UTF-8 and stays below the folder in which it is extracted."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return False
    path = PurePosixPath(text)
    relative = not path.is_absolute() and ".." not in path.parts
    return bool(text) and text.isprintable() and relative and "\\" not in text
