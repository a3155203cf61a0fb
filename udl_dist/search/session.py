"""One `udl search` from what was asked to what came out: folder held, trials run, winner trained
anew, results told.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from udl_dist.core import files
from udl_dist.data.packing.prepare import prepare, settled
from udl_dist.errors import ClusterError, UdlError, UsageError
from udl_dist.launch.signals import Signals
from udl_dist.runs.run_folder import RunFolder
from udl_dist.runs.terminal import Progress, page_hint
from udl_dist.runs.tracking import resolved
from udl_dist.search import config as asked
from udl_dist.search import ending, objective
from udl_dist.search.config import Search
from udl_dist.search.controller import Conductor
from udl_dist.search.planning import SearchPlan, make_sampler, plan
from udl_dist.search.results import Ended
from udl_dist.search.trial_log import Journal
from udl_dist.search.view import View
from udl_dist.search.winner import Finals

POLL_SECONDS = 0.2
SOURCE = "search.toml"


def search(wanted: Search, out: TextIO, verbose: bool = False) -> Ended:
    """Run or resume a search in its folder; what a person should see while it runs goes to
    `out`.
    """
    resolved(wanted.base.track)  # refuses a mode that W&B does not have
    folder = RunFolder(wanted.folder)
    base = replace(wanted.base, run=replace(wanted.base.run, folder=str(folder.path)))
    wanted = replace(wanted, base=base)
    with folder.held(), files.errors_named(folder.path):
        if base.run.fresh:
            folder.set_aside()
            wanted = replace(wanted, base=replace(base, run=replace(base.run, fresh=False)))
        wanted = _settled(wanted, Progress("packing", out))
        base = wanted.base
        _refuse_another(wanted)
        objective.check(wanted)
        prepare(base.data, Progress("packing", out))
        planned = plan(wanted)
        journal = Journal(folder.path / "trials.jsonl")
        files.write_whole(folder.path / SOURCE, wanted.to_toml())
        track, tracked = resolved(base.track)
        wanted = replace(wanted, base=wanted.base.replace(track=track))
        return Session(wanted, planned, journal, out, verbose, tracked).run()


@dataclass
class Session:
    """The parts of a search that is going on."""

    wanted: Search
    planned: SearchPlan
    journal: Journal
    out: TextIO
    verbose: bool
    tracked: str = ""  # what W&B's own settings say, where they count

    def run(self) -> Ended:
        view = View(self.wanted, self.planned.trials, self.out)
        for line in [
            *self.planned.lines(),
            *([self.tracked] if self.tracked else []),
            page_hint(self.wanted.folder),
        ]:
            view.say(line)
        left = [number for number in range(self.planned.trials) if number not in self.journal.lines]
        self._outcome: dict[str, Any] = {}
        self._asked_to_stop = False
        self._conductor: Conductor | Finals | None = None
        self._began = time.monotonic()
        view.draw("starting Ray")
        with Signals(self._stop, view.say, lambda: "ours" in self._outcome) as signals:
            thread = threading.Thread(target=self._work, args=(bool(left),), daemon=True)
            thread.start()
            try:
                self._watch(thread, view, signals)
            finally:
                self._end(thread)
        if error := self._outcome.get("error"):
            raise error if isinstance(error, UdlError | OSError) else _explained(error)
        signal = (
            signals.received[0]
            if signals.received and self._conductor and self._conductor.stopping
            else 0
        )
        return self._ended(signal)

    def _work(self, trials_left: bool) -> None:
        """In a thread: Ray from start to end, the trials, then the winner's runs."""
        from udl_dist.launch import ray_runtime

        try:
            finals = self._finals()
            if trials_left or (finals and not finals.over):
                self._outcome["ours"] = ray_runtime.start(
                    self.wanted.base.run.address, self.verbose
                )
                self._under_ray(trials_left)
        except Exception as error:  # carried to the main thread, which explains it
            self._outcome["error"] = error
        finally:
            if self._outcome.get("ours"):
                ray_runtime.end()

    def _under_ray(self, trials_left: bool) -> None:
        from udl_dist.launch import nodes
        from udl_dist.search import places
        from udl_dist.search import tuner as tuning

        slots = places.slots(self.wanted)
        nodes.refuse_unshared(
            self.wanted.base, prepare(self.wanted.base.data), self.wanted.folder / SOURCE
        )
        storage = self.wanted.folder / ".tune"
        if trials_left:
            self._conductor = self._new_conductor()
            tuning.run(self._conductor, slots.parallel, slots.resources, storage, slots.grouped)
        finals = self._finals()
        if finals and not finals.over and not (self._conductor and self._conductor.stopping):
            self._conductor = finals
            tuning.run(finals, slots.parallel, slots.resources, storage, slots.grouped)
            finals.refuse_failures()

    def _new_conductor(self) -> Conductor:
        from udl_dist.search import tuner as tuning

        sampler, planned = make_sampler(self.wanted), self.planned
        rule = tuning.rule(self.wanted.settings, planned.rungs, planned.budget)
        return Conductor(self.wanted, self.journal, sampler, rule, planned.trials, planned.budget)

    def _finals(self) -> Finals | None:
        """The winner's runs, once all trials have ended and one of them won."""
        return ending.finals(self.wanted, self.planned, self.journal)

    def _watch(self, thread: threading.Thread, view: View, signals: Signals) -> None:
        settled, limit = False, self.wanted.settings.seconds
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            if "ours" in self._outcome and not settled:
                signals.install()
                settled = True
            conductor = self._conductor
            if isinstance(conductor, Finals):
                view.refresh_finals(conductor)
            elif conductor:
                view.refresh(self.journal, len(conductor.running))
            if (
                limit
                and time.monotonic() - self._began > limit
                and conductor
                and not conductor.stopping
            ):
                view.say(
                    f"search.seconds = {limit:g} are over: what runs writes a checkpoint and ends"
                )
                conductor.stop()
            if conductor and (conductor.stopping or self._asked_to_stop):
                conductor.stop()  # again: a trial that was about to begin has not heard of it
        view.refresh(self.journal, 0, last=True)

    def _stop(self) -> None:
        self._asked_to_stop = True  # also of a conductor that is only about to be made
        if self._conductor:
            self._conductor.stop()

    def _end(self, thread: threading.Thread) -> None:
        if thread.is_alive() and self._outcome.get("ours"):
            from udl_dist.launch import ray_runtime

            ray_runtime.end()
            thread.join(ray_runtime.START_SECONDS)

    def _ended(self, signal: int) -> Ended:
        return ending.end(self.wanted, self.planned, self.journal, self.out, signal)


