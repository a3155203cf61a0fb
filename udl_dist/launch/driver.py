"""`udl train` in the driver process: prepare the data, hold the run folder, run Ray, watch the run.

Ray runs in a thread, because on the main thread it would install its own signal handlers. Workers
and driver speak through the run folder: a stop is requested by a file, progress is read from the
curves, a refusal from `failure.json`.
"""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import replace
from typing import Any, TextIO

from udl_dist import experiment as experiments
from udl_dist import methods
from udl_dist.core import files
from udl_dist.data.loader.opening import Prepared
from udl_dist.data.packing.prepare import prepare, settled
from udl_dist.errors import ClusterError, UdlError, UsageError
from udl_dist.experiment import Experiment
from udl_dist.launch import nodes, ray_runtime, train_group
from udl_dist.launch.capacity import ElasticScaler, free_in_words
from udl_dist.launch.plan import Plan, checked_plan, plan_here
from udl_dist.launch.ray_runtime import POLL_SECONDS, START_SECONDS
from udl_dist.launch.recovery import as_error, one_line
from udl_dist.launch.signals import Signals
from udl_dist.launch.train_group import PLACEMENTS, Gate, RunSpec
from udl_dist.launch.train_result import TrainResult
from udl_dist.launch.watchdog import HangingRanks
from udl_dist.runs import heartbeat, remote
from udl_dist.runs.remote_launcher import sync_launcher
from udl_dist.runs.run_folder import RunFolder
from udl_dist.runs.terminal import Progress, Terminal, page_hint
from udl_dist.runs.tracking import read_key, resolved
from udl_dist.storage.uris import is_remote, name_of, refuse_web


def train(experiment: Experiment, out: TextIO, verbose: bool = False) -> TrainResult:
    """Run or resume `experiment` in its folder; what a person sees meanwhile is written to `out`.

    Raises UsageError, DataError or ClusterError before anything is trained, later also the
    UdlError of the first worker that refused.
    """
    if not experiment.run.folder:
        raise UsageError("run.folder is empty: give --run.folder")
    refuse_web(experiment.run.folder, "run.folder")
    folder = RunFolder(remote.working(experiment.run.folder, "launcher"))
    if not is_remote(experiment.run.folder):
        experiment = replace(experiment, run=replace(experiment.run, folder=str(folder.path)))
    if experiment.track.key_file:
        read_key(experiment.track)
    resolved(experiment.track)  # refuses a mode that W&B does not have
    name = experiment.run.folder
    with folder.held(), files.errors_named(folder.path), sync_launcher(name, folder) as launcher:
        if experiment.run.fresh:
            if aside := (launcher or folder).set_aside():
                folder.say(f"a fresh start: the former run was moved to {aside}")
            experiment = replace(experiment, run=replace(experiment.run, fresh=False))
        packing = Progress("packing", out)
        experiment = experiment.replace(data=settled(experiment.data.absolute(), packing))
        _refuse_another_experiment(folder, experiment)
        plan_here(experiment)  # refuses what it can before a million images are packed
        prepared = prepare(experiment.data, packing)
        plan = checked_plan(experiment)
        if (result := _complete(folder, experiment, plan)) is not None:
            return result
        files.write_whole(folder.experiment, experiment.to_toml())
        if launcher:
            prepared = launcher.shared(prepared)
            launcher.sync()
        terminal = Terminal(folder, plan.total_images, out, experiment.best_metric)
        for line in plan.lines():
            terminal.say(line)
        terminal.say(page_hint(folder.path))
        # The folder has the settings as given; the workers, which may be on other machines, get
        # the tracking mode that was found on this one.
        track, message = resolved(experiment.track)
        if message:
            terminal.say(message)
        spec = RunSpec(experiment.replace(track=track), prepared, launcher=launcher)
        outcome, signal = _supervise(spec, terminal, verbose)
        if launcher:
            launcher.sync()
        result = _result(folder, experiment, outcome, signal)
        if result.complete:
            folder.finish({"images": result.images, "figures": result.metrics})
        return result


def train_in_cluster(experiment: Experiment, prepared: Prepared, gate: Gate) -> dict[str, Any]:
    """Train in a process that has joined a Ray cluster, as a trial of a search does.

    Without signals and terminal; returns what `worker.work` returns, raises what `train` raises.
    """
    spec = RunSpec(experiment, prepared, gate)
    heartbeat.clear(spec.folder)
    thread = RayThread(spec)
    hanging = HangingRanks(spec.folder, experiment.run.hang_seconds)
    while not thread.join(POLL_SECONDS):
        hanging.kill()
    _remove_temporary_files(spec.folder)
    return thread.outcome()


def _supervise(spec: RunSpec, terminal: Terminal, verbose: bool) -> tuple[dict[str, Any], int]:
    """Run Ray in its thread to the end or a signal; return the outcome and the signal, or 0."""
    folder = spec.folder
    heartbeat.clear(folder)
    thread = RayThread(spec, verbose, started=False)
    with Signals(folder.ask_stop, terminal.say, lambda: thread.ray_is_up) as signals:
        thread.start()
        try:
            _watch(thread, spec, terminal, signals)
        finally:
            thread.end_ray()
            _remove_temporary_files(folder)
        terminal.refresh(last=True)
    return thread.outcome(), signals.received[0] if signals.received else 0


