"""What is to be done next in a search, and what follows from what came: pure of Ray, of threads and
of clocks.

Whoever runs the trials asks `next`, and tells `arrived`, `ended` and `died`, in whatever order
things happen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from udl_dist.search import gate, trial
from udl_dist.search.config import Search
from udl_dist.search.objective import Objective
from udl_dist.search.samplers import Sampler
from udl_dist.search.scheduler import Board, Decision, Rule, rungs
from udl_dist.search.storing import drop_checkpoints
from udl_dist.search.trial import Outcome, Turn, folder_of, in_steps
from udl_dist.search.trial_log import Journal, Line

LOST = "its process died without a word (killed, or out of memory?)"


@dataclass
class Running:
    """A trial at work: its settings, and the images of the last rung it reached."""

    values: dict[str, Any]
    seed: int
    rungs: tuple[int, ...]
    images: int = 0


class Conductor:
    """Runs each trial to its end or to a rung where it is stopped; trials start in their order."""

    def __init__(
        self,
        search: Search,
        journal: Journal,
        sampler: Sampler,
        rule: Rule,
        trials: int,
        budget: int,
    ) -> None:
        self.search, self.journal, self.budget, self.trials = search, journal, budget, trials
        self.places = rungs(search.settings, budget, search.batches)
        self.running: dict[int, Running] = {}
        self.stopping = False
        self._sampler = sampler
        self._objective = Objective(search)
        self._board = Board(self.places, rule)
        self._deaths: dict[int, int] = {}
        self._waiting = [number for number in range(trials) if number not in journal.lines]
        self._rungs: dict[int, list[list[float]]] = {}
        for line in sorted(journal.lines.values(), key=lambda line: line.trial):
            for rung, (_, metric) in enumerate(line.rungs):
                self._board.arrive(line.trial, rung, self._objective.loss([metric]))
            self._board.end(line.trial)

    @property
    def over(self) -> bool:
        """Whether nothing more will be started."""
        return not self._waiting or self.stopping

    def next(self) -> Turn | None:
        """What to start now; None if there is nothing, for now or at all (`over`)."""
        if self.over:
            return None
        number = self._waiting[0]
        which, copy = divmod(number, self.search.settings.seeds)
        if self._sampler.ahead and any(
            earlier not in self.journal.lines for earlier in self._needed(which)
        ):
            return None
        values = self._sampler.values(which, self._outcomes(which))
        seed = self.search.base.train.seed + copy
        made = trial.experiment_of(self.search, number, values, seed, self.budget, self.places)
        own = tuple(in_steps(images, made.train.batch_size) for images in self.places)
        self._waiting.pop(0)
        self.running[number] = Running(values, seed, own)
        folder_of(self.search, number).mkdir(parents=True, exist_ok=True)
        self._rungs[number] = []
        return Turn(number, made.to_dict(), own)

    def arrived(self, number: int, images: int, figures: Mapping[str, float]) -> None:
        """A trial was validated after so many images."""
        at = self.running[number]
        at.images = max(at.images, images)
        if images in at.rungs:
            rung = at.rungs.index(images)
            value = figures[self._objective.names[0]]
            if len(self._rungs[number]) == rung:
                self._rungs[number].append([self.places[rung], value])
            self._tell(self._board.arrive(number, rung, self._objective.loss([value])))

    def ended(self, number: int, outcome: Outcome) -> None:
        """A trial ended: keep it, unless it is only to be gone on with."""
        at = self.running.pop(number)
        if outcome.state == "paused":
            self._again(number)
            return
        metric = self._objective.of(outcome.figures or {}, at.values)
        state, why = outcome.state, outcome.why
        if state != "failed" and not all(math.isfinite(value) for value in metric):
            state, why = "failed", f"{self._objective.in_words} is no number"
        self._keep(
            Line(
                trial=number,
                state=state,  # type: ignore[arg-type]
                images=outcome.images or at.images,
                metric=self._objective.told(metric) if state != "failed" else None,
                settings=at.values,
                seed=at.seed,
                rungs=self._rungs[number],
                figures=held_out(outcome.figures),
                seconds=round(outcome.seconds, 3),
                why=why,
                waited_seconds=round(outcome.waited_seconds, 4),
            )
        )

    def died(self, number: int) -> None:
        """The process of a trial is gone: it goes on in another one, or, after too many deaths, it
        has failed.
        """
        self._deaths[number] = self._deaths.get(number, 0) + 1
        if self._deaths[number] > self.search.base.run.max_failures:
            self.ended(number, Outcome("failed", why=LOST))
        else:
            self.running.pop(number)
            self._again(number)

    def stop(self) -> None:
        """Start nothing more, and have what runs write a checkpoint and end; to be called again
        until it has.
        """
        from udl_dist.runs.run_folder import RunFolder

        self.stopping = True
        for number in list(self.running):
            RunFolder(folder_of(self.search, number)).ask_stop()

    def _again(self, number: int) -> None:
        self._waiting = sorted([*self._waiting, number])

    def _keep(self, line: Line) -> None:
        self.journal.add(line)
        self._tell(self._board.end(line.trial))
        drop_checkpoints(self.search, self.journal, line.trial)

    def _tell(self, decisions: list[Decision]) -> None:
        for each in decisions:
            if at := self.running.get(each.trial):
                gate.decide(
                    folder_of(self.search, each.trial), each.rung, at.rungs[each.rung], each.goes_on
                )

    def _needed(self, which: int) -> range:
        """The trials whose outcomes a setting is drawn from."""
        return range(max(0, which - self._sampler.ahead + 1) * self.search.settings.seeds)

    def _outcomes(self, which: int) -> dict[int, list[Line]]:
        """The lines of the settings that this one may be drawn from."""
        found: dict[int, list[Line]] = {}
        for number in self._needed(which) if self._sampler.ahead else ():
            found.setdefault(number // self.search.settings.seeds, []).append(
                self.journal.lines[number]
            )
        return found


def held_out(figures: Mapping[str, float] | None) -> dict[str, float]:
    """The figures of a validation among all of a run."""
    return {name: value for name, value in (figures or {}).items() if name.startswith("val/")}
