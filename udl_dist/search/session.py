"""One `udl search`: folder held, trials run, winner trained and published, results shown."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from udl_dist.core import files
from udl_dist.data.packing.prepare import prepare, settled
from udl_dist.errors import ClusterError, UdlError, UsageError
from udl_dist.launch.recovery import one_line
from udl_dist.launch.signals import Signals
from udl_dist.runs.run_folder import RunFolder
from udl_dist.runs.terminal import LOG_SECONDS, Progress, Screen, clock, page_hint
from udl_dist.runs.tracking import resolved
from udl_dist.search import config, objective, results
from udl_dist.search.config import Search
from udl_dist.search.controller import TrialController
from udl_dist.search.objective import Objective
from udl_dist.search.planning import SearchPlan, plan
from udl_dist.search.results import SearchResult, count_states, in_words, short
from udl_dist.search.trial_log import NAME, TrialLog, TrialResult
from udl_dist.search.winner import FinalRuns, final_runs

POLL_SECONDS = 0.2
SOURCE = "search.toml"


def search(wanted: Search, out: TextIO, verbose: bool = False) -> SearchResult:
    """Run or resume a search in its folder; what a person should see meanwhile goes to `out`."""
    resolved(wanted.base.track)  # refuses a mode that W&B does not have
    folder = RunFolder(wanted.folder)
    run = replace(wanted.base.run, folder=str(folder.path), fresh=False)
    with folder.held(), files.errors_named(folder.path):
        if wanted.base.run.fresh:
            folder.set_aside()
        wanted = _settled(
            replace(wanted, base=replace(wanted.base, run=run)), Progress("packing", out)
        )
        _refuse_another(wanted)
        objective.check(wanted)
        prepare(wanted.base.data, Progress("packing", out))
        planned = plan(wanted)
        log = TrialLog(folder.path / NAME)
        files.write_whole(folder.path / SOURCE, wanted.to_toml())
        track, tracked = resolved(wanted.base.track)
        screen = Screen(out)
        for line in [*planned.lines(), tracked, page_hint(wanted.folder)]:
            if line:
                screen.say(line)
        wanted = replace(wanted, base=wanted.base.replace(track=track))
        signal = SearchSession(wanted, planned, log, screen, verbose).run()
        return results.conclude(wanted, planned, log, out, signal)


def dry_run(wanted: Search) -> SearchPlan:
    """What a search would do; nothing is started."""
    wanted = _settled(wanted)
    planned = plan(wanted)
    objective.check(wanted)
    return planned


def status(folder: Path) -> SearchResult:
    """What a search folder holds now, whether the search is running or not."""
    source = folder / SOURCE
    if not source.exists():
        raise UsageError(f"{folder} is not a search: give the folder of a udl search")
    wanted = config.load(source, {"run.folder": str(folder.absolute())})
    return results.read(wanted, plan(wanted), TrialLog(folder / NAME))


class SearchSession:
    """A running search: Ray in a thread, progress and signals on the main one."""

    def __init__(
        self, wanted: Search, planned: SearchPlan, log: TrialLog, screen: Screen, verbose: bool
    ) -> None:
        self.wanted, self.planned, self.log = wanted, planned, log
        self._screen, self._verbose = screen, verbose
        self._controller: TrialController | FinalRuns | None = None
        self._stop_requested = False
        self._ray_is_up = self._owns_ray = False
        self._error: Exception | None = None

    def run(self) -> int:
        """Run what is left of the trials, then of the winner's runs; return the signal that ended
        it, or 0.
        """
        self._screen.draw("starting Ray")
        with Signals(self._stop, self._screen.say, lambda: self._ray_is_up) as signals:
            thread = threading.Thread(target=self._work, daemon=True)
            thread.start()
            try:
                self._watch(thread, signals)
            finally:
                self._end_ray(thread)
        if (error := self._error) is None:
            stopped = signals.received and self._controller and self._controller.stopping
            return signals.received[0] if stopped else 0
        if isinstance(error, UdlError | OSError):
            raise error
        raise ClusterError(
            f"Ray failed: {type(error).__name__}: {one_line(error)}: the same command resumes it"
        )

    def _work(self) -> None:
        """In a thread, since Ray would take the signal handlers of the main one."""
        from udl_dist.launch import ray_runtime

        try:
            final = final_runs(self.wanted, self.planned, self.log)
            trials_left = len(self.log.first(self.planned.trials)) < self.planned.trials
            if trials_left or (final and not final.over):
                self._owns_ray = ray_runtime.start(self.wanted.base.run.address, self._verbose)
                self._ray_is_up = True
                self._under_ray(trials_left)
        except Exception as error:  # carried to the main thread
            self._error = error
        finally:
            if self._owns_ray:
                ray_runtime.end()

    def _under_ray(self, trials_left: bool) -> None:
        from udl_dist.launch import nodes
        from udl_dist.search import tuner

        wanted = self.wanted
        capacity = tuner.capacity_for(wanted)
        nodes.refuse_unshared(wanted.base, prepare(wanted.base.data), wanted.folder / SOURCE)
        storage = wanted.folder / ".tune"
        if trials_left:
            self._controller = TrialController(wanted, self.log, self.planned)
            tuner.run(self._controller, capacity, storage)
        stopping = self._controller and self._controller.stopping
        final = final_runs(wanted, self.planned, self.log)
        if final and not final.over and not stopping:
            self._controller = final
            tuner.run(final, capacity, storage)
            final.refuse_failures()

    def _watch(self, thread: threading.Thread, signals: Signals) -> None:
        progress = SearchProgress(self.wanted, self.planned.trials, self.log, self._screen)
        installed, limit, began = False, self.wanted.settings.seconds, time.monotonic()
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            if self._ray_is_up and not installed:
                signals.install()  # again: Ray replaces them
                installed = True
            controller = self._controller
            if isinstance(controller, FinalRuns):
                progress.show(controller.progress())
            elif controller:
                progress.show(progress.line(len(controller.running)))
            over = limit and time.monotonic() - began > limit
            if over and controller and not controller.stopping:
                self._screen.say(
                    f"search.seconds = {limit:g} are over: running trials write a checkpoint"
                    " and end"
                )
                self._stop()
            if controller and (controller.stopping or self._stop_requested):
                controller.stop()  # repeatedly: a trial that is only starting misses one call
        progress.show(progress.line(0), last=True)

    def _stop(self) -> None:
        self._stop_requested = True  # also for a controller that does not exist yet
        if self._controller:
            self._controller.stop()

    def _end_ray(self, thread: threading.Thread) -> None:
        if thread.is_alive() and self._owns_ray:
            from udl_dist.launch import ray_runtime

            ray_runtime.end()
            thread.join(ray_runtime.START_SECONDS)


class SearchProgress:
    """Shows trials running, ended and best, then the winner's runs."""

    def __init__(self, search: Search, trials: int, log: TrialLog, screen: Screen) -> None:
        self._search, self._trials, self._log, self._screen = search, trials, log, screen
        self._before = self._reported = len(log.results)
        self._began, self._shown_at = time.monotonic(), float("-inf")

    def show(self, now: str, last: bool = False) -> None:
        """Draw a line, unless there was one a moment ago; failed trials are reported at once."""
        for result in list(self._log.results.values())[self._reported :]:
            self._reported += 1
            if result.state == "failed":
                images = f"{result.images:,} images"
                self._screen.say(f"trial {result.trial} failed after {images}: {result.why}")
        if last:
            self._screen.say(now)
        elif time.monotonic() - self._shown_at >= (0.5 if self._screen.redraws else LOG_SECONDS):
            self._shown_at = time.monotonic()
            self._screen.draw(now)

    def line(self, running: int) -> str:
        results = list(self._log.results.values())
        done, seconds = len(results) - self._before, time.monotonic() - self._began
        left = seconds / done * (self._trials - len(results)) if done else 0.0
        parts = [
            f"{len(results)} of {self._trials} trials · {running} running",
            in_words(count_states(results)),
            best_in_words(self._search, results),
            f"ETA {clock(left)}" if left else "",
        ]
        return " · ".join(part for part in parts if part)


