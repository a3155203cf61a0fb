"""Which records of an index a stream reads: a hashed fraction, listed keys, classes, a limit.

A selection is an array of sorted record numbers. Large ones are mapped files of the cache, so that
100 million records take no memory of a process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from udl_dist.core.config_schema import as_path
from udl_dist.core.files import whole_file
from udl_dist.data.loader import order
from udl_dist.data.loader.records import I64
from udl_dist.data.shards.index import Index, shown
from udl_dist.errors import DataError

SEED = 1  # not that of packing, which may already have held out the same records
# 8 MiB at most.
IN_MEMORY = 2**20  # record numbers
# 8 MiB at a time, which does not stay mapped: selecting from 100 M records took 25 MB this way,
# through the map 3.2 GB.
ROWS = 2**18  # rows read at a time, of 32 bytes each


@dataclass(frozen=True)
class Wanted:
    """What to select; `part` is 'all', or 'train' or 'held_out' of the hashed `fraction`."""

    part: str = "all"
    fraction: float = 0.0
    keys: str = ""  # path of a list, one key per line
    limit: int = 0
    labels: tuple[int, ...] = ()
    labels_are: Literal["left out", "all there is"] = "left out"


def none_left(held_out: bool, fraction: float, records: int, where: str) -> DataError:
    """The error for a fraction that leaves nothing to hold out, or nothing to train on."""
    share = "none" if held_out else "all"
    return DataError(
        f"held_out_fraction = {fraction:g} holds out {share} of {records:,} images in {where!r}:"
        " set it to 0 to hold out none, or to another fraction, or let data.held_out name images"
    )


def select(index: Index, wanted: Wanted, cache: Path) -> tuple[NDArray[Any] | None, str]:
    """Sorted record numbers (None: all), and a name for exactly this selection."""
    if wanted == Wanted():
        return None, "all"
    listed = _listed(as_path(wanted.keys)) if wanted.keys else None
    lines = b"" if listed is None else listed.tobytes()
    classes = f"labels {sorted(wanted.labels)} {wanted.labels_are} " if wanted.labels else ""
    # Of all that decides which records these are, so that a cached file is never of another choice.
    name = xxhash.xxh3_128_hexdigest(
        f"{index.fingerprint} {wanted.part} {wanted.fraction} {wanted.limit} {classes}".encode()
        + lines
    )
    if index.records <= IN_MEMORY:
        chosen: NDArray[Any] = np.concatenate([*_chosen(index, wanted, listed)])
    else:
        chosen = _mapped(cache / "selections" / f"{name}.u64", index, wanted, listed)
    if listed is not None:
        _refuse_unknown(index, chosen, listed, wanted)
    # With seed and epoch 0: a limit chooses the same records in every run.
    if 0 < wanted.limit < len(chosen):
        # Drawn, not the first ones: shards may be sorted by class.
        places = order.record_at(0, 0, np.arange(wanted.limit), len(chosen))
        # Sorted again, so that neighbours in shards stay neighbours.
        chosen = np.sort(np.asarray(chosen[places]))
    return chosen, name


def _chosen(index: Index, wanted: Wanted, listed: NDArray[np.uint64] | None) -> Iterator[I64]:
    """The chosen numbers, from ROWS rows at a time."""
    yield np.empty(0, np.int64)  # of an index without records there is nothing to concatenate
    for start in range(0, index.records, ROWS):
        rows = index.read_rows(start, min(start + ROWS, index.records))
        hashes = rows["key_hash"]
        keep = np.ones(len(hashes), bool)
        if wanted.part != "all":
            # By key, not by number: shards may be added or packed again.
            keep = order.held_out(hashes, wanted.fraction, SEED) == (wanted.part == "held_out")
        if listed is not None:
            # 64-bit hashes instead of keys: the rows have them, and two of 100 M keys agree with a
            # probability of 0.03 %.
            keep &= np.isin(hashes, listed)
        if wanted.labels:
            keep &= np.isin(rows["label"], wanted.labels) == (wanted.labels_are == "all there is")
        yield np.flatnonzero(keep) + start


def _mapped(
    path: Path, index: Index, wanted: Wanted, listed: NDArray[np.uint64] | None
) -> NDArray[Any]:
    """The chosen numbers as a file of the cache, which the first process writes."""
    # Two processes may write it at once: both write the same, and each renames a whole file.
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            for numbers in _chosen(index, wanted, listed):
                file.write(numbers.tobytes())
    return (
        # An empty file cannot be mapped.
        np.asarray(np.memmap(path, np.int64, "r")) if path.stat().st_size else np.empty(0, np.int64)
    )


def _listed(path: Path) -> NDArray[np.uint64]:
    """The hashes of the keys of a list file, sorted."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(
            f"data.keys {str(path)!r} cannot be read ({error.strerror}): write one key a line"
        ) from None
    # As bytes: keys need not be UTF-8.
    hashes = {xxhash.xxh3_64_intdigest(line) for line in lines if line}
    if not hashes:
        raise DataError(f"data.keys {str(path)!r} names no key: write one a line")
    return np.array(sorted(hashes), np.uint64)


def refuse_absent(indexes: Sequence[Index], labels: tuple[int, ...]) -> None:
    """Raise DataError for a class without records, and for sources without labels."""
    missing = set(labels)
    for index in indexes:
        # In a source all records have labels or none has, so the first one tells.
        if labels and index.records and index.read_rows(0, 1)["label"][0] < 0:
            raise DataError(
                f"data.without_labels: {str(index.path)!r} has no labels (cls): leave it out, or"
                " label it"
            )
        for start in range(0, index.records, ROWS):
            if not missing:
                break
            rows = index.read_rows(start, min(start + ROWS, index.records))
            missing -= set(np.unique(rows["label"]).tolist())
    if missing:
        where = " or ".join(repr(str(index.path)) for index in indexes[:3])
        where += " …" if len(indexes) > 3 else ""
        raise DataError(
            f"data.without_labels: no record of {where} is of class {min(missing)}: name one of its"
            " labels"
        )


def _refuse_unknown(
    index: Index, chosen: NDArray[Any], listed: NDArray[np.uint64], wanted: Wanted
) -> None:
    """Raise DataError for a listed key that no record has."""
    if wanted.part != "all":  # keys of the other part are no mistake
        held_out = order.held_out(listed, wanted.fraction, SEED)
        listed = listed[held_out == (wanted.part == "held_out")]
    there = index.rows["key_hash"]
    # With left-out classes a listed key may exist and not be chosen.
    unknown = np.setdiff1d(listed, there if wanted.labels else there[chosen])
    if unknown.size:
        # Read again only for the message: hashes do not lead back to keys.
        lines = as_path(wanted.keys).read_bytes().splitlines()
        first = shown(next(line for line in lines if xxhash.xxh3_64_intdigest(line) in unknown))
        raise DataError(
            f"data.keys {wanted.keys!r}: {unknown.size} of its keys are in no shard, as {first}:"
            " correct it"
        )
