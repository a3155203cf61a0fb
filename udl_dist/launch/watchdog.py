"""A watchdog per rank: it sees that the loop stands still, has all ranks write their stacks, and
ends the process.

The whole group starts again then, from the newest checkpoint. Three cases: the loop stands still
and threads run (this thread sees it); nothing runs because a library holds Python's lock
(faulthandler's own thread sees it); nothing runs at all, a stopped process (the other ranks or the
launcher see it, by its pulse). Knows no torch and no Ray.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
import traceback
from pathlib import Path

from udl_dist.runs.heartbeat import Life, Others, Pulse
from udl_dist.runs.run_folder import RunFolder

EXIT_CODE = 75  # of a process that its watchdog ended: a fault that may pass (EX_TEMPFAIL)
# times as long: until the first step is done, networks are compiled and connections made
FIRST_STEP = 10
GRACE_SECONDS = 2.0  # for the other ranks to write their stacks
HUNG = "hung"  # a file beside the pulses: a rank hangs, all are to write their stacks


class Watchdog:
    """A context around the loop of one rank, made in the thread that runs it; `beat` is called at
    each progress.
    """

    def __init__(self, folder: RunFolder, rank: int, hang_seconds: float) -> None:
        self._folder, self._rank, self._seconds = folder, rank, hang_seconds
        self._tick = min(1.0, max(0.1, hang_seconds / 20))
        self._looper = threading.get_ident()
        self._beaten, self._images, self._steps = time.monotonic(), 0, 0
        folder.path.mkdir(parents=True, exist_ok=True)
        self._stacks = stacks_path(folder, rank).open("ab")
        self._pulse = Pulse(folder, rank, self._stacks.tell())
        self._others = Others(folder)
        self._closed = threading.Event()
        self._dumped = self._resting = False
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def beat(self, images: int, place: str) -> None:
        """Progress: so many images are done, and `place` is where the loop is."""
        self._steps += images > self._images
        self._images = images
        self._beaten, self._resting = time.monotonic(), False
        self._pulse.beat(images, place)

    def rest(self) -> None:
        """No more steps are expected: what comes now has limits of its own."""
        self._resting = True

    def __enter__(self) -> Watchdog:
        (self._folder.ranks / HUNG).unlink(missing_ok=True)
        self.beat(0, "start")
        self._steps = 0
        faulthandler.enable(self._stacks)  # a segmentation fault leaves its stacks there too
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        faulthandler.enable(sys.__stderr__ or 2)
        self._stacks.close()
        with contextlib.suppress(OSError):  # a disk that refuses must not hide how the run ended
            if not (path := stacks_path(self._folder, self._rank)).stat().st_size:
                path.unlink()
        self._pulse.close(keep=kind is not None)  # tells later after how many images it was

    def _watch(self) -> None:
        while not self._closed.wait(self._tick):
            shown = self._pulse.live()
            limit = self._seconds * (1 if self._steps > 1 else FIRST_STEP)
            if time.monotonic() - self._beaten > limit and not self._resting:
                self._give_up(limit)
            elif (self._folder.ranks / HUNG).exists():
                self._dump()
            # Runs without Python's lock, should this thread not come here again.
            faulthandler.dump_traceback_later(
                self._seconds + 2 * self._tick, file=self._stacks, exit=True
            )
            if shown:  # a disk that takes nothing more silences all pulses
                for life in self._others.silent(self._seconds + GRACE_SECONDS):
                    put_down(self._folder, life)

    def _give_up(self, limit: float) -> None:
        """Write the stacks, have the others write theirs, and end."""
        # should this get stuck too
        faulthandler.dump_traceback_later(3 * GRACE_SECONDS, file=self._stacks, exit=True)
        place = self._place()
        self._pulse.hang(place)
        self._dump()
        (self._folder.ranks / HUNG).touch()
        self._folder.say(
            f"rank {self._rank} made no step for {limit:g} s after {self._images:,} images, in"
            f" {place}: stacks are in {self._folder.path}/stacks-*.txt"
        )
        if not self._closed.wait(GRACE_SECONDS):
            for life in self._others.silent(self._seconds):
                put_down(self._folder, life)
            os._exit(EXIT_CODE)

    def _dump(self) -> None:
        """Write the stacks of all threads, once."""
        if not self._dumped:
            self._dumped = True
            head = (
                f"{time.strftime('%F %T')} rank {self._rank}, process {os.getpid()},"
                f" {self._images:,} images\n"
            )
            self._stacks.write(head.encode())
            self._stacks.flush()
            faulthandler.dump_traceback(self._stacks)

    def _place(self) -> str:
        """Where the looping thread stands in our own code."""
        frame = sys._current_frames().get(self._looper)
        ours = str(Path(__file__).parent.parent)
        for entry in reversed(traceback.extract_stack(frame)):
            if entry.filename.startswith(ours):
                return f"{entry.filename[len(ours) + 1 :]}:{entry.lineno} {entry.name}"
        return "code that is not ours"


def put_down(folder: RunFolder, life: Life) -> None:
    """End the process of a rank that shows no life, after a word about it in its file of stacks."""
    state = life.state()
    folder.say(
        f"rank {life.rank} showed no life after {life.images:,} images: process {life.process} is"
        f" {state}, it is ended"
    )
    with stacks_path(folder, life.rank).open("a") as file:
        file.write(f"No life: process {life.process} was {state}, it could not write its stacks\n")
    life.kill()


def stacks_path(folder: RunFolder, rank: int) -> Path:
    """Where the stacks of a rank go."""
    return folder.path / f"stacks-{rank}.txt"
