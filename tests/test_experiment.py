"""An experiment: defaults, then a file, then flags; nothing is ever ignored."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from udl_dist import experiment
from udl_dist.core import config_schema
from udl_dist.errors import UsageError
from udl_dist.methods import names

FILES = sorted((Path(__file__).parent.parent / "jobs").glob("*.toml"))
NAMES = ", ".join(names())
JOBS = [path for path in FILES if "[search]" not in path.read_text()]  # the others: tests/search


def job(folder: Path, text: str) -> Path:
    path = folder / "job.toml"
    path.write_text(text)
    return path


def test_a_flag_beats_the_file_and_the_file_beats_the_default(tmp_path: Path) -> None:
    path = job(
        tmp_path, '[method]\nname = "vae"\nlatent_dim = 7\n[train]\nepochs = 2\nbatch_size = 64\n'
    )
    wanted = experiment.load(path, {"train.batch_size": "32"})
    assert (wanted.method.latent_dim, wanted.train.batch_size, wanted.train.seed) == (7, 32, 0)
    assert wanted.run.folder == "runs/job"


def test_a_method_s_defaults_stand_below_the_file_and_flags(tmp_path: Path) -> None:
    train = experiment.load(None, {"method.name": "gan"}).train
    assert (train.batch_size, train.beta1, train.warmup_images) == (16, 0.5, 3000)
    path = job(tmp_path, '[method]\nname = "gan"\n[train]\nbeta1 = 0.9\nbatch_size = 64\n')
    train = experiment.load(path, {"train.batch_size": "32"}).train
    assert (train.batch_size, train.beta1, train.warmup_images) == (32, 0.9, 3000)
    # Another method, other defaults; what is asked for stays, even if it is everyone's default.
    train = experiment.load(path, {"method.name": "vae", "train.schedule": "constant"}).train
    assert (train.batch_size, train.schedule, train.warmup_images) == (64, "constant", 0)
    assert experiment.load(None, {"method.name": "vae"}).train.schedule == "cosine"


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_each_job_is_read_and_written_back_the_same(path: Path, tmp_path: Path) -> None:
    wanted = experiment.load(path, {})
    again = experiment.load(job(tmp_path, wanted.to_toml()), {})
    assert again == wanted
    assert f"udl train jobs/{path.name}" in path.read_text().splitlines()[0], (
        "a job opens with its command"
    )


@pytest.mark.parametrize(
    ("name", "layers", "train"),
    [
        ("ae", "dense 64-32, dense 64-784", (256, 1e-3, 50)),
        ("vae", "dense 512-256-64, dense 256-512-784", (128, 1e-3, 50)),
        ("gan", "conv 256-512-1024-4096-128-64-1, conv 64-128-1", (128, 1e-4, 50)),
    ],
)
def test_the_article_s_jobs_have_its_layers_and_settings(
    name: str, layers: str, train: tuple[int, float, int]
) -> None:
    from udl_dist.methods import find
    from udl_dist.methods.networks import sizes

    wanted = experiment.load(FILES[0].parent / f"article_{name}.toml", {})
    method = sizes.MethodMaker(find(name), wanted.method, (1, 28, 28)).on_meta()
    assert ", ".join(map(sizes.in_words, method.networks.values())) == layers
    asked = wanted.train
    assert (asked.batch_size, asked.learning_rate, asked.epochs) == train
    assert (asked.schedule, asked.warmup_images, asked.average_half_life) == ("constant", 0, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[method]\nname = "vea"\n', "unknown method.name 'vea': did you mean vae?"),
        ("[train]\nepochs = 1\n", f"method.name is missing: there are {NAMES}"),
        ("[method]\nname = 5\n", f"method.name must be text, not 5: there are {NAMES}"),
        (
            '[method]\nname = "vae"\n[trian]\nepochs = 1\n',
            "unknown table [trian]: did you mean train?",
        ),
        ('[method]\nname = "vae"\n[trian]\n', "unknown table [trian]: did you mean train?"),
        ('method = "vae"\n', "method is a table of settings, not 'vae'"),
        (
            '[method]\nname = "vae"\n[train]\nlatent_dim = 3\n',
            "unknown setting train.latent_dim: did you mean method.latent_dim?",
        ),
        (
            '[method]\nname = "vae"\n[method.netwrok]\nkind = "dense"\n',
            "unknown setting method.netwrok.kind: did you mean method.network.kind?",
        ),
        ('[method]\nname = "vae"\nlatent_dim = 0\n', "method.latent_dim must be at least 1, not 0"),
        (
            '[method]\nname = "vae"\nlatent_dim = "8"\n',
            "method.latent_dim must be whole number, not '8'",
        ),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        experiment.load(job(tmp_path, text), {})
    assert str(refusal.value) == message


def test_a_file_that_is_no_toml_or_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"job.toml is no TOML: .* \(at line 1"):
        experiment.load(job(tmp_path, "what = = this"), {})
    with pytest.raises(UsageError, match="no such job file: .*missing.toml"):
        experiment.load(tmp_path / "missing.toml", {})


def test_a_flag_for_the_length_of_a_run_counts_and_not_the_other_measure_of_the_file(
    tmp_path: Path,
) -> None:
    path = job(tmp_path, '[method]\nname = "vae"\n[train]\nepochs = 2\n')
    train = experiment.load(path, {"train.total_images": "1000"}).train
    assert (train.total_images, train.epochs, train.length(500)) == (1000, 0.0, 1024)
    path = job(tmp_path, '[method]\nname = "vae"\n[train]\ntotal_images = 9000\n')
    train = experiment.load(path, {"train.epochs": "2"}).train
    assert (train.total_images, train.epochs, train.length(500)) == (0, 2.0, 1024)
    with pytest.raises(UsageError, match="not both"):
        experiment.load(path, {"train.epochs": "2", "train.total_images": "8"}).train.length(500)


def test_an_unknown_flag_names_the_nearest() -> None:
    with pytest.raises(
        UsageError, match=r"unknown setting train.learning_rat: did you mean train.learning_rate\?"
    ):
        experiment.load(None, {"method.name": "vae", "train.learning_rat": "1"})
    with pytest.raises(
        UsageError, match=r"unknown setting method.batch_size: did you mean train.batch_size\?"
    ):
        experiment.load(None, {"method.name": "vae", "method.batch_size": "1"})


def test_a_removed_setting_names_what_to_do_and_its_old_default_is_accepted(tmp_path: Path) -> None:
    said = (
        r"data.sequential was removed: shards at http:// and https:// are indexed like any others"
    )
    with pytest.raises(UsageError, match=said):
        experiment.load(None, {"method.name": "ae", "data.sequential": "true"})
    text = '[method]\nname = "ae"\n[data]\nsequential = {}\n'
    with pytest.raises(UsageError, match=said):
        experiment.load(job(tmp_path, text.format("true")), {})
    assert experiment.load(job(tmp_path, text.format("false")), {}).method_name == "ae"


def test_workers_are_a_number_or_a_range() -> None:
    for text, least, most in (("3", 3, 3), ("2..8", 2, 8), ("4..4", 4, 4), ("auto", 1, 1)):
        run = experiment.load(None, {"method.name": "vae", "run.workers": text}).run
        assert (run.least_workers, run.most_workers) == (least, most)


@pytest.mark.parametrize("text", ["8..2", "0..3", "2..", "many", "2...8"])
def test_workers_that_are_neither_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError) as refusal:
        experiment.load(None, {"method.name": "vae", "run.workers": text})
    said = f"run.workers = {text!r}: say a number, a range such as '2..8', or auto"
    assert str(refusal.value) == said


def test_differences_name_both_values_and_leave_out_what_may_change(tmp_path: Path) -> None:
    path = job(tmp_path, '[method]\nname = "vae"\n[train]\nepochs = 2\n')
    before = experiment.load(path, {})
    after = experiment.load(
        path, {"method.latent_dim": "5", "run.workers": "3", "train.epochs": "4"}
    )
    assert experiment.differences(before, after) == [
        f"method.latent_dim was {before.method.latent_dim}, now 5"
    ]
    assert experiment.differences(before, before) == []


def test_the_resolved_experiment_spells_out_every_default(tmp_path: Path) -> None:
    wanted = experiment.load(None, {"method.name": "gan", "train.epochs": "1"})
    written = tomllib.loads(wanted.to_toml())
    assert set(written) == {"method", *experiment.SECTIONS}
    names = [name for name, *_ in experiment.describe("gan")]
    assert sorted(config_schema.flatten(written)) == sorted(names)


def test_reading_an_experiment_imports_no_ray() -> None:
    """It looks up the method, which imports torch."""
    code = (
        "import sys; from udl_dist import experiment; experiment.load(None, {'method.name':"
        " 'gan'});sys.exit(bool({'ray', 'wandb', 'webdataset'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0
