"""A watchdog per rank: if the loop hangs, all ranks write their stacks and the process ends.

The whole group starts again then, from the newest checkpoint. Three cases: the loop hangs and
threads run (this thread notices); nothing runs because a library holds the GIL (faulthandler's own
thread notices); the process is stopped (other ranks or the driver notice, by its heartbeat).
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

from udl_dist.runs.heartbeat import HeartbeatMonitor, HeartbeatWriter
from udl_dist.runs.run_folder import RunFolder

EXIT_CODE = 75  # of a process that its watchdog ended: EX_TEMPFAIL
# times as long: until the first step is done, networks are compiled and connections made
FIRST_STEP = 10
GRACE_SECONDS = 2.0  # for the other ranks to write their stacks
HUNG = "hung"  # a file among the heartbeats: a rank hangs, all write their stacks


class Watchdog:
    """A context around the loop of one rank, made in the thread that runs it; `beat` is called at
    each progress.
    """

    def __init__(self, folder: RunFolder, rank: int, hang_seconds: float) -> None:
        self._folder, self._rank, self._seconds = folder, rank, hang_seconds
        # Often enough to notice a hang within 5 % of the limit, and at least once a second.
        self._tick = min(1.0, max(0.1, hang_seconds / 20))
        self._loop_thread = threading.get_ident()
        self._last_beat, self._images, self._steps = time.monotonic(), 0, 0
        # Opened now, because faulthandler needs an open file at the moment of a crash.
        folder.path.mkdir(parents=True, exist_ok=True)
        self._stacks = stacks_path(folder, rank).open("ab")
        self._heartbeat = HeartbeatWriter(folder, rank, self._stacks.tell())
        self._monitor = HeartbeatMonitor(folder)
        self._closed = threading.Event()
        self._dumped = self._resting = False
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def beat(self, images: int, place: str) -> None:
        """Progress: `images` are done, and the loop is at `place`."""
        # Called several times a step, from data to the optimiser: only more images are a step.
        self._steps += images > self._images
        self._images = images
        self._last_beat, self._resting = time.monotonic(), False
        self._heartbeat.beat(images, place)

    def rest(self) -> None:
        """No step is expected now: what follows has time limits of its own."""
        self._resting = True

    def __enter__(self) -> Watchdog:
        # Of the group before, or this one would write its stacks at once.
        (self._folder.ranks / HUNG).unlink(missing_ok=True)
        self.beat(0, "start")
        self._steps = 0
        faulthandler.enable(self._stacks)  # a segmentation fault writes its stacks there too
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        # Both would write to a file that is closed next.
        faulthandler.cancel_dump_traceback_later()
        faulthandler.enable(sys.__stderr__ or 2)
        self._stacks.close()
        with contextlib.suppress(OSError):  # an error of the disk must not hide how the run ended
            if not (path := stacks_path(self._folder, self._rank)).stat().st_size:
                path.unlink()
        # After an error it stays: it says after how many images the rank failed.
        self._heartbeat.close(keep=kind is not None)

    def _watch(self) -> None:
        while not self._closed.wait(self._tick):
            renewed = self._heartbeat.touch()
            # A resumed rank counts from zero, too: its networks are compiled again.
            limit = self._seconds * (1 if self._steps > 1 else FIRST_STEP)
            if time.monotonic() - self._last_beat > limit and not self._resting:
                self._end_process(limit)
            elif (self._folder.ranks / HUNG).exists():
                self._dump()
            # Set again at each tick. It runs without the GIL, so it ends the process even if a
            # library holds the GIL and this thread never gets here again.
            faulthandler.dump_traceback_later(
                self._seconds + 2 * self._tick, file=self._stacks, exit=True
            )
            # On a full disk no rank can renew its heartbeat, and all would kill each other.
            if renewed:
                kill_silent(self._folder, self._monitor, self._seconds + GRACE_SECONDS)

    def _end_process(self, limit: float) -> None:
        """Write the stacks, have the other ranks write theirs, and end this process."""
        # should this get stuck too
        faulthandler.dump_traceback_later(3 * GRACE_SECONDS, file=self._stacks, exit=True)
        # 1. Where this rank hangs, for the other ranks and for the driver after its end.
        place = self._place()
        self._heartbeat.hang(place)
        self._dump()
        # 2. Have the others write theirs: this rank may only be waiting for one of them.
        (self._folder.ranks / HUNG).touch()
        self._folder.say(
            f"rank {self._rank} made no step for {limit:g} s after {self._images:,} images, in"
            f" {place}: stacks are in {self._folder.path}/stacks-*.txt"
        )
        # 3. Unless the loop has ended meanwhile. `_exit`, because a normal end would wait for the
        # thread that hangs. A stopped rank goes as well, so that its node can start a new one.
        if not self._closed.wait(GRACE_SECONDS):
            kill_silent(self._folder, self._monitor, self._seconds)
            os._exit(EXIT_CODE)

    def _dump(self) -> None:
        """Write the stacks of all threads, once."""
        if not self._dumped:
            # With the time, as the file has the stacks of earlier processes before these.
            self._dumped = True
            head = (
                f"{time.strftime('%F %T')} rank {self._rank}, process {os.getpid()},"
                f" {self._images:,} images\n"
            )
            self._stacks.write(head.encode())
            self._stacks.flush()
            faulthandler.dump_traceback(self._stacks)

    def _place(self) -> str:
        """Where the loop's thread is in this package."""
        frame = sys._current_frames().get(self._loop_thread)
        ours = str(Path(__file__).parent.parent)
        # The innermost frame of ours: below it are torch's and Python's.
        for entry in reversed(traceback.extract_stack(frame)):
            if entry.filename.startswith(ours):
                return f"{entry.filename[len(ours) + 1 :]}:{entry.lineno} {entry.name}"
        return "code outside of this package"


class HangingRanks:
    """The ranks on this machine without a heartbeat: stopped processes, which only this notices."""

    def __init__(self, folder: RunFolder, hang_seconds: float) -> None:
        self._folder, self._seconds = folder, hang_seconds
        self._monitor = HeartbeatMonitor(folder)

    def kill(self) -> None:
        """Called often; with `hang_seconds` 0 it does nothing."""
        if self._seconds:
            kill_silent(self._folder, self._monitor, self._seconds + GRACE_SECONDS)


def kill_silent(folder: RunFolder, monitor: HeartbeatMonitor, seconds: float) -> None:
    """Kill the ranks of this machine without a heartbeat; their stacks files say so."""
    for beat in monitor.silent(seconds):
        state = beat.state()
        folder.say(
            f"rank {beat.rank} had no heartbeat after {beat.images:,} images: process"
            f" {beat.process} is {state}, it is ended"
        )
        # Before the kill: `recovery` finds the cause in this line.
        with stacks_path(folder, beat.rank).open("a") as file:
            file.write(
                f"No heartbeat: process {beat.process} was {state}, it could not write its stacks\n"
            )
        beat.kill()


def stacks_path(folder: RunFolder, rank: int) -> Path:
    """The file that a rank writes its stacks to."""
    return folder.path / f"stacks-{rank}.txt"