def _watch(thread: RayThread, spec: RunSpec, terminal: Terminal, signals: Signals) -> None:
    """Show the run until its thread ends; raise the first refusal of a worker."""
    # Heartbeats of a run in object storage arrive late: its workers watch each other.
    hang_seconds = 0.0 if spec.launcher else spec.experiment.run.hang_seconds
    hanging, scaler = (
        HangingRanks(spec.folder, hang_seconds),
        ElasticScaler(spec.experiment, spec.folder),
    )
    installed = False
    while not thread.join(POLL_SECONDS):
        terminal.refresh()
        terminal.starting(_phase(thread, spec))
        if thread.ray_is_up and not installed:
            signals.install()  # Ray has replaced the handler of SIGTERM
            installed = True
        hanging.kill()
        if failure := spec.folder.failure():
            raise as_error(*failure)
        scaler.check(thread.workers)


def _phase(thread: RayThread, spec: RunSpec) -> str:
    """What a run that has not made a step yet is doing, for the terminal."""
    if not thread.ray_is_up:
        address = spec.experiment.run.address
        return f"joining the Ray cluster at {address}" if address else "starting Ray"
    if not (workers := thread.workers):
        return "Ray is up: waiting for free CPUs or GPUs"
    many = f"{workers} workers" if workers > 1 else "1 worker"
    heartbeats = heartbeat.read_all(spec.folder).values()
    if len(heartbeats) < workers:
        return f"starting {many}"
    if any(beat.place == "start" for beat in heartbeats):
        return f"{many}: opening data, building networks"
    return "training: the first steps"


class RayThread:
    """Ray from its start to its end, in a thread; `workers` are training now."""

    def __init__(self, spec: RunSpec, verbose: bool = False, started: bool = True) -> None:
        self.workers = 0
        self.ray_is_up = False
        self._spec, self._verbose = spec, verbose
        self._owns_ray = False
        self._outcome: dict[str, Any] = {}
        self._error: Exception | None = None
        self._free = ""  # CPUs and GPUs that were free when it failed
        self._thread = threading.Thread(target=self._run, daemon=True)
        if started:
            self.start()

    def start(self) -> None:
        self._thread.start()

    def join(self, seconds: float) -> bool:
        """Wait; return whether the thread has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def end_ray(self) -> None:
        """End a Ray that still runs; one that is starting is waited for, so that none is left."""
        deadline = time.monotonic() + START_SECONDS
        while self._thread.is_alive() and not self.ray_is_up and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if self._thread.is_alive():
            self._shut_down()
            self._thread.join(START_SECONDS)

    def outcome(self) -> dict[str, Any]:
        """What the workers returned; raises the error the run ended with."""
        if self._error is None:
            return self._outcome
        if isinstance(self._error, UdlError):
            raise self._error
        raise self._explained(self._error)

    def _run(self) -> None:
        try:
            self._owns_ray = ray_runtime.start(self._spec.experiment.run.address, self._verbose)
            self.ray_is_up = True
            nodes.refuse_unshared(self._spec.experiment, self._spec.prepared)
            self._outcome = train_group.fit(self._spec, self._set_workers)
        except Exception as error:  # raised again on the main thread, by `outcome`
            self._free = free_in_words()
            self._error = error
        finally:
            # Not left to the main thread: Ray's processes are killed, not ended, with the thread
            # that started them.
            self._shut_down()

    def _set_workers(self, workers: int) -> None:
        self.workers = workers

    def _shut_down(self) -> None:
        if self._owns_ray:
            ray_runtime.end()

    def _explained(self, error: Exception) -> UdlError:
        """An error of Ray in one line; the whole traceback is in the messages of the run."""
        if train_group.is_misplaced(error):
            return ClusterError(
                f"run.workers = {self._spec.experiment.run.workers} could not be placed in"
                f" {PLACEMENTS} tries; free now: {self._free}: lower run.workers, or wait for the"
                " others"
            )
        messages = self._spec.folder.messages
        return ClusterError(f"Ray failed: {one_line(error)}; all of it is in {messages}")


def _remove_temporary_files(folder: RunFolder) -> None:
    heartbeat.clear(folder)
    shutil.rmtree(folder.path / ".ray", ignore_errors=True)


def _refuse_another_experiment(folder: RunFolder, experiment: Experiment) -> None:
    """Refuse a folder that holds another experiment; what differs is named with both values."""
    if not folder.experiment.exists():
        return
    before = experiments.load(folder.experiment, {})
    before = before.replace(data=before.data.absolute())
    if differing := experiments.differences(before, experiment):
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UsageError(
            f"{name_of(experiment.run.folder)} holds another experiment:"
            f" {'; '.join(differing[:3])}{more}: choose another --run.folder, or the settings it"
            " was started with"
        )


def _complete(folder: RunFolder, experiment: Experiment, plan: Plan) -> TrainResult | None:
    """The result of a run that has seen all images that are asked for now; else None."""
    saved = folder.finished()
    if saved is None or saved["images"] < plan.total_images:
        return None
    return _result(folder, experiment, saved, 0)


def _result(
    folder: RunFolder, experiment: Experiment, outcome: dict[str, Any], signal: int
) -> TrainResult:
    return TrainResult(
        experiment.run.folder,
        folder.path,
        outcome["images"],
        outcome["figures"],
        signal,
        not outcome.get("stopped", False),
        methods.find(experiment.method_name).about_samples,
    )
