"""A clock that jumps by years, forth and back: intervals, patience and ages are measured by another
one.
"""

import ast
import itertools
import os
import threading
import time
from pathlib import Path

import pytest

from tests.launch.test_worker import curves, finished, manifest, wanted
from tests.test_imports import FILES, PACKAGE
from udl_dist.runs import heartbeat
from udl_dist.runs.heartbeat import HeartbeatMonitor, HeartbeatWriter
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training import checkpoint

YEARS = 10 * 365 * 86400.0
OF_DAY = {"time", "time_ns", "now", "utcnow", "today", "gmtime", "localtime"}


def test_a_run_whose_clock_jumps_is_the_run_it_was(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look at the date is ten years off, to either side; the watchdog is on, checkpoints go
    by seconds too.
    """
    flags = {
        "run__hang_seconds": "5",
        "run__checkpoint_seconds": "3600",
        "run__keep_checkpoints": "99",
    }
    finished(wanted("vae", source, tmp_path / "whole", **flags))
    real, jump = time.time, itertools.cycle((YEARS, -YEARS))
    monkeypatch.setattr(time, "time", lambda: real() + next(jump))
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * time.time()))
    began = time.monotonic()
    ended = finished(wanted("vae", source, tmp_path / "jumped", **flags))
    assert (ended["images"], ended["stopped"]) == (240, False)
    assert time.monotonic() - began < 60
    assert len(checkpoint.complete(tmp_path / "jumped" / "checkpoints")) == 4
    assert manifest(tmp_path / "jumped") == manifest(tmp_path / "whole")
    assert curves(tmp_path / "jumped") == curves(tmp_path / "whole")


@pytest.mark.parametrize("jump", [YEARS, -YEARS])
def test_the_age_of_a_heartbeat_is_not_a_difference_of_dates(jump: float, tmp_path: Path) -> None:
    """The dates of heartbeats jump: one that beats is alive, one that stands still is silent after
    its seconds.
    """
    folder = RunFolder(tmp_path)
    heartbeats = [HeartbeatWriter(folder, rank) for rank in range(2)]
    for each in heartbeats:
        each.beat(12, "phase")
    others, paths = HeartbeatMonitor(folder), sorted((tmp_path / "ranks").glob("*/*"))
    assert not others.silent(0.2)
    later = time.time() + jump
    silent: list[int] = []
    for beat in range(4):
        os.utime(paths[0], (later + beat, later + beat))  # rank 0 beats after the jump
        os.utime(paths[1], (later, later))
        silent += [life.rank for life in others.silent(0.2)]
        threading.Event().wait(0.12)
    for each in heartbeats:
        each.close()
    assert set(silent) == {1}
    assert not heartbeat.read_all(folder)


def test_nothing_of_ours_asks_for_the_time_of_day() -> None:
    """But for the one that is shown to people, strftime, and where the clocks of nodes are
    compared.
    """
    compared = {PACKAGE / "commands" / name for name in ("doctor.py", "probe.py")}
    for file in set(FILES) - compared:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                asks = node.value.id in ("time", "datetime", "date") and node.attr in OF_DAY
                assert not asks, f"{file.relative_to(PACKAGE)}:{node.lineno}: use time.monotonic"
