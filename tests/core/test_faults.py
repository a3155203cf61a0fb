"""Fault points do nothing by themselves; with the hook of tests/faults.py a process ends as its
scenario says.
"""

import errno
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests import faults
from udl_dist.core.faults import HOOK, fault_point


def test_without_the_hook_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HOOK, raising=False)
    faults.arm(tmp_path, "raise rank 0 at image 0 always")
    fault_point("step", folder=tmp_path, images=9, place="phase")
    monkeypatch.setenv(HOOK, faults.FIRE[HOOK])
    with pytest.raises(faults.RaisedOnPurpose):
        fault_point("step", folder=tmp_path, images=9, place="phase")


def test_a_fault_happens_once_in_a_run_and_always_each_time(tmp_path: Path) -> None:
    faults.arm(tmp_path, "raise rank 1 at image 24 in phase; raise rank 1 at image 48 always")
    for start in range(2):  # two processes of one run
        faults._armed.cache_clear()
        faults.fire("step", tmp_path, 1, 12, "phase")
        faults.fire("step", tmp_path, 1, 24, "data")
        with pytest.raises(faults.RaisedOnPurpose) if start == 0 else nullcontext():
            faults.fire("step", tmp_path, 1, 24, "phase")
        with pytest.raises(faults.RaisedOnPurpose):
            faults.fire("step", tmp_path, 1, 60, "data")
    faults.fire("step", tmp_path, 0, 60, "phase")
    assert (
        "on purpose: raise rank 1 at image 24 in phase" in (tmp_path / "messages.log").read_text()
    )


def test_the_third_save_finds_the_disk_full(tmp_path: Path) -> None:
    faults.arm(tmp_path, "enospc at save 3")
    faults.fire("save", tmp_path)
    faults.fire("save", tmp_path)
    with pytest.raises(OSError, match="No space left") as caught:
        faults.fire("save", tmp_path)
    assert caught.value.errno == errno.ENOSPC
    faults.fire("save", tmp_path)


@pytest.mark.parametrize(
    ("act", "status"), [("kill", -signal.SIGKILL), ("segfault", -signal.SIGSEGV), ("exit", 1)]
)
def test_a_process_ends_as_its_scenario_says(act: str, status: int, tmp_path: Path) -> None:
    faults.arm(tmp_path, f"{act} rank 0 at image 3")
    code = "import sys, pathlib; from udl_dist.core.faults import fault_point\n"
    code += "fault_point('step', folder=pathlib.Path(sys.argv[1]), images=3)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, env=os.environ | faults.FIRE, check=False).returncode == status


@pytest.mark.parametrize(
    "text", ["kil rank 1 at image 3", "kill rank 1 at image 3 in kitchen", "enospc at save"]
)
def test_a_typo_in_a_scenario_is_no_scenario(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a fault"):
        faults.arm(tmp_path, text)
