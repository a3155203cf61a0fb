"""Trials without Ray: real ones, one after the other, or made up ones that move in any order."""

from __future__ import annotations

import random
from pathlib import Path

from udl_dist.search import gate, trial
from udl_dist.search.config import Search
from udl_dist.search.controller import Conductor
from udl_dist.search.follow import Follower
from udl_dist.search.planning import make_sampler, plan
from udl_dist.search.trial import Outcome, Turn, folder_of
from udl_dist.search.trial_log import Journal
from udl_dist.search.winner import Finals


class Third:
    """Stops whoever is not in the best third of those before it."""

    def __init__(self) -> None:
        self._seen: dict[int, list[float]] = {}

    def stops(self, trial: int, images: int, metric: float) -> bool:
        before = sorted(self._seen.setdefault(images, []))
        self._seen[images].append(metric)
        return bool(before) and metric > before[len(before) // 3]


class Killed(Exception):
    """The head of the search is gone."""


def conductor(search: Search, rule: bool = False) -> Conductor:
    """Of a search by our made up rule, or by the one that was asked for."""
    planned = plan(search)
    search.folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(search.folder / "trials.jsonl")
    if rule:
        from udl_dist.search import tuner as tuning

        theirs = tuning.rule(search.settings, planned.rungs, planned.budget)
        return Conductor(
            search, journal, make_sampler(search), theirs, planned.trials, planned.budget
        )
    return Conductor(search, journal, make_sampler(search), Third(), planned.trials, planned.budget)


def trained(conducted: Conductor | Finals) -> None:
    """Really train what a conductor has, in this process, one turn after the other."""
    while turn := conducted.next():
        follower = Follower(Path(turn.experiment["run"]["folder"]) / "curves.jsonl")

        def tell(number: int = turn.trial, follower: Follower = follower) -> None:
            for images, figures in follower.fresh():
                conducted.arrived(number, images, figures)

        outcome = trial.train(turn, None, tell)
        tell()
        conducted.ended(turn.trial, outcome)
    assert conducted.over


def run(search: Search, seed: int, slots: int, kill: float = 0.0, die: float = 0.0) -> Conductor:
    """Run to the end; at each event the head is killed, or a trial's process dies, with those
    probabilities.
    """
    chance = random.Random(seed)
    while True:
        conducted = conductor(search)
        try:
            _go_on(conducted, search, chance, slots, kill, die)
            return conducted
        except Killed:
            if chance.random() < 0.3:  # in the midst of a line
                with (search.folder / "trials.jsonl").open("a") as file:
                    file.write('{"trial": 7, "sta')


def _go_on(
    conducted: Conductor, search: Search, chance: random.Random, slots: int, kill: float, die: float
) -> None:
    at: dict[int, tuple[Turn, int]] = {}
    while True:
        while len(at) < slots and (turn := conducted.next()):
            at[turn.trial] = turn, 0
        if not at:
            assert conducted.over, "nothing runs and nothing can be started"
            return
        moving = [
            number for number, (turn, passed) in at.items() if _may_move(search, turn, passed)
        ]
        assert moving, "all wait for each other"
        number = chance.choice(moving)
        if chance.random() < kill:
            raise Killed
        turn, passed = at[number]
        if chance.random() < die:
            del at[number]
            conducted.died(number)
            continue
        answers = gate.decisions(folder_of(search, number))[:passed]
        if not all(answers) or passed == len(turn.rungs):
            images = turn.rungs[passed - 1] if not all(answers) else conducted.budget
            del at[number]
            figures = {"val/mse": metric(turn, images)}
            conducted.ended(
                number, Outcome("stopped" if not all(answers) else "complete", images, figures)
            )
        else:
            conducted.arrived(
                number, turn.rungs[passed], {"val/mse": metric(turn, turn.rungs[passed])}
            )
            at[number] = turn, passed + 1


def _may_move(search: Search, turn: Turn, passed: int) -> bool:
    return len(gate.decisions(folder_of(search, turn.trial))) >= passed


def metric(turn: Turn, images: int) -> float:
    """Better with more latents and images, best at a rate of 0.01, and rough."""
    method, train = turn.experiment["method"], turn.experiment["train"]
    rough = random.Random(f"{train['learning_rate']} {train['seed']} {images}").random()
    return float(
        1 / method["latent_dim"] + abs(train["learning_rate"] - 0.01) + rough / 4 + 10 / images
    )


def journal_of(folder: Path) -> dict[int, tuple[object, ...]]:
    """What a journal says of each trial, whatever the order of its lines."""
    lines = Journal(folder / "trials.jsonl").lines
    return {
        number: (line.state, line.images, line.metric, line.settings, line.seed, line.rungs)
        for number, line in sorted(lines.items())
    }
