"""What a search is asked for: strict, and refused in one line before anything starts."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.search.asked import AXES, wanted
from tests.test_cli import JOBS, refused, udl
from tests.test_experiment import job
from udl_dist.errors import UsageError
from udl_dist.search import config, planning
from udl_dist.search.objective import check_objective
from udl_dist.search.samplers import Sampler
from udl_dist.search.trial_log import TrialLog

SEARCHES = [path for path in sorted(JOBS.glob("*.toml")) if "[search]" in path.read_text()]
HEAD = '[method]\nname = "vae"\n[train]\nepochs = 1\n[search]\ntrials = 3\n'


def test_a_budget_beyond_a_whole_run_is_said_to_be_cut(source: Path, tmp_path: Path) -> None:
    cut = planning.plan(wanted(source, tmp_path, budget_images=5_000))
    assert (cut.budget, cut.capped) == (240, 5_000)
    (line,) = (line for line in cut.lines() if line.startswith("budget "))
    assert (
        "search.budget_images = 5,000 is more than a whole run (240 images by train.epochs or"
        in line
    )
    whole = planning.plan(wanted(source, tmp_path, budget_images=240))
    assert not any(line.startswith("budget ") for line in whole.lines())
    short = planning.plan(wanted(source, tmp_path, budget_images=36))
    (line,) = (line for line in short.lines() if line.startswith("budget "))
    assert "36 images are less than one pass over the 52 training images" in line


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_each_job_is_read_and_written_back_the_same(path: Path, tmp_path: Path) -> None:
    search = config.load(path, {})
    again = config.load(job(tmp_path, search.to_toml()), {})
    assert (again.base, again.settings, again.axes) == (search.base, search.settings, search.axes)
    assert f"udl search jobs/{path.name}" in path.read_text().splitlines()[0], (
        "a job opens with its command"
    )


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        (
            '"method.latent_dims" = {choice = [1]}',
            r"search.method.latent_dims: .* did you mean method.latent_dim\?",
        ),
        ('"latent.dim" = {choice = [1]}', "search.latent.dim: there is no such setting"),
        ('"train.learning_rate" = {log = [0, 1e-2]}', "two numbers above 0 with low < high"),
        ('"train.learning_rate" = {log = [1e-2, 1e-4]}', "with low < high"),
        ('"train.learning_rate" = {log = [1e-4]}', "log must be .low, high., two numbers"),
        ('"train.learning_rate" = {uniform = [0.1, inf]}', "two numbers with low < high"),
        ('"method.latent_dim" = {choice = []}', "offers nothing: write a list of values"),
        ('"method.latent_dim" = {choice = [2, 2]}', "has 2 more than once"),
        (
            '"method.latent_dim" = {choice = [2, "four"]}',
            "method.latent_dim must be whole number, not 'four'",
        ),
        ('"method.latent_dim" = {choice = [0]}', "method.latent_dim must be at least 1, not 0"),
        ('"method.latent_dim" = {log = [1.5, 8]}', "two whole numbers"),
        ('"method.latent_dim" = {log = [2, "8"]}', "two whole numbers"),
        ('"method.latent_dim" = 8', "must be one of {choice"),
        ('"method.latent_dim" = {chioce = [8]}', "must be one of {choice"),
        ('"method.latent_dim" = {choice = [8], step = 2}', "unexpected step"),
        ('"method.likelihood" = {uniform = [0, 1]}', "is not a number: use {choice"),
        ('"method.name" = {choice = ["ae"]}', "cannot be an axis: its trials use one method"),
        ('"train.seed" = {choice = [1]}', "search.seeds"),
        ('"data.size" = {choice = [28, 32]}', "trials that differ in it cannot be compared"),
        ('"run.workers" = {choice = [1, 2]}', "trials that differ in it cannot be compared"),
        ('scheduler = "pbt"', "search.scheduler = pbt .* was removed: use asha or median"),
        ('mode = "max"', "search.mode was removed: a method says which of its metrics are better"),
        ("perturb_images = 60", "search.perturb_images was removed with .*: leave it out"),
        ("trails = 4", "unknown setting search.trails: did you mean trials?"),
        ("", "has no axis: add one"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(axis: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=message.replace("{", r"\{").replace("?", r"\?").replace(r"\\?", r"\?")
    ):
        config.load(job(tmp_path, HEAD + axis + "\n"), {})


def test_population_based_training_is_refused_with_what_to_use(tmp_path: Path) -> None:
    path = str(JOBS / "search_vae_digits.toml")
    for flag, value in (("--search.scheduler", "pbt"), ("--search.perturb-images", "0")):
        refused(udl("search", path, flag, value, "--dry-run", cwd=tmp_path), 2, "was removed")


def test_a_search_of_the_release_before_is_read(tmp_path: Path) -> None:
    """Its search.toml spells out every setting, and each line of its journal has what only a
    population filled.
    """
    text = config.load(job(tmp_path, HEAD + '"method.latent_dim" = {choice = [2]}\n'), {}).to_toml()
    before = text.replace("[search]\n", '[search]\nperturb_images = 0\nmode = "min"\n')
    assert before != text
    assert config.load(job(tmp_path, before), {}).to_toml() == text
    (tmp_path / "trials.jsonl").write_text(
        '{"trial": 0, "state": "complete", "images": 240, "metric": 0.5, '
        '"settings": {"method.latent_dim": 2}, "more": {}}\n'
    )
    assert TrialLog(tmp_path / "trials.jsonl").results[0].metric == 0.5


def test_an_axis_may_be_written_quoted_or_as_a_table_or_be_a_flag(tmp_path: Path) -> None:
    quoted = config.load(
        job(tmp_path, HEAD + '"method.network.activation" = {choice = ["relu"]}\n'), {}
    )
    table = config.load(
        job(tmp_path, HEAD + '[search.method.network]\nactivation = {choice = ["relu"]}\n'), {}
    )
    flag = {"search.method.network.activation": '{choice = ["relu"]}', "search.trials": "5"}
    flagged = config.load(job(tmp_path, HEAD), flag)
    assert quoted.axes == table.axes == flagged.axes
    assert flagged.settings.trials == 5


def test_the_jobs_of_train_and_search_name_each_other() -> None:
    refused(
        udl("train", str(JOBS / "search_vae_digits.toml")),
        2,
        "has a [search] table, it is for udl search",
    )
    refused(
        udl("search", str(JOBS / "vae_digits.toml")),
        2,
        "has no [search] table, it is for udl train",
    )
    refused(udl("search"), 2, "needs a job file with a [search] table")


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"trials": 0}, "search.trials is 0: give the number"),
        ({"trials": 3, "seeds": 2}, "cannot be shared by search.seeds = 2"),
        ({"sampler": "grid", "trials": 3}, "a grid needs its points = 2 or more"),
        ({"least_images": 240}, "leaves no rung below the budget"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(
    plain: dict[str, Any], message: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        planning.plan(wanted(source, tmp_path, **plain))


def test_a_grid_has_each_joint_value_once(source: Path, tmp_path: Path) -> None:
    axes = {
        "method.latent_dim": {"choice": [2, 3, 4]},
        "train.learning_rate": {"log": [1e-4, 1e-2], "points": 3},
    }
    search = wanted(source, tmp_path, axes, sampler="grid", trials=0)
    assert planning.plan(search).trials == 9
    sampler = Sampler(search)
    every = {tuple(sampler.values(number, {}).values()) for number in range(9)}
    assert len(every) == 9
    assert sorted({rate for _, rate in every}) == pytest.approx([1e-4, 1e-3, 1e-2])
    with pytest.raises(UsageError, match="search.trials = 10 is more than the grid has: 9"):
        planning.plan(search.replace(trials=10))


def test_a_draw_depends_on_seed_number_and_name_alone(source: Path, tmp_path: Path) -> None:
    one, more = (
        wanted(source, tmp_path, {"train.learning_rate": AXES["train.learning_rate"]}),
        wanted(source, tmp_path),
    )
    one, more = (each.replace(sampler="random") for each in (one, more))
    first, second = (Sampler(each).values(5, {})["train.learning_rate"] for each in (one, more))
    assert first == second
    assert Sampler(more.replace(seed=1)).values(5, {})["train.learning_rate"] != second
    dims = [Sampler(more).values(number, {})["method.latent_dim"] for number in range(300)]
    assert all(80 < dims.count(value) < 120 for value in (2, 3, 4))


def test_whole_numbers_of_a_range_come_evenly(source: Path, tmp_path: Path) -> None:
    axes = {"method.latent_dim": {"uniform": [2, 5]}}
    sampler = Sampler(wanted(source, tmp_path, axes, sampler="random"))
    drawn = [sampler.values(number, {})["method.latent_dim"] for number in range(400)]
    assert {*drawn} == {2, 3, 4, 5}
    assert all(70 < drawn.count(value) < 130 for value in (2, 3, 4, 5))


def test_sobols_points_are_even_on_each_axis_and_on_both(source: Path, tmp_path: Path) -> None:
    axes = {
        "method.latent_dim": {"choice": [2, 4, 8, 16]},
        "train.learning_rate": {"log": [1e-4, 1e-2]},
    }
    search = wanted(source, tmp_path, axes)
    drawn = [Sampler(search).values(number, {}) for number in range(16)]
    # Each 16 points of a Sobol sequence in two dimensions fill 4 x 4 equal boxes.
    boxes = {
        (each["method.latent_dim"], int(2 * (math.log10(each["train.learning_rate"]) + 4)))
        for each in drawn
    }
    assert len(boxes) == 16
    assert Sampler(search.replace(seed=1)).values(0, {}) != drawn[0]


@pytest.mark.parametrize(
    ("method", "metric", "message"),
    [
        ("ae", "val/elbo", "'val/elbo' is not a metric of this method: .*val/mse"),
        ("ae", "train/loss", "metrics of training are not held out"),
        ("gan", "val/fake_logit", "does not tell which run is better: take val/frechet_detail"),
        ("ae", "method.latent_dim", "is an axis"),
    ],
)
def test_a_metric_that_ranks_nothing_is_refused(
    method: str, metric: str, message: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        check_objective(wanted(source, tmp_path, method=method, metric=metric))


def test_a_metric_is_refused_across_an_axis_that_changes_its_scale(
    source: Path, tmp_path: Path
) -> None:
    axes = {"method.binarise": {"choice": ["none", "epoch"]}}
    with pytest.raises(
        UsageError, match=r"val/negative_elbo does not compare across method.binarise"
    ):
        check_objective(wanted(source, tmp_path, axes, "vae"))
    check_objective(wanted(source, tmp_path, axes, "vae", metric="val/mse"))
    check_objective(wanted(source, tmp_path, {"method.beta": {"uniform": [0.5, 2]}}, "vae"))


def test_several_objectives_and_a_scheduler_are_refused(source: Path, tmp_path: Path) -> None:
    both = ["val/mse", "method.latent_dim"]
    with pytest.raises(UsageError, match="has several objectives"):
        check_objective(wanted(source, tmp_path, metric=both))
    check_objective(wanted(source, tmp_path, metric=both, scheduler="none"))


def test_a_search_in_object_storage_is_refused() -> None:
    done = udl(
        "search",
        str(JOBS / "search_vae_digits.toml"),
        "--run.folder",
        "s3://bucket/search",
        "--dry-run",
    )
    refused(done, 2, "a search needs a folder on a disk, not s3://bucket/search")
