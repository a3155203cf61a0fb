"""Conducts a population: each member trains to the end of a generation, all are compared, and the next one begins.

The same questions are asked of it as of the conductor of single trials. Between two generations nothing runs, so what
is decided depends on no timing; a member that dies in whatever way is out, the others go on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from udl_dist.runs import RunFolder
from udl_dist.search import population
from udl_dist.search.conductor import LOST, held_out
from udl_dist.search.journal import Journal, Line
from udl_dist.search.objective import Objective
from udl_dist.search.population import Member
from udl_dist.search.sampler import Sampler
from udl_dist.search.settings import Search
from udl_dist.search.storing import drop_checkpoints
from udl_dist.search.trial import Outcome, Turn, experiment_of, folder_of
from udl_dist.training import checkpoint

NAME = "generations.jsonl"


class Generations:
    """A population from its first generation, or from where its files say that it stands, to its last."""

    def __init__(self, search: Search, journal: Journal, sampler: Sampler, trials: int, budget: int,
                 faults: Mapping[int, str] | None = None) -> None:  # fmt: skip
        self.search, self.journal, self.budget = search, journal, budget
        self.places = population.boundaries(search, budget, search.base.train.batch_size)
        self.first = {number: sampler.values(number, {}) for number in range(trials)}
        self.generations = population.read(search.folder / NAME)
        self.running: set[int] = set()
        self.stopping = False
        self._faults, self._deaths, self._seconds = dict(faults or {}), dict[int, int](), dict[int, float]()
        self._objective = Objective(search)
        self._outcomes: dict[int, Outcome] = {}
        self._settings: dict[int, dict[str, Any]] = {}
        self._waiting: list[int] = []
        self._begin()

    @property
    def over(self) -> bool:
        return self.stopping or not (self._waiting or self.running)

    def next(self) -> Turn | None:
        if self.stopping or not self._waiting:
            return None
        number = self._waiting.pop(0)
        self.running.add(number)
        seed = self.search.base.train.seed  # one for all: weights that change places must go on as their own would
        made = experiment_of(self.search, number, self._settings[number], seed, self.budget, self.places)
        folder_of(self.search, number).mkdir(parents=True, exist_ok=True)
        return Turn(number, made.to_dict(), (), self._until, self._faults.get(number, ""))

    def arrived(self, number: int, images: int, figures: Mapping[str, float]) -> None:
        """What counts comes with the end of a turn."""

    def ended(self, number: int, outcome: Outcome) -> None:
        self.running.discard(number)
        if outcome.state == "paused":
            self._waiting = sorted([*self._waiting, number])
            return
        self._seconds[number] = self._seconds.get(number, 0.0) + outcome.seconds
        loss = self._loss(number, outcome)
        if outcome.state != "failed" and loss is None:
            outcome = replace(outcome, state="failed", why=f"{self._objective.in_words} is no number")
        self._outcomes[number] = outcome
        if outcome.state == "failed":
            self._keep(number, outcome)
        if not self._waiting and not self.running:
            self._turn_over()

    def died(self, number: int) -> None:
        self._deaths[number] = self._deaths.get(number, 0) + 1
        self.ended(number, Outcome("failed", why=LOST) if self._deaths[number] > self.search.base.run.max_failures
                   else Outcome("paused"))  # fmt: skip

    def stop(self) -> None:
        self.stopping = True
        for number in list(self.running):
            RunFolder(folder_of(self.search, number)).ask_stop()

    def schedule(self, number: int) -> list[tuple[int, dict[str, Any]]]:
        """The settings behind the weights that a member ended with."""
        return population.lineage(self.generations, self.places, self.first, number)

    def _begin(self) -> None:
        """Set out on the generation after those that are kept."""
        done = len(self.generations)
        before = {member.trial: member for member in self.generations[-1]} if done else {}
        self._settings = {number: member.settings for number, member in before.items()} or dict(self.first)
        self._outcomes = {}
        self._until = self.places[min(done, len(self.places) - 1)]
        lost = {number for number, member in before.items() if member.loss is None}
        gone = {*self.journal.lines, *lost} & {*self._settings}
        self._waiting = sorted({*self._settings} - gone) if done < len(self.places) else []

    def _turn_over(self) -> None:
        """All members are at the end of the generation: keep who ended, or who goes on with whose weights."""
        generation = len(self.generations)
        losses = {number: self._loss(number, outcome) for number, outcome in sorted(self._outcomes.items())}
        last = self._until == self.budget
        members = ([Member(number, loss, self._settings[number], number) for number, loss in losses.items()] if last
                   else population.next_members(self.search, generation, losses, self._settings))  # fmt: skip
        members = [self._take_over(member) for member in members if member.loss is not None]
        population.append(self.search.folder / NAME, generation, self._until, members)
        self.generations.append(members)
        if last:
            for member in members:
                self._keep(member.trial, self._outcomes[member.trial])
        else:
            self._begin()

    def _take_over(self, member: Member) -> Member:
        """Give a member its donor's checkpoint; done again after a kill, it comes to the same."""
        ours, theirs = (
            RunFolder(folder_of(self.search, number)).checkpoints for number in (member.trial, member.donor)
        )
        source = checkpoint.path_of(theirs, self._until)
        if member.donor != member.trial:
            checkpoint.adopt(source, ours)
        return replace(member, sha256=checkpoint.hash_of(checkpoint.path_of(ours, self._until), "networks"))

    def _loss(self, number: int, outcome: Outcome) -> float | None:
        metric = self._objective.of(outcome.figures or {}, self._settings[number])
        return self._objective.loss(metric) if outcome.state != "failed" and math.isfinite(metric[0]) else None

    def _keep(self, number: int, outcome: Outcome) -> None:
        metric = self._objective.of(outcome.figures or {}, self._settings[number])
        failed = outcome.state == "failed"
        self.journal.add(Line(
            trial=number, state="failed" if failed else "complete", images=outcome.images,
            metric=None if failed else self._objective.told(metric), settings=self._settings[number],
            seed=self.search.base.train.seed, figures=held_out(outcome.figures),
            seconds=round(self._seconds.get(number, 0.0), 3), why=outcome.why,
            more={} if failed else {"schedule": [list(piece) for piece in self.schedule(number)]},
        ))  # fmt: skip
        drop_checkpoints(self.search, self.journal, number)
