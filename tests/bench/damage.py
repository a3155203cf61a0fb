"""python -m tests.bench.damage: 1,000 damaged shards of 5 kinds, 10,000 flipped bits and the bombs,
in about 2 minutes.

Noticed: `udl check` ends with 3. Named: the shard, a byte at or before the damage, and just the
keys that are lost. Exact: what the index can still read, counted by comparing bytes, plus what is
reported lost is what was indexed. Ends with 1 if anything is missed.
"""

import sys
import tempfile
from pathlib import Path
from random import Random

import numpy as np

from tests.bench.bombs import BOMBS, MEGABYTES, SECONDS, explode_apart
from tests.bench.wounds import KINDS, Base, base, inflict, rows_of
from udl_dist.data.shards.reading import Shards

SHARDS, FLIPS = 200, 10_000


def damaged_shards(whole: Base, folder: Path, count: int) -> int:
    """`count` shards of each kind; give how many were not noticed, named and accounted for
    exactly.
    """
    missed = 0
    for kind in KINDS:
        outcomes = [inflict(whole, kind, folder / "wounded", seed) for seed in range(count)]
        noticed, named, exact = (sum(column) for column in zip(*outcomes, strict=True))
        print(
            f"{kind:<40}{count:6} shards: noticed {noticed}, named {named}, exact {exact}",
            flush=True,
        )
        missed += 3 * count - noticed - named - exact
    return missed


def payload_flips(whole: Base, count: int, seed: int = 0) -> int:
    """Flip one bit of a payload at a time under the reader that trains; give how many it did not
    notice.
    """
    chance, missed, shards = Random(seed), 0, Shards(rows_of(whole))
    with whole.path.open("r+b", buffering=0) as file:
        for _ in range(count):
            record = chance.randrange(len(whole.keys))
            at = chance.randrange(*whole.spans[record])
            _put(file, at, whole.data[at] ^ 1 << chance.randrange(8))
            faults = shards.load(np.array([record])).faults
            missed += 0 not in faults or whole.keys[record][:50] not in faults[0]
            _put(file, at, whole.data[at])
    assert whole.path.read_bytes() == whole.data, "every flip was undone"
    print(f"{'bits of payloads flipped':<40}{count:6}: missed {missed}", flush=True)
    return missed


def _put(file: object, at: int, value: int) -> None:
    file.seek(at)  # type: ignore[attr-defined]
    file.write(bytes((value,)))  # type: ignore[attr-defined]


def bombs() -> int:
    """Every bomb in a process of its own; give how many were not refused, or not within bounds."""
    missed = 0
    for name in BOMBS:
        said, megabytes, seconds = explode_apart(name)
        fine = bool(said) and megabytes < MEGABYTES and seconds < SECONDS
        missed += not fine
        print(
            f"{name:<40}{megabytes:6.1f} MB {seconds:5.2f} s"
            f" {'' if fine else 'MISSED '}{said[:90]}",
            flush=True,
        )
    return missed


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = base(Path(folder) / "whole")
        missed = damaged_shards(whole, Path(folder), SHARDS) + payload_flips(whole, FLIPS) + bombs()
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
