"""Decides which trial starts next, and which stops at a rung, without Ray, threads or a clock."""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udl_dist.runs.run_folder import RunFolder, held_out
from udl_dist.search.config import Search
from udl_dist.search.controller import Controller
from udl_dist.search.objective import Objective
from udl_dist.search.planning import SearchPlan
from udl_dist.search.samplers import Sampler
from udl_dist.search.scheduler import Decision, Halving, Scheduler, StopRule, stop_rule
from udl_dist.search.trial import (
    TrialOutcome,
    TrialTask,
    experiment_of,
    folder_of,
    in_steps,
)
from udl_dist.search.trial_log import TrialLog, TrialResult, write_decision


@dataclass
class Running:
    """A trial in training, or paused at a rung; `rungs` in its own steps, `reached` as
    [images, metric], `figures` of the last rung.
    """

    values: dict[str, Any]
    seed: int
    rungs: tuple[int, ...]
    reached: list[list[float]]
    images: int = 0
    figures: Mapping[str, float] | None = None


class TrialController(Controller):
    """Runs each trial to its end or to a rung where it stops; trials start in their order.

    By halving a trial that reaches a rung is paused until its bracket is decided there. No file
    says which are: after a kill they start again, and are paused again at once.
    """

    def __init__(
        self, search: Search, log: TrialLog, planned: SearchPlan, stops: StopRule | None = None
    ) -> None:
        super().__init__(search, (n for n in range(planned.trials) if n not in log.results))
        # Trials without a line in the log have not ended, whatever their folders hold.
        self.log, self.planned = log, planned
        self._sampler, self._objective = Sampler(search), Objective(search)
        # Trials at a rung, without a process; and the seconds of their parts.
        self.paused: dict[int, Running] = {}
        self._seconds: defaultdict[int, float] = defaultdict(float)
        self._first: dict[int, TrialResult] = {}  # what trials were at the first rung
        self._scheduler = _scheduler_of(search, planned, stops)
        # Results of an earlier start: decisions are made again from them.
        for trial, result in sorted(log.results.items()):
            for rung, (images, metric) in enumerate(result.rungs):
                # By the planned rung: a trial's own step differs with its batch size.
                self._scheduler.arrive(trial, rung, self._objective.loss([metric]))
                self._first.setdefault(trial, _at_first(trial, images, metric, result.settings))
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
        return TrialTask(number, made, own_rungs, isinstance(self._scheduler, Halving)).saved()

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
                trial.figures = metrics
            first = _at_first(number, self.planned.rungs[0], value, trial.values)
            self._first.setdefault(number, first)
            self._pass_on(self._scheduler.arrive(number, rung, self._objective.loss([value])))

    def ended(self, number: int, outcome: TrialOutcome) -> None:
        """Log the result of a trial, unless it is only paused."""
        trial = self.running.pop(number)
        self._seconds[number] += outcome.seconds
        if outcome.state == "paused":
            # True by a signal: no line in the log, so the same command resumes it.
            rung = len(trial.reached) - 1
            goes_on = self._scheduler.decided.get((number, rung)) if rung >= 0 else True
            self.paused[number] = trial
            if goes_on is not None:
                self._decided(Decision(number, rung, goes_on))
            return
        self._log(number, trial, outcome)

    def _log(self, number: int, trial: Running, outcome: TrialOutcome) -> None:
        """Log the result of a trial, and pass on what was decided by its end."""
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
            seconds=round(self._seconds[number], 3),
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
            if trial := self.running.get(each.trial) or self.paused.get(each.trial):
                images = trial.rungs[each.rung]
                write_decision(self.folder(each.trial), each.rung, images, each.goes_on)
            if each.trial in self.paused:
                self._decided(each)

    def _decided(self, decision: Decision) -> None:
        """Let a paused trial wait for a process, or end it."""
        number, trial = decision.trial, self.paused.pop(decision.trial)
        if decision.goes_on:
            self._wait_again(number)
        else:
            images = trial.rungs[decision.rung]
            self._log(number, trial, TrialOutcome("stopped", images, dict(trial.figures or {})))

    def _earlier(self, setting: int) -> dict[int, list[TrialResult]] | None:
        """The results a setting is drawn from, by setting; None if one is missing."""
        seeds = self.search.settings.seeds
        found: dict[int, list[TrialResult]] = {}
        # The latest settings are left out, whether they have ended or not: what is drawn must
        # not depend on how fast they were.
        for number in range(self._sampler.needed(setting) * seeds):
            if (result := self._known(number, setting * seeds)) is None:
                return None
            found.setdefault(number // seeds, []).append(result)
        return found

    def _known(self, number: int, drawn: int) -> TrialResult | None:
        """The result of a trial that another one is drawn from; None if it is missing."""
        scheduler = self._scheduler
        # The rest of its own bracket waits for the trial to be drawn: of them the first rung.
        if isinstance(scheduler, Halving) and drawn in scheduler.bracket(number):
            return self._first.get(number) or self.log.results.get(number)
        return self.log.results.get(number)

    def _drop_checkpoints(self, ended: int) -> None:
        """Delete the checkpoints of ended trials that are not among the best `search.keep`."""
        # A stopped trial has no full run, so it is never among the best.
        complete = [each for each in self.log.results.values() if each.state == "complete"]
        ranked = [each.trial for each in self._objective.ranked(complete)]
        # All others, not only the one that ended: it may have pushed an earlier one out.
        for number in {ended, *ranked} - set(ranked[: self.search.settings.keep]):
            shutil.rmtree(RunFolder(self.folder(number)).checkpoints, ignore_errors=True)


def _at_first(trial: int, images: float, metric: float, values: dict[str, Any]) -> TrialResult:
    return TrialResult(trial, "stopped", int(images), metric, values)


def _scheduler_of(
    search: Search, planned: SearchPlan, stops: StopRule | None
) -> Scheduler | Halving:
    found, rungs = search.settings, len(planned.rungs)
    if found.scheduler == "halving":
        return Halving(rungs, planned.brackets, found.reduction, found.seeds)
    return Scheduler(rungs, stops or stop_rule(found))