def _refuse_another(wanted: Search) -> None:
    """A folder that holds another search, or a run, is left as it is."""
    source = wanted.folder / SOURCE
    if (wanted.folder / "experiment.toml").exists():
        raise UsageError(f"{wanted.folder} holds a run: choose another --run.folder")
    if not source.exists():
        return
    before = asked.load(source, {})
    before = replace(before, base=before.base.replace(data=before.base.data.absolute()))
    if differing := asked.differences(before, wanted):
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UsageError(
            f"{wanted.folder} holds another search: {'; '.join(differing[:3])}{more}: "
            "choose another --run.folder, or the settings it was started with"
        )


def _explained(error: Exception) -> UdlError:
    from udl_dist.launch.recovery import one_line

    return ClusterError(
        f"Ray failed: {type(error).__name__}: {one_line(error)}: the same command goes on"
    )


def _settled(wanted: Search, progress: Progress | None = None) -> Search:
    """The same search with the size and channels of its images known."""
    base = wanted.base
    return replace(wanted, base=base.replace(data=settled(base.data.absolute(), progress)))


def dry_run(wanted: Search) -> SearchPlan:
    """What a search would do; nothing is started."""
    wanted = _settled(wanted)
    planned = plan(wanted)
    objective.check(wanted)
    return planned


def status(folder: Path) -> Ended:
    """What a search folder holds now, whether somebody works at it or not."""
    source = folder / SOURCE
    if not source.exists():
        raise UsageError(f"{folder} holds no search: give the folder of a udl search")
    wanted = asked.load(source, {"run.folder": str(folder.absolute())})
    return ending.seen(wanted, plan(wanted), Journal(folder / "trials.jsonl"))
