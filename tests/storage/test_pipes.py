"""The output of a command: whole, or named with what it ended with; it never outlives whoever reads
it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.data.loader.made import one_line
from udl_dist.errors import DataError
from udl_dist.storage.fetching import Limits
from udl_dist.storage.pipes import Pipe

QUICK = Limits(stall_seconds=0.3, request_seconds=0.5)


def read(command: str) -> bytes:
    pipe = Pipe(command, QUICK)
    try:
        parts = []
        while part := pipe.read(1000):
            parts.append(part)
        return b"".join(parts)
    finally:
        pipe.close()


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (
            "head -c 5000 /dev/zero; echo no such bucket >&2; exit 3",
            ("exit code 3", "5000 bytes", "no such bucket"),
        ),
        ("no-such-command-at-all", ("exit code 127", "not found")),
        ("kill -9 $$", ("by signal 9",)),
        ("printf x; sleep 60", ("gave no byte for 0.3 s, after 1", "stall_seconds")),
        ("sleep 60", ("gave no byte for 0.5 s", "request_seconds")),
        ("exec >&-; sleep 60", ("does not end",)),
        ("printf '\\033[31mred' >&2; exit 1", ("?[31mred",)),
    ],
)
def test_a_command_that_fails_or_hangs_is_named(command: str, parts: tuple[str, ...]) -> None:
    began = time.monotonic()
    with pytest.raises(DataError) as raised:
        read(command)
    one_line(raised.value, *parts)
    assert time.monotonic() - began < 5


def test_what_a_command_writes_comes_whole() -> None:
    assert read("head -c 100000 /dev/zero | tr '\\0' a") == b"a" * 100000


def test_a_command_ends_with_its_reader(tmp_path: Path) -> None:
    pipe = Pipe(f"sleep 60 & echo $! > {tmp_path}/pid; yes", QUICK)
    assert pipe.read(10)
    pipe.close()
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not _runs(pid):
            return
        time.sleep(0.02)
    raise AssertionError("what the command started still runs")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
