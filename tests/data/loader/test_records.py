"""What a run is advised whose readers are too slow: by the slowest stage, and what is set."""

import os

import pytest

from udl_dist.data.loader.records import StageSeconds
from udl_dist.data.settings import DataSettings

CORES = os.cpu_count() or 1


@pytest.mark.parametrize(
    ("stage", "remote", "readers", "cure"),
    [
        ("read", True, 0, "raise data.block_bytes or data.read_ahead_bytes"),
        ("read", False, 0, "put the shards on a faster disk"),
        (
            "decode",
            True,
            CORES - 1,
            f"raise data.readers from {CORES - 1} (there are {CORES} cores",
        ),
        ("decode", False, CORES, "pack the images at their training size: udl pack --size 32"),
    ],
)
def test_the_slowest_stage_decides_what_is_advised(
    stage: str, remote: bool, readers: int, cure: str
) -> None:
    seconds = StageSeconds()
    seconds.seconds |= {"read": 1.0, "decode": 1.0, stage: 3.0}
    said = seconds.advice(DataSettings(size=32, readers=readers), remote, 0.4)
    assert (
        f"training waits 40% of its time for data, the readers spend 75% of theirs to {stage}: "
        in said
    )
    assert cure in said
