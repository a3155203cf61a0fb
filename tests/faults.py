"""Faults on purpose: a text in the run folder says what breaks and when, `fire` does it at the
package's fault points.

    ACT rank N at image I [in PLACE] [always]      ACT: kill, segfault, exit, raise, freeze
    (SIGSTOP), loop
    kill driver at image I                         SIGKILL to the process that holds the run folder
    stall writer S s [at save K] [always]          the K-th save (the first) of a process takes S
    seconds longer
    enospc | eio at save K [always]                the K-th save of a process finds the disk full,
    or broken

Parts are separated by semicolons. Each happens once in a run, however often its workers start
again; `always`: each time it is reached. Without `in PLACE` it happens at the first place that
comes.
"""

import contextlib
import ctypes
import errno
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from udl_dist.core.faults import HOOK
from udl_dist.runs.run_folder import RunFolder

FIRE = {HOOK: "tests.faults:fire"}  # for the environment of what is to break
SCENARIO = "faults.txt"
PLACES = ("data", "phase", "validation", "save")
ACTS = ("kill", "segfault", "exit", "raise", "freeze", "loop")
STEP = re.compile(
    rf"({'|'.join(ACTS)}) (?:rank (\d+)|driver) at image (\d+)(?: in ({'|'.join(PLACES)}))?("
    r" always)?"
)
STALL = re.compile(r"stall writer ([\d.]+) s(?: at save (\d+))?( always)?")
SAVE = re.compile(r"(enospc|eio) at save (\d+)( always)?")


@dataclass(frozen=True)
class Fault:
    """One fault: at an image (of a rank; -1: the driver) or at a save, whichever is set."""

    text: str
    act: str
    rank: int = 0
    image: int = -1
    place: str = ""
    save: int = 0
    seconds: float = 0.0
    always: bool = False


class RaisedOnPurpose(RuntimeError):
    """The exception of `raise`."""


def parse(text: str) -> list[Fault]:
    return [_parsed(" ".join(part.split())) for part in text.split(";") if part.strip()]


def _parsed(part: str) -> Fault:
    if found := STEP.fullmatch(part):
        act, rank, image, place, always = found.groups()
        return Fault(part, act, int(rank or -1), int(image), place or "", always=bool(always))
    if found := STALL.fullmatch(part):
        seconds, save, always = found.groups()
        return Fault(
            part, "stall", save=int(save or 1), seconds=float(seconds), always=bool(always)
        )
    if found := SAVE.fullmatch(part):
        act, save, always = found.groups()
        return Fault(part, act, save=int(save), always=bool(always))
    raise ValueError(f"not a fault: {part!r}")


def arm(folder: Path, text: str) -> None:
    """Have the faults of `text` happen in the run of `folder`, in processes with `FIRE` in their
    environment.
    """
    parse(text)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SCENARIO).write_text(text)


@contextlib.contextmanager
def firing() -> Iterator[None]:
    """Processes that start meanwhile, such as those of a Ray, have the hook; this one only until
    the end.
    """
    before = os.environ.get(HOOK)
    os.environ.update(FIRE)
    try:
        yield
    finally:
        del os.environ[HOOK]
        if before:
            os.environ[HOOK] = before


@lru_cache(maxsize=64)
def _armed(path: Path) -> tuple[list[Fault], Counter[str]]:
    """The faults of a run folder, and how many saves this process has made there."""
    scenario = path / SCENARIO
    return parse(scenario.read_text()) if scenario.exists() else [], Counter()


def fire(name: str, folder: Path, rank: int = 0, images: int = 0, place: str = "") -> None:
    """The hook: do whatever is due at this fault point."""
    faults, seen = _armed(folder)
    seen[name] += 1
    for number, fault in enumerate(faults):
        if name == "save":
            due = fault.save == seen[name]
        else:
            mine = rank == max(0, fault.rank)  # rank 0 kills the driver
            due = 0 <= fault.image <= images and mine and fault.place in ("", place)
        if due and (fault.always or _first_time(folder, number)):
            RunFolder(folder).say(f"on purpose: {fault.text}")
            _act(fault, folder)


def _first_time(folder: Path, number: int) -> bool:
    """Whether a fault has not happened yet, in this process or an earlier one of the run."""
    mark = folder / ".faults" / str(number)
    mark.parent.mkdir(exist_ok=True)
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _act(fault: Fault, folder: Path) -> None:
    if fault.act == "kill":
        driver = int((folder / "lock").read_text().split()[1]) if fault.rank < 0 else os.getpid()
        os.kill(driver, signal.SIGKILL)
    elif fault.act == "segfault":
        ctypes.string_at(0)
    elif fault.act == "exit":
        os._exit(1)
    elif fault.act == "raise":
        raise RaisedOnPurpose("raised on purpose")
    elif fault.act == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault.act == "stall":
        time.sleep(fault.seconds)
    elif fault.act == "loop":
        while True:
            pass
    else:
        code = getattr(errno, fault.act.upper())
        raise OSError(code, os.strerror(code))
