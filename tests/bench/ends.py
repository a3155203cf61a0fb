"""python -m tests.bench.ends [--ends 50]: end `udl train` in nine ways and look for what is left
behind: nothing.

Looked for within twenty seconds after the command is gone: processes that descend from it (by a
mark in their environment), with them their ports; files in /dev/shm that are new and that no
process has open; a run folder that cannot be taken.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests import faults
from tests.bench import relaunch
from tests.training.learn import packed
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training import checkpoint

MARK = "UDL_END_MARK"
GONE_SECONDS = 20.0
FLAGS = {
    "run__workers": "2",
    "train__total_images": "600000",
    "evaluate__every_images": "60000",
    "run__hang_seconds": "5",
}


@dataclass(frozen=True)
class End:
    """A way to end: what is done to the command, at which of its states, and the exit codes that
    are right.
    """

    act: Callable[[subprocess.Popen[bytes]], None]
    codes: tuple[int, ...]
    faults: str = ""
    early: bool = False  # while Ray is starting
    short: bool = False  # a run of a few steps


def once(number: int) -> Callable[[subprocess.Popen[bytes]], None]:
    return lambda process: process.send_signal(number)


def terminal(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C as a terminal sends it: to the whole foreground group."""
    os.killpg(process.pid, signal.SIGINT)


def twice(number: int) -> Callable[[subprocess.Popen[bytes]], None]:
    def act(process: subprocess.Popen[bytes]) -> None:
        process.send_signal(number)
        time.sleep(0.3)
        process.send_signal(number)

    return act


ENDS = {
    "complete": End(lambda process: None, (0,), short=True),
    "Ctrl-C": End(terminal, (130,)),
    "SIGTERM": End(once(signal.SIGTERM), (143,)),
    "Ctrl-C twice": End(twice(signal.SIGINT), (130,)),
    "SIGTERM twice": End(twice(signal.SIGTERM), (143,)),
    "SIGKILL": End(once(signal.SIGKILL), (-9,)),
    "while starting": End(once(signal.SIGTERM), (143,), early=True),
    "failed": End(lambda process: None, (4,), faults="raise rank 1 at image 600 always"),
    "SIGKILL, a rank stopped": End(
        once(signal.SIGKILL), (-9,), faults="freeze rank 1 at image 600"
    ),
}


def marked(mark: str) -> list[str]:
    """The processes with the mark in their environment, as number and command."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if (
                entry.name.isdecimal()
                and f"{MARK}={mark}".encode() in (entry / "environ").read_bytes()
            ):
                found.append(
                    f"{entry.name} {(entry / 'cmdline').read_text().replace(chr(0), ' ')[:200]}"
                )
        except OSError:
            continue
    return found


def orphaned_memory(before: set[str]) -> set[str]:
    """Files in /dev/shm that are new and that no process has open or mapped."""
    new = {f"/dev/shm/{name}" for name in os.listdir("/dev/shm")} - before
    for entry in Path("/proc").iterdir() if new else ():
        if entry.name.isdecimal():
            try:
                maps = (entry / "maps").read_text()
                held = {os.readlink(link) for link in (entry / "fd").iterdir()}
            except OSError:
                continue
            new = {name for name in new if name not in held and name not in maps}
    return new


def end(kind: End, source: Path, folder: Path) -> tuple[int, float, list[str]]:
    """Run and end once: exit code, seconds from the act to the exit, what is left behind."""
    flags = FLAGS | (
        {"train__total_images": "1200", "evaluate__every_images": "600"} if kind.short else {}
    )
    experiment = relaunch.wanted("ae", source, folder, **flags)
    job = folder.with_suffix(".toml")
    job.write_text(experiment.to_toml())
    mark, before = uuid.uuid4().hex, {f"/dev/shm/{name}" for name in os.listdir("/dev/shm")}
    command = [sys.executable, "-m", "udl_dist", "train", str(job)]
    faults.arm(folder, kind.faults)
    process = subprocess.Popen(
        command,
        env=os.environ | {MARK: mark} | faults.FIRE,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=folder.with_suffix(".err").open("wb"),
    )
    run = RunFolder(folder)
    wait(process, lambda: len(marked(mark)) > 3 if kind.early else len(run.points()) > 0)
    if kind.faults:
        wait(process, lambda: run.messages.exists() and "on purpose" in run.messages.read_text())
    began = time.monotonic()
    kind.act(process)
    code = process.wait(180)
    seconds = time.monotonic() - began
    return code, seconds, left_behind(mark, before, run)


def wait(process: subprocess.Popen[bytes], until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not until() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)


def left_behind(mark: str, before: set[str], run: RunFolder) -> list[str]:
    deadline = time.monotonic() + GONE_SECONDS
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [*marked(mark), *orphaned_memory(before)]
    with run.held():  # raises if the lock is still held
        left += (
            [str(path) for path in run.checkpoints.glob(".writing-*")]
            if checkpoint.complete(run.checkpoints)
            else []
        )
    for process in marked(mark):
        os.kill(int(process.split()[0]), signal.SIGKILL)
    return left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ends", type=int, default=50)
    parser.add_argument("--only", default="", help="one kind")
    asked = parser.parse_args()
    kinds = {asked.only: ENDS[asked.only]} if asked.only else ENDS
    wrong, slowest = Counter[str](), dict.fromkeys(ENDS, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        source = packed(Path(folder) / "data")
        for number in range(asked.ends):
            name, kind = list(kinds.items())[number % len(kinds)]
            code, seconds, left = end(kind, source, Path(folder) / f"run{number}")
            slowest[name] = max(slowest[name], seconds)
            wrong["orphans"] += bool(left)
            wrong["codes"] += code not in kind.codes
            error = (
                (Path(folder) / f"run{number}.err").read_text()[-300:]
                if code not in kind.codes
                else ""
            )
            print(
                f"{number + 1:3} {name:24} exit {code}, {seconds:.1f} s, left {left or 'nothing'}"
                f" {error}",
                flush=True,
            )
    print(
        f"ends: {asked.ends} of {len(kinds)} kinds, {wrong['orphans']} with orphans,"
        f" {wrong['codes']} wrong exit codes"
    )
    print(
        "slowest: "
        + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in slowest.items() if seconds)
    )
    assert not wrong.total()


if __name__ == "__main__":
    main()
