"""What a rank does with each report of the loop: records, alarms, checkpoints, the gate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from udl_dist.core.faults import fault_point
from udl_dist.data.loader.opening import Prepared
from udl_dist.data.loader.reader import Stream
from udl_dist.errors import TrainingError
from udl_dist.experiment import Experiment
from udl_dist.launch.recorder import RunRecorder
from udl_dist.launch.watchdog import Watchdog
from udl_dist.runs.remote_node import Node
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training.distributed import Ranks
from udl_dist.training.loop import Hooks, Report
from udl_dist.training.train_state import TrainState

# Asked on rank 0 with the images seen, whether to go on; None: not known yet, ask again.
Gate = Callable[[int], bool | None]
ANSWERS = (None, False, True)
LOOK_SECONDS = 0.5  # between two looks for a file that requests a stop


@dataclass(frozen=True)
class WorkerContext:
    """What one rank trains, and what it speaks with meanwhile."""

    experiment: Experiment
    prepared: Prepared
    ranks: Ranks
    on_checkpoint: Callable[[Report], None]
    gate: Gate
    folder: RunFolder
    watchdog: Watchdog
    node: Node | None  # where the run folder is in object storage
    arithmetic: Mapping[str, str]  # as `arithmetic.set_up` returns it


class ReportHandler:
    """What a rank does with each report of the loop; only rank 0 has a recorder."""

    def __init__(
        self,
        context: WorkerContext,
        state: TrainState,
        streams: tuple[Stream, Stream | None],
        recorder: RunRecorder | None,
        total: int,
    ) -> None:
        self._context, self._state, self._recorder = context, state, recorder
        self._streams, self._total = streams, total
        self._alarms: set[str] = set()
        seconds = context.experiment.run.checkpoint_seconds
        self._clock = Clock(seconds if context.ranks.is_main else 0.0)
        self.images, self.metrics = 0, dict[str, float]()

    def hooks(self) -> Hooks:
        """What the loop calls on this rank."""
        # Rank 0 alone asks; the loop tells the others, so that all stop after the same step.
        is_main, folder = self._context.ranks.is_main, self._context.folder
        stop_requested = now_and_then(folder.end_asked) if is_main else lambda: False
        return Hooks(stop_requested, self._clock.due, self._on_progress)

    def handle_all(self, reports: Iterator[Report]) -> bool:
        """Act on every report; return whether the run stopped before its end."""
        context, ranks, stopped = self._context, self._context.ranks, False
        for report in reports:
            self.metrics |= report.metrics
            self.images, stopped = report.images, report.stopped
            self._on_progress(report.images, "save" if report.checkpoint else "report")
            # Every rank reads other records, so each lists its own damage.
            damage = [line for stream in self._streams if stream for line in stream.damage]
            context.folder.add_damaged(damage)
            if self._recorder:
                self._recorder.record(report)
            if report.validated:
                self._look_for_collapse(report)
            if report.checkpoint:
                # Whatever made it due, the next one by time counts from here.
                self._clock.start()
                context.on_checkpoint(report)
            if report.validated and report.images < self._total:
                # At a gate a trial may wait for others for as long as it takes.
                context.watchdog.rest()
                if not may_continue(context.gate, report.images, ranks):
                    # The loop ends here instead of at its own end: no message may be in flight.
                    ranks.await_announced()
                    return True
            # Pictures or a gate may take long: the watchdog counts from now.
            self._on_progress(report.images, "report")
        return stopped

    def _on_progress(self, images: int, place: str) -> None:
        rank, folder = self._context.ranks.rank, self._context.folder.path
        self._context.watchdog.beat(images, place)
        fault_point("step", folder=folder, rank=rank, images=images, place=place)

    def _look_for_collapse(self, report: Report) -> None:
        """Report each alarm of the method once, or stop at it; metrics are equal on every rank."""
        context = self._context
        for name, line in self._state.method.alarms(report.metrics, report.images).items():
            if context.experiment.train.on_collapse == "stop":
                raise TrainingError(
                    f"{name} after {report.images} images: {line}; the last checkpoint remains"
                )
            if context.ranks.is_main and name not in self._alarms:
                context.folder.say(f"ALARM: {name} after {report.images} images: {line}")
            self._alarms.add(name)


def now_and_then(ask: Callable[[], bool]) -> Callable[[], bool]:
    """`ask`, which reads the disk, at most twice a second; False in between."""
    due = 0.0

    def asked() -> bool:
        nonlocal due
        if time.monotonic() < due:
            return False
        due = time.monotonic() + LOOK_SECONDS
        return ask()

    return asked


class Clock:
    """Due once, `seconds` after its start; 0: never. Uses no date, which may jump."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.start()

    def start(self) -> None:
        self._started = time.monotonic()

    def due(self) -> bool:
        due = 0 < self._seconds <= time.monotonic() - self._started
        if due:
            self.start()
        return due


def may_continue(gate: Gate, images: int, ranks: Ranks) -> bool:
    """Rank 0's answer, on every rank: two ranks that ask might hear of a stop at different times.

    "Not known yet" is sent too and asked again, so that no rank waits longer than a time limit.
    """
    answer = None
    while answer is None:
        answer = ANSWERS[ranks.broadcast_int(ANSWERS.index(gate(images)) if ranks.is_main else 0)]
    return answer
