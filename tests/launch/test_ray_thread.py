"""One signal asks, two end; before anything is started one is enough. Each in a process of its
own.
"""

import signal
import subprocess
import sys

import pytest

CODE = """
import os, sys, time
from udl_dist.launch.ray_thread import Signals
with Signals(lambda: print("stop"), print, lambda: sys.argv[1] == "started") as signals:
    print("ready", flush=True)
    for _ in range(100):
        time.sleep(0.1)
        if signals.received and sys.argv[2] == "once":
            break
print("ended with", signals.received, flush=True)
"""


STOPPING = ["stop\n", "stopping: a checkpoint is written first (again: end at once)\n"]


def started(state: str, times: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-c", CODE, state, times]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_and_the_second_ends(number: signal.Signals) -> None:
    process = started("started", "twice")
    process.send_signal(number)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in STOPPING] == STOPPING
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (128 + number, "")


def test_what_was_asked_once_ends_in_its_own_time() -> None:
    process = started("started", "once")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "".join(STOPPING) + "ended with [15]\n")


def test_a_hangup_that_nohup_has_ignored_stays_ignored() -> None:
    # inherited by what is started, as nohup does it
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = started("started", "once")
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "".join(STOPPING) + "ended with [15]\n")


def test_before_anything_is_started_one_signal_is_enough() -> None:
    process = started("starting", "twice")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "stopped before anything was trained\n")
