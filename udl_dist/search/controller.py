"""What a search does next, and what follows from what came: no Ray, no thread and no clock.

The tuner asks for the next task and reports validations, ends and deaths in any order.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
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

DIED = "its process died without a word (killed, or out of memory?)"


@dataclass
class Running:
    """A trial that is being trained; `rungs` in its own steps, `reached` as [images, metric]."""

    values: dict[str, Any]
    seed: int
    rungs: tuple[int, ...]
    reached: list[list[float]]
    images: int = 0


class TrialController:
    """Runs each trial to its end or to a rung where it stops; trials start in their order."""

    def __init__(
        self, search: Search, log: TrialLog, planned: SearchPlan, stops: StopRule | None = None
    ) -> None:
        self.search, self.log, self.planned = search, log, planned
        self.running: dict[int, Running] = {}
        self.stopping = False
        self._sampler, self._objective = make_sampler(search), Objective(search)
        self._scheduler = Scheduler(len(planned.rungs), stops or stop_rule(search.settings))
        self._deaths: Counter[int] = Counter()
        self._waiting = [number for number in range(planned.trials) if number not in log.results]
        for trial, result in sorted(log.results.items()):
            for rung, (_, metric) in enumerate(result.rungs):
                self._scheduler.arrive(trial, rung, self._objective.loss([metric]))
            self._scheduler.end(trial)

    @property
    def over(self) -> bool:
        """Whether nothing more will be started."""
        return not self._waiting or self.stopping

    def next(self) -> TrialTask | None:
        """What to start now; None if there is nothing, for now or at all (`over`)."""
        if self.over:
            return None
        number, rungs = self._waiting[0], self.planned.rungs
        setting = number // self.search.settings.seeds
        earlier = self._earlier(setting)
        if earlier is None:
            return None
        values = self._sampler.values(setting, earlier)
        made = experiment_of(self.search, number, values, self.planned.budget, rungs)
        own_rungs = tuple(in_steps(images, made.train.batch_size) for images in rungs)
        self._waiting.pop(0)
        self.running[number] = Running(values, made.train.seed, own_rungs, [])
        return TrialTask(number, made, own_rungs).saved()

    def arrived(self, number: int, images: int, metrics: Mapping[str, float]) -> None:
        """A trial was validated."""
        trial = self.running[number]
        trial.images = max(trial.images, images)
        if images in trial.rungs:
            rung = trial.rungs.index(images)
            value = metrics[self._objective.names[0]]
            if len(trial.reached) == rung:
                trial.reached.append([self.planned.rungs[rung], value])
            self._pass_on(self._scheduler.arrive(number, rung, self._objective.loss([value])))

    def ended(self, number: int, outcome: TrialOutcome) -> None:
        """A trial ended: log its result, unless it was only paused."""
        trial = self.running.pop(number)
        if outcome.state == "paused":
            self._wait_again(number)
            return
        values = self._objective.of(outcome.figures or {}, trial.values)
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
        self._pass_on(self._scheduler.end(number))
        self._drop_checkpoints(number)

    def died(self, number: int) -> None:
        """The process of a trial is gone: the trial resumes in another one, or fails at last."""
        self._deaths[number] += 1
        if self._deaths[number] > self.search.base.run.max_failures:
            self.ended(number, TrialOutcome("failed", why=DIED))
        else:
            self.running.pop(number)
            self._wait_again(number)

    def stop(self) -> None:
        """Start nothing more, and have running trials write a checkpoint and end.

        To be called until they have: a trial that is only starting does not see the first call.
        """
        self.stopping = True
        for number in list(self.running):
            RunFolder(folder_of(self.search, number)).ask_stop()

    def _wait_again(self, number: int) -> None:
        self._waiting = sorted([*self._waiting, number])

    def _pass_on(self, decisions: list[Decision]) -> None:
        for each in decisions:
            if trial := self.running.get(each.trial):
                folder = folder_of(self.search, each.trial)
                write_decision(folder, each.rung, trial.rungs[each.rung], each.goes_on)

    def _earlier(self, setting: int) -> dict[int, list[TrialResult]] | None:
        """The results a setting is drawn from, by setting; None if one is missing."""
        seeds, ahead = self.search.settings.seeds, self._sampler.ahead
        found: dict[int, list[TrialResult]] = {}
        for number in range(max(0, setting - ahead + 1) * seeds if ahead else 0):
            if number not in self.log.results:
                return None
            found.setdefault(number // seeds, []).append(self.log.results[number])
        return found

    def _drop_checkpoints(self, ended: int) -> None:
        """Delete the checkpoints of ended trials that are not among the best `search.keep`."""
        complete = [each for each in self.log.results.values() if each.state == "complete"]
        ranked = [each.trial for each in self._objective.ranked(complete)]
        for number in {ended, *ranked} - set(ranked[: self.search.settings.keep]):
            folder = RunFolder(folder_of(self.search, number)).checkpoints
            shutil.rmtree(folder, ignore_errors=True)
