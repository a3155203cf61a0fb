"""A search comes to the same, whatever the timing, the number of slots, the deaths and the
kills.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.search.asked import wanted
from tests.search.simulated import controller, logged, run
from udl_dist import methods
from udl_dist.errors import UsageError
from udl_dist.runs.run_folder import RunFolder
from udl_dist.search import plots
from udl_dist.search.objective import Objective, find_winner
from udl_dist.search.planning import plan
from udl_dist.search.results import SearchResult
from udl_dist.search.samplers import Sampler
from udl_dist.search.trial import TrialOutcome, folder_of
from udl_dist.search.trial_log import TrialLog, TrialResult


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"seeds": 2},
        {"seeds": 2, "reduction": 2},
        {"brackets": (9, 3)},
        {"brackets": (10, 6), "sampler": "optuna", "ahead": 3, "trials": 16},
        {"scheduler": "asha"},
        {"scheduler": "asha", "seeds": 2},
        {"scheduler": "median", "least_images": 0},
        {"scheduler": "none"},
        {"scheduler": "asha", "sampler": "optuna", "ahead": 3, "trials": 16},
    ],
    ids=lambda plain: " ".join(map(str, plain.values())) or "halving",
)
def test_neither_order_nor_slots_nor_deaths_nor_kills_change_the_result(
    plain: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    plain = {"trials": 12, "run__max_failures": 99} | plain
    flags = {"run__max_failures": str(plain.pop("run__max_failures"))}
    run(wanted(source, tmp_path / "one", flags=flags, **plain), 0, 1)
    expected = logged(tmp_path / "one")
    assert [*expected] == list(range(int(str(plain["trials"]))))
    for seed in (1, 3):
        disturbed = wanted(source, tmp_path / f"{seed}", flags=flags, **plain)
        run(disturbed, seed, 1 + seed, kill=0.02 * seed, die=0.05 * seed)
        assert logged(tmp_path / f"{seed}") == expected
        assert len((tmp_path / f"{seed}" / "trials.jsonl").read_text().splitlines()) == len(
            expected
        ), "none twice"
    states = {line[0] for line in expected.values()}
    assert states == ({"complete"} if plain.get("scheduler") == "none" else {"complete", "stopped"})


def test_optuna_draws_near_what_was_good(source: Path, tmp_path: Path) -> None:
    axes = {"method.latent_dim": {"choice": [2, 4]}, "train.learning_rate": {"log": [1e-6, 1e-1]}}
    search = wanted(source, tmp_path, axes, sampler="optuna", scheduler="none", trials=60)
    sampler, outcomes = Sampler(search), dict[int, list[TrialResult]]()
    for number in range(60):
        known = {which: outcomes[which] for which in range(sampler.needed(number))}
        drawn = sampler.values(number, known)
        loss = abs(math.log10(drawn["train.learning_rate"]) + 2) + (drawn["method.latent_dim"] == 2)
        outcomes[number] = [TrialResult(number, "complete", 240, loss, drawn)]
    good = [lines[0].values[0] < 0.6 for _, lines in sorted(outcomes.items())]
    assert sum(good[30:]) > 2 * sum(good[:10]) / 10 * 30


def test_by_halving_settings_are_optunas_after_a_start_that_waits_for_nothing(
    source: Path, tmp_path: Path
) -> None:
    search = wanted(source, tmp_path, trials=24)
    assert plan(search).sampler == "optuna"
    assert plan(search.replace(scheduler="asha")).sampler == "sobol"
    sampler, start = Sampler(search), Sampler(search.replace(sampler="sobol"))
    # Without the last four a setting has ten results from the fourteenth on.
    assert [sampler.needed(number) for number in range(16)] == [0] * 13 + [10, 11, 12]
    assert all(sampler.values(each, {}) == start.values(each, {}) for each in range(13))


def test_a_trial_whose_process_dies_too_often_costs_itself_only(
    source: Path, tmp_path: Path
) -> None:
    controlled = controller(wanted(source, tmp_path, flags={"run__max_failures": "1"}))
    for _ in range(2):
        task = controlled.next()
        assert task
        assert task.trial == 0, "the one that died goes first"
        controlled.died(0)
    second = controlled.next()
    assert second
    assert second.trial == 1
    line = controlled.log.results[0]
    assert (line.state, line.metric) == ("failed", None)
    assert "died without an error" in line.why


def test_a_metric_that_is_no_number_is_a_failure_and_never_best(
    source: Path, tmp_path: Path
) -> None:
    search = wanted(source, tmp_path, trials=2, scheduler="none")
    controlled = controller(search)
    for metric in (math.nan, 3.0):
        task = controlled.next()
        assert task
        controlled.ended(task.trial, TrialOutcome("complete", 240, {"val/mse": metric}))
    lines = list(controlled.log.results.values())
    assert [line.state for line in lines] == ["failed", "complete"]
    best = find_winner(search, lines)
    assert best
    assert best.trial == 1
    assert find_winner(search, lines[:1]) is None


def test_a_stop_leaves_what_runs_to_be_gone_on_with(source: Path, tmp_path: Path) -> None:
    search = wanted(source, tmp_path)
    controlled = controller(search)
    task = controlled.next()
    assert task
    controlled.stop()
    assert RunFolder(folder_of(search, 0)).stop_asked()
    controlled.ended(0, TrialOutcome("paused", 24))
    assert controlled.next() is None
    assert not controlled.log.results
    again = controller(search).next()
    assert again == task
    assert task.experiment.track.group == tmp_path.name, "all trials are one group for W&B"


def test_the_best_setting_is_that_of_the_best_mean_of_its_seeds(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = wanted(source, tmp_path, trials=4, seeds=2)
    lines = [
        TrialResult(number, "complete", 240, metric, {"a": number // 2}, number % 2)
        for number, metric in enumerate([0.1, 0.9, 0.4, 0.4])
    ]
    best = find_winner(search, lines)
    assert best
    assert (best.trial, best.metric) == (2, 0.4)
    ranked = [line.trial for line in Objective(search).ranked(lines)]
    assert ranked == [0, 2, 3, 1]
    # A metric of which more is better, as its method says.
    monkeypatch.setattr(methods.find("ae"), "higher_is_better", ("mse",))
    most = find_winner(search, lines)
    assert most
    assert (most.trial, most.metric) == (0, 0.5)
    assert [line.trial for line in Objective(search).ranked(lines)] == [1, 2, 3, 0]


def test_a_search_whose_trials_all_failed_ends_with_a_table_and_exit_code_4(
    source: Path, tmp_path: Path
) -> None:
    search = wanted(source, tmp_path, trials=2)
    lines = [
        TrialResult(number, "failed", 24, None, {"method.latent_dim": 2}, why="no number")
        for number in range(2)
    ]
    ended = SearchResult(search, lines, 2, 240, find_winner(search, lines))
    assert (ended.exit_code, ended.complete) == (4, True)
    text = "\n".join(ended.lines())
    assert "failed" in text
    assert "no trial has a valid metric" in text


def test_a_front_has_all_that_nothing_beats(source: Path, tmp_path: Path) -> None:
    search = wanted(source, tmp_path, metric=["val/mse", "method.latent_dim"], scheduler="none")
    lines = [
        TrialResult(number, "complete", 240, metric, {})
        for number, metric in enumerate(
            [[1.0, 8.0], [2.0, 4.0], [2.0, 8.0], [0.5, 16.0], [2.0, 4.0]]
        )
    ]
    assert [line.trial for line in Objective(search).front(lines)] == [0, 1, 3, 4]
    axes = plots.drawings(search, lines, ())["front"]().axes[0]
    every, best = (np.asarray(line.get_xydata()).tolist() for line in axes.lines)
    assert every == [[8, 1], [4, 2], [8, 2], [16, 0.5], [4, 2]]
    assert best == [[4, 2], [4, 2], [8, 1], [16, 0.5]]
    assert [line.get_linestyle() for line in axes.lines] == ["None", "-"]


def test_a_torn_last_line_is_forgotten_and_a_broken_one_is_text(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    log = TrialLog(path)
    log.add(TrialResult(0, "complete", 240, 0.5, {"a": 1}))
    with path.open("a") as file:
        file.write('{"trial": 1, "state": "comp')
    again = TrialLog(path)
    assert [*again.results] == [0]
    again.add(TrialResult(1, "stopped", 24, 0.7, {"a": 2}))
    assert [json.loads(line)["trial"] for line in path.read_text().splitlines()] == [0, 1]
    path.write_text('{"trial": 0}\n' + path.read_text())
    with pytest.raises(UsageError, match=r"trials.jsonl, line 1 is not a line of a search"):
        TrialLog(path)
