"""Trials without Ray: real ones, one after the other, or simulated ones that move in any order."""

import random
from collections.abc import Sequence
from pathlib import Path

from udl_dist.search import trial
from udl_dist.search.config import Search
from udl_dist.search.final_runs import FinalRuns
from udl_dist.search.planning import plan
from udl_dist.search.trial import TrialOutcome, TrialTask, ValidationReader, folder_of
from udl_dist.search.trial_controller import TrialController
from udl_dist.search.trial_log import LOG, TrialLog, read_decisions


def outside_best_third(own: Sequence[float], earlier: Sequence[Sequence[float]]) -> bool:
    """A stop rule for simulated trials."""
    before = sorted(losses[-1] for losses in earlier)
    return bool(before) and own[-1] > before[len(before) // 3]


class Killed(Exception):
    """The head of the search is gone."""


def controller(search: Search, simulated: bool = True) -> TrialController:
    """Of a search, with the rule for simulated trials or with its own."""
    search.folder.mkdir(parents=True, exist_ok=True)
    log = TrialLog(search.folder / LOG)
    stops = outside_best_third if simulated else None
    return TrialController(search, log, plan(search), stops)


def trained(controlled: TrialController | FinalRuns) -> None:
    """Really train what a controller has, in this process, one task after the other."""
    while task := controlled.next():
        reader = ValidationReader(task.folder)

        def report(number: int = task.trial, reader: ValidationReader = reader) -> None:
            for images, metrics in reader.new():
                controlled.arrived(number, images, metrics)

        outcome = trial.train(task, None, report)
        report()
        controlled.ended(task.trial, outcome)
    assert controlled.over


def run(search: Search, seed: int, slots: int, kill: float = 0.0, die: float = 0.0) -> None:
    """Run to the end; at each event the head is killed, or a trial's process dies, with those
    probabilities.
    """
    chance = random.Random(seed)
    while True:
        try:
            _go_on(controller(search), search, chance, slots, kill, die)
            return
        except Killed:
            if chance.random() < 0.3:  # in the middle of a line
                with (search.folder / LOG).open("a") as file:
                    file.write('{"trial": 7, "sta')


def _go_on(
    controlled: TrialController,
    search: Search,
    chance: random.Random,
    slots: int,
    kill: float,
    die: float,
) -> None:
    at: dict[int, tuple[TrialTask, int]] = {}
    while True:
        while len(at) < slots and (task := controlled.next()):
            at[task.trial] = task, 0
        if not at:
            assert controlled.over, "nothing runs and nothing can be started"
            return
        answers = {number: read_decisions(folder_of(search, number)) for number in at}
        moving = [
            number
            for number, (task, passed) in at.items()
            if task.parks or len(answers[number]) >= passed
        ]
        assert moving, "all wait for each other"
        number = chance.choice(moving)
        if chance.random() < kill:
            raise Killed
        task, passed = at[number]
        stopped = not all(answers[number][:passed])
        if chance.random() < die:
            del at[number]
            controlled.died(number)
        elif passed > len(answers[number]):
            del at[number]
            controlled.ended(number, TrialOutcome("paused", task.rungs[passed - 1]))
        elif stopped or passed == len(task.rungs):
            images = task.rungs[passed - 1] if stopped else controlled.planned.budget
            del at[number]
            figures = {"val/mse": metric(task, images)}
            controlled.ended(
                number, TrialOutcome("stopped" if stopped else "complete", images, figures)
            )
        else:
            controlled.arrived(
                number, task.rungs[passed], {"val/mse": metric(task, task.rungs[passed])}
            )
            at[number] = task, passed + 1


def metric(task: TrialTask, images: int) -> float:
    """Better with more latents and images, best at a rate of 0.01, and rough."""
    train = task.experiment.train
    rough = random.Random(f"{train.learning_rate} {train.seed} {images}").random()
    best = 1 / task.experiment.method.latent_dim + abs(train.learning_rate - 0.01)
    return float(best + rough / 4 + 10 / images)


def logged(folder: Path) -> dict[int, tuple[object, ...]]:
    """The log of a search by trial, whatever the order of its lines, without times."""
    return {
        number: (line.state, line.images, line.metric, line.settings, line.seed, line.rungs)
        for number, line in sorted(TrialLog(folder / LOG).results.items())
    }
