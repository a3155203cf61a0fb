"""What a run is advised whose readers are too slow: by the slowest stage, and what is set."""

import os

import pytest

from udl_dist.data.loader.records import StageSeconds, decode_threads
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


@pytest.mark.parametrize(
    ("cores", "workers", "threads"), [(1, 1, 1), (2, 1, 1), (4, 1, 3), (16, 1, 4), (16, 8, 1)]
)
def test_the_workers_of_a_machine_share_its_cores_but_one(
    cores: int, workers: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert decode_threads("auto", workers) == threads
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(workers))
    assert decode_threads("auto") == threads
    assert decode_threads(7) == 7 and decode_threads(0) == 0
