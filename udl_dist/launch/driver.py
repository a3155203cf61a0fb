"""`udl train` in the driver process: prepare the data, hold the run folder, run Ray, watch the run.

Workers and driver communicate through the run folder: a stop is requested by a file, progress is
read from the curves, a refusal from `failure.json`.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any, TextIO

from udl_dist import experiment as experiments
from udl_dist import methods
from udl_dist.core import files
from udl_dist.data.loader.opening import Prepared
from udl_dist.data.packing.prepare import prepare, settled
from udl_dist.errors import ClusterError, UdlError, UsageError
from udl_dist.experiment import Experiment
from udl_dist.launch import nodes, train_group
from udl_dist.launch.capacity import ElasticScaler, automatic_here, free_in_words
from udl_dist.launch.plan import checked_plan, plan_here
from udl_dist.launch.ray_thread import RayThread, Signals
from udl_dist.launch.recovery import as_error, one_line
from udl_dist.launch.train_group import PLACEMENTS, Gate, RunSpec
from udl_dist.launch.train_result import TrainResult
from udl_dist.launch.watchdog import HangingRanks
from udl_dist.runs import heartbeat, remote
from udl_dist.runs.remote_launcher import sync_launcher
from udl_dist.runs.run_folder import RunFolder
from udl_dist.runs.terminal import Progress, Terminal, page_hint
from udl_dist.runs.tracking import read_key, resolved
from udl_dist.storage.uris import is_remote, name_of, refuse_web

MIXTURE = (10, 200)  # components and most iterations, as of udl fit-prior


def train(experiment: Experiment, out: TextIO, verbose: bool = False) -> TrainResult:
    """Run or resume `experiment` in its folder; what a person sees meanwhile is written to `out`.

    Raises UsageError, DataError or ClusterError before anything is trained, later also the
    UdlError of the first worker that refused.
    """
    if not experiment.run.folder:
        raise UsageError("run.folder is empty: give --run.folder")
    refuse_web(experiment.run.folder, "run.folder")
    # What needs neither the folder nor the data is refused first.
    folder = RunFolder(remote.working(experiment.run.folder, "launcher"))
    if not is_remote(experiment.run.folder):
        experiment = replace(experiment, run=replace(experiment.run, folder=str(folder.path)))
    # Here as well as in the worker: W&B's thread there could only report it.
    if experiment.track.key_file:
        read_key(experiment.track)
    resolved(experiment.track)  # refuses a mode that W&B does not have
    name = experiment.run.folder
    with folder.held(), files.errors_named(folder.path), sync_launcher(name, folder) as launcher:
        # 1. The folder: empty, or of this very experiment.
        if experiment.run.fresh:
            if aside := (launcher or folder).set_aside():
                folder.say(f"a fresh start: the former run was moved to {aside}")
            # Not stored: fed back as a job file, it would set the run aside again.
            experiment = replace(experiment, run=replace(experiment.run, fresh=False))
        # 2. The data: settings that come from the images, then packing and indexing.
        packing = Progress("packing", out)
        experiment = experiment.replace(data=settled(experiment.data.absolute(), packing))
        _refuse_another_experiment(folder, experiment)
        plan_here(experiment)  # refuses what it can before a million images are packed
        prepared = prepare(experiment.data, packing)
        plan = checked_plan(experiment)
        # Only now, as the length in images depends on the data: a longer run of it goes on.
        saved = folder.finished()
        if saved and saved["images"] >= plan.total_images:
            return TrainResult.of(experiment, folder.path, saved)
        # 3. From here on the folder is this run's.
        files.write_whole(folder.experiment, experiment.to_toml())
        if launcher:
            prepared = launcher.shared(prepared)
            launcher.sync()
        best, sign = experiment.best_metric, experiment.sign_of(experiment.best_metric)
        terminal = Terminal(folder, plan.total_images, out, best, sign)
        for line in plan.lines():
            terminal.say(line)
        terminal.say(page_hint(folder.path))
        # The folder has the settings as given; the workers, which may be on other machines, get
        # the tracking mode that was found on this one.
        track, message = resolved(experiment.track)
        if message:
            terminal.say(message)
        run = automatic_here(experiment).run  # the folder has "auto": resumed, it counts again
        spec = RunSpec(experiment.replace(track=track, run=run), prepared, launcher=launcher)
        outcome, signal = _supervise(spec, terminal, verbose)
        # 4. The result: a stopped run has none, so that the same command resumes it.
        if launcher:
            launcher.sync()
        result = TrainResult.of(experiment, folder.path, outcome, signal)
        if result.complete:
            folder.finish({"images": result.images, "figures": result.metrics})
            _fit_prior(experiment, folder, terminal)
        return result


def _fit_prior(experiment: Experiment, folder: RunFolder, terminal: Terminal) -> None:
    """Fit a mixture to the codes of training images, where samples may come from either."""
    kind, most = methods.find(experiment.method_name), experiment.evaluate.prior_images
    if not most or not (kind.can("encode") and kind.can("prior")):
        return
    if is_remote(experiment.run.folder):  # the working folder has no checkpoints
        return
    from udl_dist.inference.fitting import fit_prior
    from udl_dist.inference.model import load

    terminal.say("fitting a mixture to the codes of training images, for udl sample")
    try:
        fitted = fit_prior(load(folder.path), *MIXTURE, 0, lambda done, total: None, most)
        for line in fitted.lines():
            terminal.say(line)
    # The run is complete without one: the data may lie where only the workers can read them.
    except UdlError as error:
        terminal.say(f"no mixture was fitted to the codes: {error}")


def train_in_cluster(experiment: Experiment, prepared: Prepared, gate: Gate) -> dict[str, Any]:
    """Train in a process that has joined a Ray cluster, as a trial of a search does.

    Without signals and terminal; returns what `worker.work` returns, raises what `train` raises.
    """
    # A killed head leaves the workers of its trials alive for a while, in the same folder.
    spec = RunSpec(experiment, prepared, gate)
    heartbeat.clear(spec.folder)
    training = Training(spec)
    training.thread.watch(HangingRanks(spec.folder, experiment.run.hang_seconds).kill)
    _remove_temporary_files(spec.folder)
    return training.outcome()


def _supervise(spec: RunSpec, terminal: Terminal, verbose: bool) -> tuple[dict[str, Any], int]:
    """Run Ray in its thread to the end or a signal; return the outcome and the signal, or 0."""
    folder = spec.folder
    heartbeat.clear(folder)
    training = Training(spec, verbose)
    # Heartbeats of a run in object storage arrive late: its workers watch each other.
    hang_seconds = 0.0 if spec.launcher else spec.experiment.run.hang_seconds
    hanging = HangingRanks(folder, hang_seconds)
    scaler = ElasticScaler(spec.experiment, folder)

    def poll() -> None:
        """Show the run; raise the first refusal of a worker."""
        terminal.refresh()
        terminal.starting(_phase(training, spec))
        hanging.kill()
        # The worker's own words, before the error of Ray that follows from it.
        if failure := folder.failure():
            raise as_error(*failure)
        scaler.check(training.workers)

    with Signals(folder.ask_stop, terminal.say, lambda: training.thread.ray_is_up) as signals:
        try:
            training.thread.watch(poll, signals)
        finally:
            _remove_temporary_files(folder)
        terminal.refresh(last=True)
    return training.outcome(), signals.received[0] if signals.received else 0


def _phase(training: Training, spec: RunSpec) -> str:
    """What a run that has not made a step yet is doing, for the terminal."""
    if not training.thread.ray_is_up:
        address = spec.experiment.run.address
        return f"joining the Ray cluster at {address}" if address else "starting Ray"
    if not (workers := training.workers):
        return "Ray is up: waiting for free CPUs or GPUs"
    many = f"{workers} workers" if workers > 1 else "1 worker"
    # Ranks say nothing of themselves but by their heartbeats, the first when they begin.
    heartbeats = heartbeat.read_all(spec.folder).values()
    if len(heartbeats) < workers:
        return f"starting {many}"
    if any(beat.place == "start" for beat in heartbeats):
        return f"{many}: opening data, building networks"
    return "training: the first steps"


class Training:
    """One run under Ray; `workers` are training now."""

    def __init__(self, spec: RunSpec, verbose: bool = False) -> None:
        self.workers = 0
        address = spec.experiment.run.address
        self.thread = RayThread(address, verbose, self._fit, train_group.import_ray_train)
        self._spec = spec
        self._outcome: dict[str, Any] = {}
        self._free = ""  # CPUs and GPUs that were free when it failed

    def outcome(self) -> dict[str, Any]:
        """What the workers returned; raises the error the run ended with."""
        if (error := self.thread.error) is None:
            return self._outcome
        raise error if isinstance(error, UdlError) else self._explained(error)

    def _fit(self) -> None:
        try:
            nodes.refuse_unshared(self._spec.experiment, self._spec.prepared)
            self._outcome = train_group.fit(self._spec, self._set_workers)
        except Exception:
            # Now, as Ray ends before the error is explained.
            self._free = free_in_words()
            raise

    def _set_workers(self, workers: int) -> None:
        self.workers = workers

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
