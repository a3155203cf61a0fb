"""One signal asks, two end; before anything is started one is enough. Each in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

CODE = """
import os, sys, time
from udl_dist.signals import Signals
with Signals(lambda: print("stop"), print, lambda: sys.argv[1] == "started") as signals:
    print("ready", flush=True)
    for _ in range(100):
        time.sleep(0.1)
        if signals.received and sys.argv[2] == "once":
            break
print("ended with", signals.received, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("state", "times", "code", "said"), [
    ("started", "once", 0, "stop\nstopping: a checkpoint is written first (once more: at once)\nended with [{}]\n"),
    ("started", "twice", 128, "stop\nstopping: a checkpoint is written first (once more: at once)\n"),
    ("starting", "once", 128, ""),
])  # fmt: skip
def test_signals(number: signal.Signals, state: str, times: str, code: int, said: str) -> None:
    command = [sys.executable, "-u", "-c", CODE, state, times]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    if times == "twice":
        assert process.stdout.readline() == "stop\n"
        said = said.removeprefix("stop\n")
        process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == (code + number if code else 0)
    assert out == said.format(int(number)) or (state == "starting" and out == "stopped before anything was trained\n")
