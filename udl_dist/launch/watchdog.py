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

from udl_dist.runs.heartbeat import Heartbeat, HeartbeatMonitor, HeartbeatWriter
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
        self._tick = min(1.0, max(0.1, hang_seconds / 20))
        self._loop_thread = threading.get_ident()
        self._last_beat, self._images, self._steps = time.monotonic(), 0, 0
        folder.path.mkdir(parents=True, exist_ok=True)
        self._stacks = stacks_path(folder, rank).open("ab")
        self._heartbeat = HeartbeatWriter(folder, rank, self._stacks.tell())
        self._monitor = HeartbeatMonitor(folder)
        self._closed = threading.Event()
        self._dumped = self._resting = False
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def beat(self, images: int, place: str) -> None:
        """Progress: `images` are done, and the loop is at `place`."""
        self._steps += images > self._images
        self._images = images
        self._last_beat, self._resting = time.monotonic(), False
        self._heartbeat.beat(images, place)

    def rest(self) -> None:
        """No step is expected now: what follows has time limits of its own."""
        self._resting = True

    def __enter__(self) -> Watchdog:
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
            limit = self._seconds * (1 if self._steps > 1 else FIRST_STEP)
            if time.monotonic() - self._last_beat > limit and not self._resting:
                self._end_process(limit)
            elif (self._folder.ranks / HUNG).exists():
                self._dump()
            # Runs without the GIL, in case this thread never gets here again.
            faulthandler.dump_traceback_later(
                self._seconds + 2 * self._tick, file=self._stacks, exit=True
            )
            if renewed:  # on a full disk no rank can renew its heartbeat
                for beat in self._monitor.silent(self._seconds + GRACE_SECONDS):
                    kill_rank(self._folder, beat)

    def _end_process(self, limit: float) -> None:
        """Write the stacks, have the other ranks write theirs, and end this process."""
        # should this get stuck too
        faulthandler.dump_traceback_later(3 * GRACE_SECONDS, file=self._stacks, exit=True)
        place = self._place()
        self._heartbeat.hang(place)
        self._dump()
        (self._folder.ranks / HUNG).touch()
        self._folder.say(
            f"rank {self._rank} made no step for {limit:g} s after {self._images:,} images, in"
            f" {place}: stacks are in {self._folder.path}/stacks-*.txt"
        )
        if not self._closed.wait(GRACE_SECONDS):
            for beat in self._monitor.silent(self._seconds):
                kill_rank(self._folder, beat)
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
        """Where the loop's thread is in this package."""
        frame = sys._current_frames().get(self._loop_thread)
        ours = str(Path(__file__).parent.parent)
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
            for beat in self._monitor.silent(self._seconds + GRACE_SECONDS):
                kill_rank(self._folder, beat)


def kill_rank(folder: RunFolder, beat: Heartbeat) -> None:
    """Kill the process of a rank without a heartbeat; its stacks file says so."""
    state = beat.state()
    folder.say(
        f"rank {beat.rank} had no heartbeat after {beat.images:,} images: process {beat.process} is"
        f" {state}, it is ended"
    )
    with stacks_path(folder, beat.rank).open("a") as file:
        file.write(
            f"No heartbeat: process {beat.process} was {state}, it could not write its stacks\n"
        )
    beat.kill()


def stacks_path(folder: RunFolder, rank: int) -> Path:
    """The file that a rank writes its stacks to."""
    return folder.path / f"stacks-{rank}.txt"
