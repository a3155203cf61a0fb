"""Faults on purpose, to try a set-up: off unless asked twice, by UDL_FAULTS=1 in the environment
and by --faults.

    UDL_FAULTS=1 udl train JOB.toml --faults "kill rank 1 at image 12000; stall writer 5 s; enospc
    at save 3"

    ACT rank N at image I [in PLACE] [always]      what happens to a worker once it has done I
    images
    kill driver at image I                         SIGKILL to the process that was started by hand
    (same machine)
    stall writer S s [at save K] [always]          the K-th save (the first) of a process takes S
    seconds longer
    enospc | eio at save K [always]                the K-th save of a process finds the disk full,
    or broken

    ACT     kill (SIGKILL), segfault, exit (os._exit), raise (an exception), freeze (SIGSTOP), loop
    (for ever)
    PLACE   data, phase, validation or save; without it the first of them that comes

Each happens once in a run, however often its workers start again; `always`: each time it is
reached.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from udl_dist.errors import UsageError
from udl_dist.runs.run_folder import RunFolder

PLACES = ("data", "phase", "validation", "save")
ACTS = ("kill", "segfault", "exit", "raise", "freeze", "loop")
_NUMBER = r"(\d[\d_,]*)"
_AT_IMAGE = re.compile(
    rf"({'|'.join(ACTS)}) (?:rank (\d+)|(driver)) at image {_NUMBER}(?: in (\w+))?( always)?"
)
_STALL = re.compile(rf"stall writer (\d+(?:\.\d+)?) s(?: at save {_NUMBER})?( always)?")
_AT_SAVE = re.compile(rf"(enospc|eio) at save {_NUMBER}( always)?")
FORMS = (
    "'kill rank 1 at image 12000 in phase'",
    "'kill driver at image 12000'",
    "'stall writer 5 s at save 2'",
    "'enospc at save 3'",
)


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


class Faults:
    """The faults asked for in one process of a run."""

    def __init__(self, wanted: list[Fault], folder: RunFolder, rank: int) -> None:
        self._wanted, self._folder, self._rank = wanted, folder, rank
        self._saves = 0

    def reach(self, images: int, place: str) -> None:
        for number, fault in enumerate(self._wanted):
            mine = fault.rank == self._rank or (fault.rank < 0 and self._rank == 0)
            if (
                0 <= fault.image <= images
                and mine
                and fault.place in ("", place)
                and self._first_time(number, fault)
            ):
                self._say(fault)
                _ACTS["driver" if fault.rank < 0 else fault.act](self._folder)

    def save(self) -> None:
        self._saves += 1
        for number, fault in enumerate(self._wanted):
            if fault.save == self._saves and self._first_time(number, fault):
                self._say(fault)
                if fault.act == "stall":
                    time.sleep(fault.seconds)
                else:
                    code = getattr(errno, fault.act.upper())
                    raise OSError(code, os.strerror(code))

    def _say(self, fault: Fault) -> None:
        self._folder.say(f"on purpose: {fault.text}")

    def _first_time(self, number: int, fault: Fault) -> bool:
        """Whether the fault has not been yet, in this process or an earlier one of the run."""
        mark = self._folder.path / ".faults" / f"{number} {fault.text.replace(' ', '-')}"
        if fault.always:
            return True
        mark.parent.mkdir(exist_ok=True)
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


# of this process; None: nothing happens, at the cost of one comparison
_armed: Faults | None = None


def arm(text: str, folder: RunFolder, rank: int) -> None:
    """Have the faults of `text` happen in this process; nothing else in this file does anything
    before.
    """
    global _armed
    _armed = Faults(parse(text), folder, rank) if text else None


def reach(images: int, place: str) -> None:
    """A fault point: so many images are done, and the loop is at `place`."""
    if _armed:
        _armed.reach(images, place)


def reach_save() -> None:
    """A fault point: a checkpoint is about to be written. Raises OSError on purpose."""
    if _armed:
        _armed.save()


def checked(text: str) -> str:
    """`text`, if its grammar is right and the environment asks too; raise UsageError in one
    line.
    """
    if text and os.environ.get("UDL_FAULTS") != "1":
        raise UsageError(
            "--faults breaks a run on purpose: set UDL_FAULTS=1 in the environment too, or leave"
            " it out"
        )
    parse(text)
    return text


def parse(text: str) -> list[Fault]:
    """The faults of a text, parted by semicolons; raise UsageError that names the part which makes
    no sense.
    """
    return [_parsed(" ".join(part.split())) for part in text.split(";") if part.strip()]


def _parsed(part: str) -> Fault:
    if found := _AT_IMAGE.fullmatch(part):
        act, rank, driver, image, place, always = found.groups()
        if driver and act != "kill":
            raise UsageError(
                f"--faults: {part!r}: the driver can only be killed: 'kill driver at image N'"
            )
        if place and place not in PLACES:
            raise UsageError(
                f"--faults: {part!r}: no place {place!r}: there are {', '.join(PLACES)}"
            )
        return Fault(
            part, act, -1 if driver else int(rank), _whole(image), place or "", always=bool(always)
        )
    if found := _STALL.fullmatch(part):
        seconds, save, always = found.groups()
        return Fault(
            part, "stall", save=_whole(save or "1"), seconds=float(seconds), always=bool(always)
        )
    if found := _AT_SAVE.fullmatch(part):
        act, save, always = found.groups()
        return Fault(part, act, save=_whole(save), always=bool(always))
    raise UsageError(
        f"--faults: what is {part!r}? It is said like {', '.join(FORMS)}; acts: {', '.join(ACTS)}"
    )


def _whole(text: str) -> int:
    return int(text.replace(",", "").replace("_", ""))


def _raise(folder: RunFolder) -> None:
    raise RaisedOnPurpose("raised on purpose")


def _loop(folder: RunFolder) -> None:
    while True:
        pass


def _kill_driver(folder: RunFolder) -> None:
    """SIGKILL to the process that holds the run folder."""
    os.kill(int((folder.path / "lock").read_text().split()[1]), signal.SIGKILL)


_ACTS: dict[str, Callable[[RunFolder], object]] = {
    "kill": lambda folder: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda folder: ctypes.string_at(0),
    "exit": lambda folder: os._exit(1),
    "raise": _raise,
    "freeze": lambda folder: os.kill(os.getpid(), signal.SIGSTOP),
    "loop": _loop,
    "driver": _kill_driver,
}
