"""What to do when training waits for data: which stage of reading is slow, and the setting that
helps.
"""

from __future__ import annotations

import os

from udl_dist.data.loader.reader import Stream

WAITS = 0.05  # of the time: above it training is told to wait


def advice(stream: Stream, wait_share: float, cores: int | None = None) -> str:
    """One line that names the slowest stage and a cure, or "" if training waits for less than 5 %
    of its time.
    """
    if wait_share <= WAITS:
        return ""
    seconds, settings = stream.spent.seconds, stream.settings
    total = sum(seconds.values()) or 1.0
    stage = max(seconds, key=seconds.__getitem__)
    most = max(1, cores or os.cpu_count() or 1)
    if stage == "read":
        cure = stream.slow_storage
    elif settings.readers < most:
        cure = f"raise data.readers from {settings.readers} (there are {most} cores)"
    else:
        cure = (
            f"pack the images at their training size: udl pack --size {settings.size} --format raw"
        )
    share = seconds[stage] / total
    waits = f"training waits {wait_share:.0%} of its time for data"
    return f"{waits}, {share:.0%} of the readers' time is to {stage}: {cure}"
