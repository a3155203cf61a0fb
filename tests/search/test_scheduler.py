"""Decisions as of one trial after the other, whatever order the results come in; the rules are
Tune's own.
"""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.search.asked import wanted
from tests.search.simulated import journal_of, run
from udl_dist.search.config import SearchSettings
from udl_dist.search.scheduler import Board, Rule, rungs

PLACES = (10, 30, 90)


class Half:
    """Stops whoever is worse than half of those before it."""

    def __init__(self) -> None:
        self.seen: dict[int, list[float]] = {}
        self.calls: list[tuple[int, int]] = []

    def stops(self, trial: int, images: int, metric: float) -> bool:
        before = sorted(self.seen.setdefault(images, []))
        self.seen[images].append(metric)
        self.calls.append((trial, images))
        return bool(before) and metric > before[len(before) // 2]


def metric_of(trial: int, rung: int, seed: int) -> float:
    return random.Random(f"{seed} {trial} {rung}").random()


def one_after_the_other(
    rule: Rule, trials: int, seed: int, dies: dict[int, int]
) -> dict[tuple[int, int], bool]:
    """What sequential running decides."""
    board = Board(PLACES, rule)
    for trial in range(trials):
        for rung in range(len(PLACES)):
            if dies.get(trial) == rung:
                break
            (decision,) = board.arrive(trial, rung, metric_of(trial, rung, seed))
            if not decision.goes_on:
                break
        board.end(trial)
    return board.decided


def at_random(
    rule: Rule, trials: int, seed: int, dies: dict[int, int], slots: int
) -> dict[tuple[int, int], bool]:
    """The same with so many trials at once, that move in any order."""
    chance, board = random.Random(seed), Board(PLACES, rule)
    at: dict[int, int] = {}
    started, waits = 0, set[int]()
    while started < trials or at:
        if started < trials and len(at) < slots:
            at[started] = 0
            started += 1
            continue
        moving = [trial for trial in at if trial not in waits]
        assert moving, "all wait for each other"
        trial = chance.choice(moving)
        if at[trial] == len(PLACES) or dies.get(trial) == at[trial]:
            del at[trial]
            decisions = board.end(trial)
        else:
            waits.add(trial)
            decisions = board.arrive(trial, at[trial], metric_of(trial, at[trial], seed))
        for each in decisions:
            if each.trial in at:
                waits.discard(each.trial)
                at[each.trial] += 1
                if not each.goes_on:
                    del at[each.trial]
                    board.end(each.trial)
    return board.decided


@given(
    st.integers(0, 10**6),
    st.integers(1, 20),
    st.integers(1, 6),
    st.dictionaries(st.integers(0, 19), st.integers(0, 2)),
)
def test_no_order_changes_a_decision_and_nobody_waits_for_ever(
    seed: int, trials: int, slots: int, dies: dict[int, int]
) -> None:
    assert at_random(Half(), trials, seed, dies, slots) == one_after_the_other(
        Half(), trials, seed, dies
    )


def test_a_result_that_comes_early_waits_for_those_before_it() -> None:
    board = Board(PLACES, Half())
    assert board.arrive(1, 0, 0.9) == []
    assert board.waiting() == [1]
    first, second = board.arrive(0, 0, 0.5)
    assert (first.trial, first.goes_on, second.trial, second.goes_on) == (0, True, 1, False)


def test_a_trial_that_fails_on_its_way_is_not_waited_for() -> None:
    board = Board(PLACES, Half())
    board.arrive(1, 0, 0.9)
    assert [each.trial for each in board.end(0)] == [1]


def test_a_result_said_twice_is_told_to_the_rule_once() -> None:
    rule = Half()
    board = Board(PLACES, rule)
    assert board.arrive(0, 0, 0.5) == board.arrive(0, 0, 0.7)
    assert rule.calls == [(0, 10)]


def test_rungs_are_parts_of_the_budget_or_multiples_of_the_first() -> None:
    assert rungs(SearchSettings(), 6400) == (100, 400, 1600)
    assert rungs(SearchSettings(least_images=500, reduction=2), 2700) == (500, 1000, 2000)
    assert rungs(SearchSettings(scheduler="median"), 1000) == tuple(range(100, 1000, 100))
    assert rungs(SearchSettings(scheduler="none"), 1000) == ()


def test_no_two_rungs_lie_in_one_step_and_none_in_the_last(source: Path, tmp_path: Path) -> None:
    assert rungs(SearchSettings(), 500) == (7, 31, 125)
    assert rungs(SearchSettings(), 500, (64,)) == (7, 125)
    assert rungs(SearchSettings(scheduler="median"), 500, (64, 200)) == (50, 300)
    assert rungs(SearchSettings(), 500, (500,)) == ()
    search = wanted(source, tmp_path, budget_images=36, least_images=0, trials=3)  # three steps
    run(search, 0, 2)
    assert {line[0] for line in journal_of(tmp_path).values()} == {"complete", "stopped"}


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_what_is_decided_is_what_tunes_own_scheduler_says_of_the_same_sequence(
    scheduler: str,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

        from udl_dist.search import tuner as tuning
    settings = SearchSettings(scheduler=scheduler, reduction=3)  # type: ignore[arg-type]
    places = rungs(settings, 2700)
    ours, theirs = (
        tuning.rule(settings, places, 2700),
        (
            AsyncHyperBandScheduler(
                "images", "metric", "min", max_t=2700, grace_period=100, reduction_factor=3
            )
            if scheduler == "asha"
            else MedianStoppingRule("images", "metric", "min", grace_period=places[0])
        ),
    )
    stopped = 0
    for number in range(40):
        standin = tuning._StandIn(str(number))
        theirs.on_trial_add(tuning._StandIn(), standin)
        for images in places:
            metric = metric_of(number, images, 1)
            said = theirs.on_trial_result(
                tuning._StandIn(), standin, {"images": images, "metric": metric}
            )
            assert ours.stops(number, images, metric) == (said == TrialScheduler.STOP)
            if said == TrialScheduler.STOP:
                stopped += 1
                break
    assert 15 < stopped < 40
