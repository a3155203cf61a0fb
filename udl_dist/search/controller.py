"""Decides what a search does next, without Ray, threads or a clock.

The tuner asks for the next task and reports validations, ends and deaths in any order.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udl_dist.runs.run_folder import RunFolder
from udl_dist.search.config import Search
from udl_dist.search.objective import Objective
from udl_dist.search.planning import SearchPlan
from udl_dist.search.samplers import make_sampler
from udl_dist.search.scheduler import Decision, Scheduler, StopRule, stop_rule, write_decision
from udl_dist.search.trial import (
    TrialOutcome,
    TrialTask,
    experiment_of,
    folder_of,
    held_out,
    in_steps,
)
from udl_dist.search.trial_log import TrialLog, TrialResult

DIED = "its process died without an error (killed, or out of memory?)"


# Trials and the winner's final runs share this queue, so deaths and stops mean the same in both.
# All methods run in the one thread of Tune's searcher; only `stop` comes from the driver's main
# thread, which is why it does no more than set a flag and touch files.
class Controller:
    """Tasks by number, which wait, run, and resume in another process if theirs died."""

    def __init__(self, search: Search, waiting: Iterable[int]) -> None:
        self.search = search
        self.stopping = False
        # By number; what a value is belongs to the subclass.
        self.running: dict[int, Any] = {}
        self._waiting = list(waiting)
        # Of this start only: a resumed search gives a trial all its restarts again.
        self._deaths: Counter[int] = Counter()

    @property
    def over(self) -> bool:
        """Whether nothing more will be started."""
        return not self._waiting or self.stopping

    def folder(self, number: int) -> Path:
        """The run folder of a task."""
        raise NotImplementedError

    def next(self) -> TrialTask | None:
        """The task to start now; None if there is none yet, or none at all (`over`)."""
        raise NotImplementedError

    def arrived(self, number: int, images: int, metrics: Mapping[str, float]) -> None:
        """A task was validated after `images`."""
        raise NotImplementedError

    def ended(self, number: int, outcome: TrialOutcome) -> None:
        """A task ended."""
        raise NotImplementedError

    def died(self, number: int) -> None:
        """The process of a task is gone: the task waits again, or fails after too many deaths."""
        self._deaths[number] += 1
        # A death is no result, since the machine may have failed: the trial resumes from its
        # checkpoint. Only one that dies again and again (out of memory, for instance) is logged.
        if self._deaths[number] > self.search.base.run.max_failures:
            self.ended(number, TrialOutcome("failed", why=DIED))
        else:
            self._wait_again(number)

    def stop(self) -> None:
        """Start nothing more; running tasks write a checkpoint and end.

        To be called until they have: a task that is only starting misses the first call.
        """
        self.stopping = True
        # A copy: the searcher's thread may end a trial meanwhile.
        for number in list(self.running):
            RunFolder(self.folder(number)).ask_stop()

    def _wait_again(self, number: int) -> None:
        self.running.pop(number, None)
        # Smallest number first: trials with greater numbers may wait at a rung for this one.
        self._waiting = sorted([*self._waiting, number])


@dataclass
class Running:
    """A trial in training; `rungs` in its own steps, `reached` as [images, metric]."""

    values: dict[str, Any]
    seed: int
    rungs: tuple[int, ...]
    reached: list[list[float]]
    images: int = 0


class TrialController(Controller):
    """Runs each trial to its end or to a rung where it stops; trials start in their order."""

    def __init__(
        self, search: Search, log: TrialLog, planned: SearchPlan, stops: StopRule | None = None
    ) -> None:
        super().__init__(search, (n for n in range(planned.trials) if n not in log.results))
        # Trials without a line in the log have not ended, whatever their folders hold.
        self.log, self.planned = log, planned
        self._sampler, self._objective = make_sampler(search), Objective(search)
        self._scheduler = Scheduler(len(planned.rungs), stops or stop_rule(search.settings))
        # Results of an earlier start: decisions are made again from them.
        for trial, result in sorted(log.results.items()):
            for rung, (_, metric) in enumerate(result.rungs):
                # By the planned rung: a trial's own step differs with its batch size.
                self._scheduler.arrive(trial, rung, self._objective.loss([metric]))
            self._scheduler.end(trial)

    def folder(self, number: int) -> Path:
        return folder_of(self.search, number)

    def next(self) -> TrialTask | None:
        if self.over:
            return None
        # Only looked at: the trial stays first in the queue while its setting cannot be drawn yet.
        number, rungs = self._waiting[0], self.planned.rungs
        # Neighbouring numbers are the seeds of one setting.
        setting = number // self.search.settings.seeds
        earlier = self._earlier(setting)
        if earlier is None:  # optuna: wait for a result that this setting depends on
            return None
        values = self._sampler.values(setting, earlier)
        made = experiment_of(self.search, number, values, self.planned.budget, rungs)
        # The batch size may be an axis: each trial reaches a rung at the end of a step of its own.
        own_rungs = tuple(in_steps(images, made.train.batch_size) for images in rungs)
        self._waiting.pop(0)
        self.running[number] = Running(values, made.train.seed, own_rungs, [])
        return TrialTask(number, made, own_rungs).saved()

    def arrived(self, number: int, images: int, metrics: Mapping[str, float]) -> None:
        trial = self.running[number]
        trial.images = max(trial.images, images)
        # Other validations (the last one, for instance) need no decision.
        if images in trial.rungs:
            rung = trial.rungs.index(images)
            # Rungs rank by one objective; several are refused unless search.scheduler is none.
            value = metrics[self._objective.names[0]]
            if len(trial.reached) == rung:  # a resumed trial reaches rungs again
                trial.reached.append([self.planned.rungs[rung], value])
            self._pass_on(self._scheduler.arrive(number, rung, self._objective.loss([value])))

    def ended(self, number: int, outcome: TrialOutcome) -> None:
        """Log the result of a trial, unless it was only paused."""
        # By a signal: no line in the log, so the same command resumes it from its checkpoint.
        if outcome.state == "paused":
            self._wait_again(number)
            return
        trial = self.running.pop(number)
        values = self._objective.of(outcome.figures or {}, trial.values)
        # A diverged trial must not win, nor be an objective of the sampler.
        state, why = outcome.state, outcome.why
        if state != "failed" and not all(map(math.isfinite, values)):
            state, why = "failed", f"{' and '.join(self._objective.names)} is not a finite number"
        result = TrialResult(
            trial=number,
            state=state,  # type: ignore[arg-type]
            images=outcome.images or trial.images,
            metric=self._objective.as_metric(values) if state != "failed" else None,
            settings=trial.values,
            seed=trial.seed,
            rungs=trial.reached,
            figures=held_out(outcome.figures or {}),
            seconds=round(outcome.seconds, 3),
            waited_seconds=round(outcome.waited_seconds, 4),
            why=why,
        )
        self.log.add(result)
        # Only after the log: a decision must follow from results that a resumed search has too.
        self._pass_on(self._scheduler.end(number))
        # Last: a kill in between costs disk space, not a result.
        self._drop_checkpoints(number)

    def _pass_on(self, decisions: list[Decision]) -> None:
        for each in decisions:
            # A trial whose process has just died gets its decision when it arrives again.
            if trial := self.running.get(each.trial):
                images = trial.rungs[each.rung]
                write_decision(self.folder(each.trial), each.rung, images, each.goes_on)

    def _earlier(self, setting: int) -> dict[int, list[TrialResult]] | None:
        """The results a setting is drawn from, by setting; None if one is missing."""
        seeds, ahead = self.search.settings.seeds, self._sampler.ahead
        found: dict[int, list[TrialResult]] = {}
        # The latest settings are left out, whether they have ended or not: what is drawn must
        # not depend on how fast they were.
        for number in range(max(0, setting - ahead + 1) * seeds if ahead else 0):
            if number not in self.log.results:
                return None
            found.setdefault(number // seeds, []).append(self.log.results[number])
        return found

    def _drop_checkpoints(self, ended: int) -> None:
        """Delete the checkpoints of ended trials that are not among the best `search.keep`."""
        # A stopped trial has no full run, so it is never among the best.
        complete = [each for each in self.log.results.values() if each.state == "complete"]
        ranked = [each.trial for each in self._objective.ranked(complete)]
        # All others, not only the one that ended: it may have pushed an earlier one out.
        for number in {ended, *ranked} - set(ranked[: self.search.settings.keep]):
            shutil.rmtree(RunFolder(self.folder(number)).checkpoints, ignore_errors=True)
