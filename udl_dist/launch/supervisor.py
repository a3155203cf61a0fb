"""A run under Ray from its start to its end: signals, the terminal, workers that hang, and what
came out.

The main thread owns signals and the terminal, another one waits for Ray. Workers and driver speak
through the run folder: a stop is asked by a file, progress is read from the curves, a refusal from
`failure.json`.
"""

from __future__ import annotations

import shutil
import threading
import time
from typing import Any

from udl_dist.data.loader.opening import Prepared
from udl_dist.errors import ClusterError, UdlError
from udl_dist.experiment import Experiment
from udl_dist.launch import nodes, ray_runtime, train_group
from udl_dist.launch.autoscale import Growing
from udl_dist.launch.ray_runtime import PLACEMENTS, POLL_SECONDS, START_SECONDS
from udl_dist.launch.recovery import as_error, one_line
from udl_dist.launch.signals import Signals
from udl_dist.launch.train_group import Gate, Launched
from udl_dist.launch.watchdog import GRACE_SECONDS, put_down
from udl_dist.runs import heartbeat
from udl_dist.runs.terminal import Terminal


def run(launched: Launched, terminal: Terminal, verbose: bool = False) -> dict[str, Any]:
    """Train under Ray until the end or a signal; return what `work` returned, with `signal` (0 if
    there was none).

    The run folder must be held. Raise the UdlError of the first worker that refused, or
    ClusterError, TrainingError.
    """
    folder = launched.folder
    heartbeat.clear(folder)
    outcome: dict[str, Any] = {}
    with Signals(folder.ask_stop, terminal.say, lambda: "ours" in outcome) as signals:
        # All of Ray lives in a thread: on the main one it would take our signals from us.
        thread = threading.Thread(target=_train, args=(launched, verbose, outcome), daemon=True)
        thread.start()
        try:
            _watch(thread, launched, terminal, outcome, signals)
        finally:
            _end_ray(thread, outcome)
            _tidy(launched)
        terminal.refresh(last=True)
    return {**_result(launched, outcome), "signal": signals.received[0] if signals.received else 0}


def train_within(experiment: Experiment, prepared: Prepared, gate: Gate) -> dict[str, Any]:
    """The same in a process that has joined a Ray, such as a trial of a search: no signals and no
    terminal.
    """
    launched = Launched(experiment, prepared, gate)
    heartbeat.clear(launched.folder)
    outcome: dict[str, Any] = {}
    thread = threading.Thread(target=_train, args=(launched, False, outcome), daemon=True)
    thread.start()
    hanging = Hanging(launched)
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        hanging.end()
    _tidy(launched)
    return _result(launched, outcome)


class Hanging:
    """The workers on this machine that show no life: stopped processes, which nothing else notices.

    The pulses of a run in object storage come here now and then only; those workers watch each
    other.
    """

    def __init__(self, launched: Launched) -> None:
        self._folder, self._ranks = launched.folder, heartbeat.Others(launched.folder)
        self._seconds = 0.0 if launched.far else launched.experiment.run.hang_seconds

    def end(self) -> None:
        """To be called often."""
        for life in self._ranks.silent(self._seconds + GRACE_SECONDS) if self._seconds else ():
            put_down(self._folder, life)


def _watch(
    thread: threading.Thread,
    launched: Launched,
    terminal: Terminal,
    outcome: dict[str, Any],
    signals: Signals,
) -> None:
    """Show the run until its thread ends; raise the first refusal of a worker as soon as it is
    there.
    """
    settled, hanging, growing = (
        False,
        Hanging(launched),
        Growing(launched.experiment, launched.folder),
    )
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        terminal.refresh()
        terminal.starting(_phase(launched, outcome))
        if "ours" in outcome and not settled:
            signals.install()
            settled = True
        hanging.end()
        if failure := launched.folder.failure():
            raise as_error(*failure)
        growing.look(outcome.get("workers", 0))


def _phase(launched: Launched, outcome: dict[str, Any]) -> str:
    """What the start of a run is at, as far as can be seen from here."""
    if "ours" not in outcome:
        address = launched.experiment.run.address
        return f"joining the Ray cluster at {address}" if address else "starting Ray"
    if not (workers := outcome.get("workers", 0)):
        return "Ray is up: looking for places for the workers"
    many = f"{workers} workers" if workers > 1 else "1 worker"
    lives = heartbeat.lives(launched.folder).values()
    if len(lives) < workers:
        return f"starting {many}"
    if any(life.place == "start" for life in lives):
        return f"{many} at work: opening data, building networks"
    return "training: the first steps"


def _train(launched: Launched, verbose: bool, outcome: dict[str, Any]) -> None:
    """Run in a thread: Ray from start to end; leaves `result` or `error` in `outcome`, `ours` if
    Ray is to be ended.
    """
    try:
        outcome["ours"] = ray_runtime.start(launched.experiment.run.address, verbose)
        nodes.refuse_unshared(launched.experiment, launched.prepared)
        outcome["result"] = train_group.run(launched, outcome)
    except Exception as error:  # carried to the main thread, which explains it
        outcome["free"] = ray_runtime.in_words()
        outcome["error"] = error
    finally:
        # Not left to the main thread: Ray's processes are killed, not ended, with the thread that
        # started them.
        _shut_down(outcome)


def _tidy(launched: Launched) -> None:
    """Take away what only a run that goes on needs."""
    heartbeat.clear(launched.folder)
    shutil.rmtree(launched.folder.path / ".ray", ignore_errors=True)


def _end_ray(thread: threading.Thread, outcome: dict[str, Any]) -> None:
    """End a Ray that is still at work; a start under way is waited for, so that nothing of it is
    left behind.
    """
    deadline = time.monotonic() + START_SECONDS
    while thread.is_alive() and not outcome and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    if thread.is_alive():
        _shut_down(outcome)
        thread.join(START_SECONDS)


def _shut_down(outcome: dict[str, Any]) -> None:
    if outcome.get("ours"):
        ray_runtime.end()


def _result(launched: Launched, outcome: dict[str, Any]) -> dict[str, Any]:
    """What the run ended with; raise the error it ended with."""
    if error := outcome.get("error"):
        raise error if isinstance(error, UdlError) else _explained(error, launched, outcome)
    return dict(outcome["result"])


def _explained(error: Exception, launched: Launched, outcome: dict[str, Any]) -> UdlError:
    """What Ray raised, as one line; the whole story goes to the messages of the run."""
    if ray_runtime.is_misplaced(error):
        return ClusterError(
            f"run.workers = {launched.experiment.run.workers} could not be placed in {PLACEMENTS} "
            f"tries; free now: {outcome['free']}: lower run.workers, or wait for the others"
        )
    return ClusterError(
        f"Ray failed: {one_line(error)}; all of it is in {launched.folder.messages}"
    )
