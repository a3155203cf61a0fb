"""What is said of rungs, sizes and finalists."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from tests.search.asked import wanted
from tests.search.simulated import controller, trained
from udl_dist.runs.run_folder import RunFolder
from udl_dist.search.config import Search
from udl_dist.search.final_runs import final_runs
from udl_dist.search.findings import (
    RungCheck,
    rank_correlation,
    rung_checks,
    rung_lines,
    size_lines,
)
from udl_dist.search.results import conclude
from udl_dist.search.trial_log import TrialLog, TrialResult


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 1.0, 2.5, -3.0, 9.0]), st.floats(-5, 5)), min_size=3)
)
@pytest.mark.filterwarnings("ignore")  # SciPy's, of columns that are all equal
def test_the_rank_correlation_is_scipys(pairs: list[tuple[float, float]]) -> None:
    first, second = zip(*pairs, strict=True)
    theirs = spearmanr(first, second).statistic
    assert rank_correlation(first, second) == pytest.approx(theirs, nan_ok=True)


def ended(trial: int, rungs: list[float], metric: float, state: str = "complete") -> TrialResult:
    places = [[24.0 * 3**number, loss] for number, loss in enumerate(rungs)]
    images = 240 if state == "complete" else int(places[-1][0])
    settings = {"method.latent_dim": 2 + trial % 3, "train.learning_rate": 1e-3}
    return TrialResult(trial, state, images, metric, settings, rungs=places)  # type: ignore[arg-type]


def test_a_rung_is_checked_by_the_trials_that_went_on(source: Path, tmp_path: Path) -> None:
    search = wanted(source, tmp_path)
    lines = [ended(number, [9.0 + number], 9.0 + number, "stopped") for number in range(4)]
    # Of the five that went on, the first rung had the order of the end; the second reversed it.
    lines += [ended(4 + place, [1.0 + place, 5.0 - place], place + 0.5) for place in range(5)]
    checks = rung_checks(search, lines)
    assert [(check.images, check.trials) for check in checks] == [(24, 5), (72, 5)]
    assert [check.correlation for check in checks] == pytest.approx([1, -1])
    said = rung_lines(checks)
    assert said[0].endswith("1.00 at 24 images (5 trials), -1.00 at 72 images (5 trials)")
    assert said[1:] == [
        "WARNING: the order at 72 images was noise: set search.least_images to more in a new folder"
    ]
    few = rung_lines([RungCheck(24, 2, math.nan)])
    assert few[0].endswith("too few at 24 images (2 trials)") and len(few) == 1
    assert rung_lines(rung_checks(search, [])) == []


def test_the_best_of_each_size_is_listed_and_those_within_a_deviation(
    source: Path, tmp_path: Path
) -> None:
    search = wanted(source, tmp_path)
    lines = [ended(0, [3.0], 3.0), ended(1, [2.0], 2.0), ended(2, [2.2], 2.2), ended(3, [1.0], 4.0)]
    assert size_lines(search, lines, 0.3) == [
        "best of each method.latent_dim:",
        "  2: 3 (trial 0, train.learning_rate 0.001)",
        "  3: 2 (trial 1, train.learning_rate 0.001)",
        "  4: 2.2 (trial 2, train.learning_rate 0.001)",
        "within one deviation (0.3) of the best trial: method.latent_dim 3, 4",
    ]
    stopped = size_lines(search, [lines[0], ended(1, [2.0], 2.0, "stopped")], 0)
    assert size_lines(search, [], 0) == [], "all trials failed"
    assert stopped[-1] == "  3: 2 (trial 1, train.learning_rate 0.001, stopped after 24 images)"


def swap(search: Search) -> None:
    """Exchange the metrics of the two trials."""
    path = search.folder / "trials.jsonl"
    first, second = map(json.loads, path.read_text().splitlines())
    first["metric"], second["metric"] = second["metric"], first["metric"]
    path.write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")


def test_the_finalist_of_the_best_mean_wins_whatever_its_place_among_the_trials(
    source: Path, tmp_path: Path
) -> None:
    plain: dict[str, Any] = {"trials": 2, "scheduler": "none", "plots": False, "evaluate": False}
    search = wanted(source, tmp_path, finalists=2, final_seeds=2, **plain)
    trials = controller(search)
    trained(trials)
    for _ in range(2):
        final = final_runs(search, trials.planned, TrialLog(tmp_path / "trials.jsonl"))
        assert final
        trained(final)
        means = [final.metrics(place)["val/mse"].mean for place in range(2)]
        assert final.winner == final.finalists[means.index(min(means))]
        done = conclude(search, trials.planned, TrialLog(tmp_path / "trials.jsonl"), io.StringIO())
        assert done.winner == final.winner
        assert done.final["val/mse"].mean == min(means)
        results = [RunFolder(run).finished() for run in sorted((tmp_path / "winner").iterdir())]
        values = [result["figures"]["val/mse"] for result in results if result]
        assert sum(values) / 2 == pytest.approx(min(means))
        assert len(list((tmp_path / "finalists").glob("*/seed-*"))) == 2
        assert f"leads trial {1 - final.winner.trial} (" in "\n".join(done.lines())
        # With the other order the same runs decide, and none is trained again.
        swap(search)
        again = final_runs(search, trials.planned, TrialLog(tmp_path / "trials.jsonl"))
        assert again and again.over and again.winner.trial == final.winner.trial
        assert again.place == 1 - final.place
