"""`udl search` in the driver process: runs trials, trains and publishes the winner."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from udl_dist.core import files
from udl_dist.data.packing.prepare import prepare, settled
from udl_dist.errors import ClusterError, UdlError, UsageError
from udl_dist.launch.ray_thread import RayThread, Signals
from udl_dist.launch.recovery import one_line
from udl_dist.runs.run_folder import RunFolder
from udl_dist.runs.terminal import LOG_SECONDS, Progress, Screen, clock, page_hint
from udl_dist.runs.tracking import resolved
from udl_dist.search import config
from udl_dist.search.config import Search
from udl_dist.search.final_runs import FinalRuns, final_runs
from udl_dist.search.objective import Objective, check_objective
from udl_dist.search.planning import SearchPlan, plan
from udl_dist.search.results import (
    SearchResult,
    conclude,
    in_words,
    read_result,
)
from udl_dist.search.trial_controller import TrialController
from udl_dist.search.trial_log import LOG, TrialLog, TrialResult, short

# --status and the report read the search from it, and nodes must see it.
SOURCE = "search.toml"


def search(wanted: Search, out: TextIO, verbose: bool = False) -> SearchResult:
    """Run or resume a search in its folder; progress for people is written to `out`."""
    resolved(wanted.base.track)  # refuses a mode that W&B does not have
    folder = RunFolder(wanted.folder)
    # fresh holds for this start; in search.toml it would empty the folder at every resume.
    run = replace(wanted.base.run, folder=str(folder.path), fresh=False)
    # One command at a time: two would append to one log.
    with folder.held(), files.errors_named(folder.path):
        if wanted.base.run.fresh:
            folder.set_aside()
        wanted = _settled(
            replace(wanted, base=replace(wanted.base, run=run)), Progress("packing", out)
        )
        # Each before what it guards: a foreign folder, a useless objective, the images (packing
        # may take long), the plan; search.toml is replaced after all of them.
        before = _refuse_another(wanted)
        check_objective(wanted)
        prepare(wanted.base.data, Progress("packing", out))
        planned = plan(wanted, before.settings.brackets if before else ())
        wanted = wanted.replace(brackets=planned.brackets)
        log = TrialLog(folder.path / LOG)
        files.write_whole(folder.path / SOURCE, wanted.to_toml())
        track, tracked = resolved(wanted.base.track)
        screen = Screen(out)
        for line in [*planned.lines(), tracked, page_hint(wanted.folder)]:
            if line:
                screen.say(line)
        # After search.toml is written: it has the mode as given, trials the one found possible.
        wanted = replace(wanted, base=wanted.base.replace(track=track))
        # Results are written also after a signal, for what has ended.
        signal = SearchSession(wanted, planned, log, screen).run(verbose)
        return conclude(wanted, planned, log, out, signal)


def dry_run(wanted: Search) -> SearchPlan:
    """The plan of a search; nothing is started."""
    wanted = _settled(wanted)
    planned = plan(wanted)
    check_objective(wanted)
    return planned


def status(folder: Path) -> SearchResult:
    """The present result of a search folder, whether the search is running or not."""
    source = folder / SOURCE
    if not source.exists():
        raise UsageError(f"{folder} is not a search: give the folder of a udl search")
    # The folder may have been moved or mounted elsewhere since.
    wanted = config.load(source, {"run.folder": str(folder.absolute())})
    return read_result(wanted, plan(wanted), TrialLog(folder / LOG))


class SearchSession:
    """A running search: Ray in a thread, progress and signals on the main one."""

    def __init__(self, wanted: Search, planned: SearchPlan, log: TrialLog, screen: Screen) -> None:
        self.wanted, self.planned, self.log = wanted, planned, log
        self._screen = screen
        self._progress = SearchProgress(wanted, planned.trials, log, screen)
        self._controller: TrialController | FinalRuns | None = None
        self._stop_requested = False
        self._began = time.monotonic()

    def run(self, verbose: bool) -> int:
        """Run the trials and the winner's runs that are left; return the signal that ended it."""
        # Before Ray starts: an earlier start may have ended all trials and part of the final runs.
        final = final_runs(self.wanted, self.planned, self.log)
        # Ray in a thread of its own: signals arrive on the main one, which must stay free for them.
        thread = RayThread(self.wanted.base.run.address, verbose, self._work)
        with Signals(self._stop, self._screen.say, lambda: thread.ray_is_up) as signals:
            # Nothing left to train: no Ray, which takes 4 to 9 s to start.
            if self._trials_left() or (final and not final.over):
                self._screen.draw("starting Ray")
                thread.watch(self._poll, signals)
            self._progress.show(self._progress.line(0), last=True)
        if (error := thread.error) and not isinstance(error, UdlError | OSError):
            why = f"{type(error).__name__}: {one_line(error)}"
            # Ours have their cure in the message; anything else came out of Ray or Tune.
            error = ClusterError(f"Ray failed: {why}: the same command resumes it")
        if error:
            raise error
        # A signal after the last trial stopped nothing, so the exit code is that of a whole search.
        stopped = signals.received and self._controller and self._controller.stopping
        return signals.received[0] if stopped else 0

    def _trials_left(self) -> bool:
        return len(self.log.first(self.planned.trials)) < self.planned.trials

    def _work(self) -> None:
        from udl_dist.launch import nodes
        from udl_dist.search import tuner

        wanted = self.wanted
        # Before any trial: what cannot be placed, or cannot see the folder, fails now and by name.
        capacity = tuner.capacity_for(wanted)
        nodes.refuse_unshared(wanted.base, prepare(wanted.base.data), wanted.folder / SOURCE)
        storage = wanted.folder / ".tune"
        # Two calls of Tune: which runs are the winner's is known when all trials have ended.
        if self._trials_left():
            self._controller = TrialController(wanted, self.log, self.planned)
            tuner.run(self._controller, capacity, storage)
        stopping = self._controller and self._controller.stopping
        final = final_runs(wanted, self.planned, self.log)
        if final and not final.over and not stopping:
            self._controller = final
            tuner.run(final, capacity, storage)
            final.refuse_failures()

    def _poll(self) -> None:
        controller, limit = self._controller, self.wanted.settings.seconds
        if not controller:
            return
        if isinstance(controller, FinalRuns):
            self._progress.show(controller.progress())
        else:
            counts = len(controller.running), len(controller.paused)
            self._progress.show(self._progress.line(*counts))
        # Of this start: a resumed search has the whole time again.
        if limit and time.monotonic() - self._began > limit and not controller.stopping:
            self._screen.say(
                f"search.seconds = {limit:g} are over: running trials write a checkpoint and end"
            )
            self._stop()
        if controller.stopping or self._stop_requested:
            controller.stop()  # repeatedly: a trial that is only starting misses one call

    def _stop(self) -> None:
        self._stop_requested = True  # also for a controller that does not exist yet
        if self._controller:
            self._controller.stop()


