"""Brackets decide as one rung after the other would, whatever comes first; by the rule of Tune's
own HyperBand.
"""

import io
import math
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.search.asked import wanted
from udl_dist.errors import UsageError
from udl_dist.search import session
from udl_dist.search.config import SearchSettings
from udl_dist.search.planning import plan
from udl_dist.search.scheduler import Halving, best_part, brackets, rungs, sizes

RUNGS, REDUCTION = 3, 2


def loss_of(trial: int, rung: int) -> float:
    return random.Random(f"{trial} {rung}").random()


def rung_by_rung(trials: int, dies: dict[int, int]) -> dict[tuple[int, int], bool]:
    """What is decided if all trials run to a rung before any runs on; `dies`: before which rung."""
    found: dict[tuple[int, int], bool] = {}
    left = set(range(trials))
    for rung in range(RUNGS):
        ranked = sorted(
            (each for each in left if dies.get(each, RUNGS) > rung),
            key=lambda each: loss_of(each, rung),
        )
        left = set(ranked[: math.ceil(len(ranked) / REDUCTION)])
        found |= {(each, rung): each in left for each in ranked}
    return found


@given(
    st.integers(0, 10**6),
    st.integers(1, 20),
    st.dictionaries(st.integers(0, 19), st.integers(0, 2)),
)
def test_no_order_changes_a_decision_and_every_trial_is_decided(
    seed: int, trials: int, dies: dict[int, int]
) -> None:
    chance, made = random.Random(seed), Halving(RUNGS, (trials,), REDUCTION, 1)
    ready, at = list(range(trials)), dict.fromkeys(range(trials), 0)
    while ready:
        trial = ready.pop(chance.randrange(len(ready)))
        if at[trial] == dies.get(trial, RUNGS):
            decisions = made.end(trial)
        else:
            decisions = made.arrive(trial, at[trial], loss_of(trial, at[trial]))
        for each in decisions:
            at[each.trial] = each.rung + 1
            if each.goes_on and at[each.trial] < RUNGS:
                ready.append(each.trial)
    assert made.decided == rung_by_rung(trials, dies)


def test_the_best_part_goes_on_ties_by_number_and_nan_never() -> None:
    assert best_part({0: 3.0, 1: 1.0, 2: 2.0, 3: 5.0, 4: 4.0}, 2) == {0, 1, 2}
    assert best_part({0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}, 4) == {0}
    assert best_part({0: math.nan, 1: math.inf, 2: 7.0, 3: math.nan}, 2) == {1, 2}
    assert best_part({0: math.nan, 1: math.nan}, 2) == set()
    # Two seeds of each setting: means of 2, 3 and 1.5, of which the last has lost a seed.
    assert best_part({0: 1.0, 1: 3.0, 2: 3.0, 3: 3.0, 4: 1.5}, 3, seeds=2) == {0, 1}


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=30, unique=True), st.integers(2, 5))
def test_the_best_part_is_that_of_tunes_hyperband(losses: list[float], reduction: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.tune.schedulers import hyperband
    bracket = hyperband._Bracket("at", len(losses), 1, reduction**2, reduction, 1)
    for number, loss in enumerate(losses):
        trial = type("Trial", (), {"number": number})()
        bracket.add_trial(trial)
        bracket.update_trial_stats(trial, {"at": 1, "loss": loss})
    good, _ = bracket.successive_halving("loss", -1.0)
    assert best_part(dict(enumerate(losses)), reduction) == {trial.number for trial in good}


def test_trials_of_another_bracket_are_not_waited_for() -> None:
    made = Halving(1, (2, 2), 2, 1)
    assert made.arrive(2, 0, 0.1) == []
    assert [(each.trial, each.goes_on) for each in made.arrive(3, 0, 0.2)] == [
        (2, True),
        (3, False),
    ]
    assert made.arrive(0, 0, 9.0) == []
    assert [(each.trial, each.goes_on) for each in made.end(1)] == [(0, True)]
    assert made.arrive(0, 0, 1.0)[0].goes_on, "a repeated result changes nothing"


def test_the_first_rung_is_an_eighth_of_the_budget() -> None:
    settings = SearchSettings(reduction=4)
    assert rungs(settings, 64_000) == (8_000, 32_000)
    assert rungs(settings, 64_000, (40_000,)) == (8_000,), "no two in one step"
    assert rungs(SearchSettings(least_images=8_000, reduction=2), 64_000) == (8_000, 16_000, 32_000)
    assert rungs(settings, 10, (12,)) == (), "no rung below a step"


def test_sizes_are_rounded_up_in_whole_settings() -> None:
    assert sizes(24, 2, 4) == [24, 6, 2]
    assert sizes(10, 3, 3) == [10, 4, 2, 1]
    assert sizes(10, 2, 3, seeds=2) == [10, 4, 2]


@pytest.mark.parametrize(
    ("plain", "had", "message"),
    [
        ({"brackets": (4, 4)}, (), r"brackets = \[4, 4\] has 8 trials, but the search has 6"),
        ({"brackets": (6, 0)}, (), r"brackets = \[6, 0\] has a bracket without a trial"),
        ({"brackets": (5, 1), "seeds": 2}, (), "splits the search.seeds = 2 of a setting"),
        ({"brackets": (3, 3)}, (6,), r"are compared in search.brackets = \[6\]: search.trials may"),
        ({}, (8,), r"are compared in search.brackets = \[8\]: search.trials may grow"),
    ],
)
def test_brackets_that_trials_do_not_fill_are_refused(
    plain: dict[str, Any], had: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        brackets(SearchSettings(**plain), 6, had)


def test_trials_asked_for_later_are_a_bracket_of_their_own(source: Path, tmp_path: Path) -> None:
    assert brackets(SearchSettings(), 6) == (6,)
    assert brackets(SearchSettings(), 10, (6,)) == (6, 4)
    planned = plan(wanted(source, tmp_path, trials=10), (6,))
    assert (planned.brackets, planned.rungs) == ((6, 4), (24, 72, 216))
    # Towards the rungs 10, 4, 2, 2 trials: 6 and 4, 2 and 2, 1 and 1, 1 and 1.
    assert planned.expected_images == 10 * 24 + 4 * 48 + 2 * 144 + 2 * 24


@pytest.mark.parametrize("scheduler", ["halving", "asha", "median"])
def test_rungs_below_a_step_and_none_below_the_budget_are_said(
    scheduler: str, source: Path, tmp_path: Path
) -> None:
    """Steps have 12 images."""
    small = plan(wanted(source, tmp_path, least_images=5, scheduler=scheduler)).lines()
    assert any(
        "5 images are less than one step of 12: trials are compared" in each for each in small
    )
    assert any("decided at 12, " in each for each in small)
    plain: dict[str, Any] = {"budget_images": 12, "least_images": 0, "scheduler": scheduler}
    none = plan(wanted(source, tmp_path, **plain)).lines()
    assert any("none lies between a step of 12 images and the budget" in each for each in none)
    assert not any(each.startswith("rungs ") for each in plan(wanted(source, tmp_path)).lines())


def test_another_scheduler_is_refused_in_the_folder_of_a_search(
    source: Path, tmp_path: Path
) -> None:
    search = wanted(source, tmp_path)
    (tmp_path / "search.toml").write_text(search.to_toml())
    with pytest.raises(UsageError, match="search.scheduler was 'halving', now 'asha'"):
        session.search(search.replace(scheduler="asha"), io.StringIO())