def best_in_words(search: Search, results: list[TrialResult]) -> str:
    """The best trial up to now, with its settings."""
    ranked = Objective(search).ranked(results)
    if not ranked:
        return ""
    settings = ranked[0].settings.items()
    values = ", ".join(f"{name.rsplit('.', 1)[-1]} {short(value)}" for name, value in settings)
    metric = " ".join(short(value) for value in ranked[0].values)
    return f"best {metric} (trial {ranked[0].trial}: {values})"


def _refuse_another(wanted: Search) -> None:
    """A folder that holds another search, or a run, is left as it is."""
    source = wanted.folder / SOURCE
    if (wanted.folder / "experiment.toml").exists():
        raise UsageError(f"{wanted.folder} holds a run: choose another --run.folder")
    if not source.exists():
        return
    before = config.load(source, {})
    before = replace(before, base=before.base.replace(data=before.base.data.absolute()))
    if differing := config.differences(before, wanted):
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UsageError(
            f"{wanted.folder} holds another search: {'; '.join(differing[:3])}{more}: choose "
            "another --run.folder, or the settings it was started with"
        )


def _settled(wanted: Search, progress: Progress | None = None) -> Search:
    """The same search with the size and channels of its images known."""
    data = settled(wanted.base.data.absolute(), progress)
    return replace(wanted, base=wanted.base.replace(data=data))