class SearchProgress:
    """Shows trials running, ended and best, then the winner's runs."""

    def __init__(self, search: Search, trials: int, log: TrialLog, screen: Screen) -> None:
        self._search, self._trials, self._log, self._screen = search, trials, log, screen
        # Failures of earlier starts were reported then.
        self._before = self._reported = len(log.results)
        self._began, self._shown_at = time.monotonic(), float("-inf")

    def show(self, now: str, last: bool = False) -> None:
        """Draw a line, at most every half second; failed trials are reported at once."""
        # A copy: the thread of Tune adds results meanwhile.
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

    def line(self, running: int, paused: int = 0) -> str:
        results = list(self._log.results.values())
        done, seconds = len(results) - self._before, time.monotonic() - self._began
        # Trials of this start only: earlier ones were trained at another time.
        # By the clock, so trials in parallel are counted in.
        left = seconds / done * (self._trials - len(results)) if done else 0.0
        parts = [
            f"{len(results)} of {self._trials} trials · {running} running",
            f"{paused} paused at a rung" if paused else "",
            in_words(results),
            _best_in_words(self._search, results),
            f"ETA {clock(left)}" if left else "",
        ]
        return " · ".join(part for part in parts if part)


def _best_in_words(search: Search, results: list[TrialResult]) -> str:
    """The best trial so far, with its settings."""
    if not (ranked := Objective(search).ranked(results)):
        return ""
    settings = ranked[0].settings.items()
    values = ", ".join(f"{name.rsplit('.', 1)[-1]} {short(value)}" for name, value in settings)
    metric = " ".join(short(value) for value in ranked[0].values)
    return f"best {metric} (trial {ranked[0].trial}: {values})"


def _refuse_another(wanted: Search) -> Search | None:
    """The search that the folder holds; refuse another one, or a run."""
    source = wanted.folder / SOURCE
    if (wanted.folder / "experiment.toml").exists():
        raise UsageError(f"{wanted.folder} holds a run: choose another --run.folder")
    if not source.exists():
        return None
    before = config.load(source, {})
    # Older releases wrote paths as they were given.
    before = replace(before, base=before.base.replace(data=before.base.data.absolute()))
    if differing := config.differences(before, wanted):
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UsageError(
            f"{wanted.folder} holds another search: {'; '.join(differing[:3])}{more}: choose "
            "another --run.folder, or the settings it was started with"
        )
    return before


def _settled(wanted: Search, progress: Progress | None = None) -> Search:
    """The search with the size and channels of its images filled in."""
    # Written into search.toml as numbers: a resume compares them, and every trial has the same.
    data = settled(wanted.base.data.absolute(), progress)
    return replace(wanted, base=wanted.base.replace(data=data))
