"""Whatever a guarded process started is ended when that process is gone, also by kill -9, and
nothing else is.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CODE = """
import subprocess, sys, time
from udl_dist.launch.process_reaper import LOOK_SECONDS, ProcessReaper
outside = subprocess.Popen(["sleep", "60"], start_new_session=True)
reaper = ProcessReaper()
with reaper.marking():
    # The grandchild has no environment, as Ray's agents once they have set their title.
    command = ["sh", "-c", "env -i sleep 60 & echo $!; wait"]
    inside = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True)
later = subprocess.Popen(["sleep", "60"], start_new_session=True)
unmarked = int(inside.stdout.readline())
if sys.argv[2] == "parent gone":
    time.sleep(2 * LOOK_SECONDS)
    inside.kill()
    inside.wait()
print(inside.pid, unmarked, outside.pid, later.pid, flush=True)
if sys.argv[1] == "close":
    reaper.close()
    print("closed", flush=True)
time.sleep(60)
"""


def alive(process: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("how", "who"),
    [
        ("close", "all"),
        ("kill", "all"),
        pytest.param("kill", "parent gone", marks=pytest.mark.long),
    ],
)
def test_what_was_started_under_the_mark_ends_with_the_process_that_started_it(
    how: str, who: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, how, who], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    inside, unmarked, outside, later = (int(number) for number in process.stdout.readline().split())
    if how == "kill":
        process.kill()
    else:
        assert process.stdout.readline() == "closed\n"
    deadline = time.monotonic() + 10
    while (alive(inside) or alive(unmarked)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [alive(each) for each in (inside, unmarked, outside, later)] == [
        False,
        False,
        True,
        True,
    ]
    for each in (outside, later, process.pid):
        os.kill(each, signal.SIGKILL)
    process.communicate()
