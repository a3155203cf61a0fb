"""Decisions as of one trial after the other, whatever order the results come in; rules equal to
Tune's.
"""

import math
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.search.asked import wanted
from tests.search.simulated import logged, run
from udl_dist.runs.run_folder import RunFolder
from udl_dist.search import trial_log
from udl_dist.search.config import SearchSettings
from udl_dist.search.scheduler import Scheduler, rungs, stop_rule
from udl_dist.search.trial_log import Gate, read_decisions, write_decision

RUNGS = 3


def outside_best_half(own: Sequence[float], earlier: Sequence[Sequence[float]]) -> bool:
    before = sorted(losses[-1] for losses in earlier)
    return bool(before) and own[-1] > before[len(before) // 2]


def loss_of(trial: int, rung: int, seed: int) -> float:
    return random.Random(f"{seed} {trial} {rung}").random()


def one_after_the_other(
    trials: int, seed: int, dies: dict[int, int]
) -> dict[tuple[int, int], bool]:
    """What is decided if trials run one by one; `dies`: at which rung a trial fails."""
    made = Scheduler(RUNGS, outside_best_half)
    for trial in range(trials):
        for rung in range(dies.get(trial, RUNGS)):
            (decision,) = made.arrive(trial, rung, loss_of(trial, rung, seed))
            if not decision.goes_on:
                break
        made.end(trial)
    return made.decided


def at_random(
    trials: int, seed: int, dies: dict[int, int], slots: int
) -> dict[tuple[int, int], bool]:
    """The same with this many trials at once, that move in any order."""
    chance, made = random.Random(seed), Scheduler(RUNGS, outside_best_half)
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
        if at[trial] == dies.get(trial, RUNGS):
            del at[trial]
            decisions = made.end(trial)
        else:
            waits.add(trial)
            decisions = made.arrive(trial, at[trial], loss_of(trial, at[trial], seed))
        for each in decisions:
            if each.trial in at:
                waits.discard(each.trial)
                at[each.trial] += 1
                if not each.goes_on:
                    del at[each.trial]
                    made.end(each.trial)
    return made.decided


@given(
    st.integers(0, 10**6),
    st.integers(1, 20),
    st.integers(1, 6),
    st.dictionaries(st.integers(0, 19), st.integers(0, 2)),
)
def test_no_order_changes_a_decision_and_no_trial_waits_for_ever(
    seed: int, trials: int, slots: int, dies: dict[int, int]
) -> None:
    assert at_random(trials, seed, dies, slots) == one_after_the_other(trials, seed, dies)


def test_an_early_result_waits_for_the_trials_before_it_unless_they_fail() -> None:
    made = Scheduler(RUNGS, outside_best_half)
    assert made.arrive(1, 0, 0.9) == []
    first, second = made.arrive(0, 0, 0.5)
    assert (first.trial, first.goes_on, second.trial, second.goes_on) == (0, True, 1, False)
    assert made.arrive(3, 0, 0.9) == []
    assert [each.trial for each in made.end(2)] == [3]


def test_a_repeated_result_is_ignored() -> None:
    made = Scheduler(RUNGS, outside_best_half)
    assert made.arrive(0, 0, 0.5) == made.arrive(0, 0, 0.7)
    assert not made.arrive(1, 0, 0.6)[0].goes_on


def test_rungs_are_parts_of_the_budget_or_multiples_of_the_first() -> None:
    asha = SearchSettings(scheduler="asha")
    assert rungs(asha, 6400) == (100, 400, 1600)
    by_two = SearchSettings(scheduler="asha", least_images=500, reduction=2)
    assert rungs(by_two, 2700) == (500, 1000, 2000)
    assert rungs(SearchSettings(scheduler="median"), 1000) == tuple(range(100, 1000, 100))
    assert rungs(SearchSettings(scheduler="none"), 1000) == ()


def test_no_two_rungs_lie_in_one_step_and_none_in_the_last(source: Path, tmp_path: Path) -> None:
    asha = SearchSettings(scheduler="asha")
    assert rungs(asha, 500) == (7, 31, 125)
    assert rungs(asha, 500, (64,)) == (7, 125)
    assert rungs(SearchSettings(scheduler="median"), 500, (64, 200)) == (50, 300)
    assert rungs(asha, 500, (500,)) == ()
    run(wanted(source, tmp_path, budget_images=36, least_images=0, trials=3), 0, 2)  # three steps
    assert {line[0] for line in logged(tmp_path).values()} == {"complete", "stopped"}


def tunes(settings: SearchSettings, first: int, budget: int) -> Any:
    """Ray Tune's own scheduler of that name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule
    if settings.scheduler == "median":
        return MedianStoppingRule(
            "images", "loss", "min", grace_period=first, min_samples_required=3
        )
    return AsyncHyperBandScheduler(
        "images",
        "loss",
        "min",
        max_t=budget,
        grace_period=first,
        reduction_factor=settings.reduction,
    )


# Few values, so that ties are common; diverged trials too.
LOSSES = st.one_of(
    st.sampled_from([0.1, 0.2, 0.3, 0.7, -1.0, math.inf, math.nan]), st.floats(-5, 5)
)


@pytest.mark.parametrize("name", ["asha", "median"])
@settings(max_examples=100)
@given(
    data=st.lists(st.lists(LOSSES, min_size=9, max_size=9), min_size=5, max_size=25),
    reduction=st.integers(2, 5),
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Tune's percentiles of infinite losses
def test_each_decision_is_the_one_of_tunes_own_scheduler(
    name: Any, data: list[list[float]], reduction: int
) -> None:
    asked = SearchSettings(scheduler=name, reduction=reduction)
    places = rungs(asked, 2700)
    ours, theirs = Scheduler(len(places), stop_rule(asked)), tunes(asked, places[0], 2700)
    nothing_runs = SimpleNamespace(get_live_trials=list)
    for number, losses in enumerate(data):
        trial = type("Trial", (), {"trial_id": str(number)})()
        theirs.on_trial_add(nothing_runs, trial)
        for rung, images in enumerate(places):
            (decision,) = ours.arrive(number, rung, losses[rung])
            said = theirs.on_trial_result(
                nothing_runs, trial, {"images": images, "loss": losses[rung]}
            )
            assert decision.goes_on == (said == "CONTINUE")
            if not decision.goes_on:
                break
        ours.end(number)


def test_a_gate_opens_or_not_as_was_decided_at_all_rungs_passed(tmp_path: Path) -> None:
    gate = Gate(str(tmp_path), (12, 36))
    assert gate(6) is True, "no rung is passed"
    write_decision(tmp_path, 0, 12, True)
    assert gate(12) is True
    write_decision(tmp_path, 1, 36, False)
    write_decision(tmp_path, 1, 36, True)
    assert read_decisions(tmp_path) == [True, False], "a decision stands"
    assert (gate(24), gate(36), gate(99)) == (True, False, False)
    with (tmp_path / trial_log.DECISIONS).open("a") as file:
        file.write('{"images": 108, "goes')
    assert read_decisions(tmp_path) == [True, False], "a torn line is not read"


def test_a_gate_says_not_yet_and_no_once_a_stop_is_requested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_log, "PATIENCE_SECONDS", 0.02)
    gate = Gate(str(tmp_path), (12,))
    assert gate(12) is None
    RunFolder(tmp_path).ask_stop()
    assert gate(12) is False
