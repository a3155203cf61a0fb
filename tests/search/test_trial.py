"""A trial in a process that trains others after it."""

from __future__ import annotations

import gc
import os
from pathlib import Path

from tests.search.asked import wanted
from tests.search.simulated import conductor, trained


def open_below(folder: Path) -> list[str]:
    """The files below a folder that this process holds open."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return [path for path in (os.readlink(link) for link in links if os.path.islink(link)) if str(folder) in path]


def test_trials_leave_no_file_open_however_many_there_are(source: Path, tmp_path: Path) -> None:
    gc.collect()
    before = open_below(source)
    gc.disable()
    try:
        trained(conductor(wanted(source, tmp_path, trials=3, scheduler="none")))
        assert open_below(source) == before
    finally:
        gc.enable()
