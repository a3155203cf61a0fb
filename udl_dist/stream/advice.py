"""What to do when training waits for data: which stage of reading is slow, and the setting that helps."""

from __future__ import annotations

import os

from udl_dist.stream.reader import Stream

WAITS = 0.05  # of the time: above it training is told to wait


def advice(stream: Stream, wait_share: float, cores: int | None = None) -> str:
    """One line that names the slowest stage and a cure, or "" if training waits for less than 5 % of its time."""
    if wait_share <= WAITS:
        return ""
    seconds, settings = stream.loader.spent.seconds, stream.settings
    total = sum(seconds.values()) or 1.0
    stage = max(seconds, key=seconds.__getitem__)
    most = max(1, cores or os.cpu_count() or 1)
    if stage == "read":
        remote = any(dataset.shards.remote for dataset in stream.datasets)
        cure = ("raise data.block_bytes or data.read_ahead_bytes, or set data.storage_cache_bytes" if remote
                else "put the shards on a faster disk, or set data.order = 'blocks'")  # fmt: skip
    elif settings.readers < most:
        cure = f"raise data.readers from {settings.readers} (there are {most} cores)"
    else:
        cure = f"pack the images at their training size: udl pack --size {settings.size} --format raw"
    share = seconds[stage] / total
    return (
        f"training waits {wait_share:.0%} of its time for data, {share:.0%} of the readers' time is to {stage}: {cure}"
    )
