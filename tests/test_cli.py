"""The `udl` command as a person meets it: fast, one line for what is wrong, the right exit code."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.training.gloo import context
from udl_dist import cli

JOBS = Path(__file__).parent.parent / "jobs"
PICTURES = JOBS.parent / "docs" / "pictures"


def udl_subprocess(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command as a person starts it."""
    command = [sys.executable, "-m", "udl_dist", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, check=False, timeout=120
    )


def udl(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The same forked from a process that has imported everything, which saves seconds."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = context.Process(
            target=_forked, args=(arguments, cwd or Path.cwd(), dict(os.environ), out, err)
        )
        process.start()
        process.join(120)
        assert process.exitcode is not None, "udl did not end in 120 s"
        return subprocess.CompletedProcess(
            arguments, process.exitcode, out.read_text(), err.read_text()
        )


def _forked(
    arguments: Sequence[str], cwd: Path, environment: dict[str, str], out: Path, err: Path
) -> None:
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    cli.main(arguments)


def refused(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    """One line on stderr that holds `parts`, nothing on stdout, that exit code."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("udl: ")
    for part in parts:
        assert part in lines[0]
    assert done.stdout == ""


def test_help_and_version_answer() -> None:
    assert "train" in udl_subprocess("--help").stdout
    assert udl("--version").stdout.startswith("udl-dist 0.")
    assert "--train.learning_rate" in udl("train", "--settings").stdout


@pytest.mark.parametrize(("method", "batch"), [("gan", 16), ("vae", 32)])
def test_the_settings_of_a_method_are_listed_with_its_defaults(method: str, batch: int) -> None:
    lines = udl("train", "--settings", "--method.name", method).stdout.splitlines()
    (line,) = (line for line in lines if "--train.batch_size" in line)
    assert f"; {batch})" in line


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("tarin",), ("invalid choice: 'tarin'", "udl --help")),
        ((), ("required: VERB",)),
        (
            ("plan", "job.toml", "--nodes", "64"),
            ("udl plan was removed", "udl train JOB --dry-run"),
        ),
        (
            ("train", str(JOBS / "vae_digits.toml"), "--faults", "kill rank 0 at image 1"),
            ("--faults was removed",),
        ),
        (
            ("search", "--faults=x", str(JOBS / "search_vae_digits.toml")),
            ("--faults was removed", "kill one of its"),
        ),
        (("train",), ("needs a job file",)),
        (("train", "no.toml"), ("no such job file: no.toml",)),
        (
            ("train", str(JOBS / "vae_digits.toml"), "--train.epoch", "3"),
            ("unknown setting train.epoch", "train.epochs"),
        ),
        (("train", str(JOBS / "vae_digits.toml"), "stray"), ("unexpected argument 'stray'",)),
        (("train", str(JOBS / "vae_digits.toml"), "--run.folder"), ("--run.folder needs a value",)),
        (("train", "--data.source", "--method.name", "ae"), ("--data.source needs a value",)),
        (
            ("train", str(JOBS / "vae_digits.toml"), "--method.name", "vea"),
            ("unknown method.name 'vea'", "vae"),
        ),
        (
            ("train", str(JOBS / "vae_digits.toml"), "--method.latent-dim", "0"),
            ("method.latent_dim", "at least 1"),
        ),
        (
            ("train", str(JOBS / "vae_digits.toml"), "--train.epochs", "ten"),
            ("train.epochs must be number, not 'ten'",),
        ),
        (
            ("train", str(JOBS / "vae_digits.toml"), "--train.batch_size", "1", "--dry-run"),
            ("train.batch_size = 1 is less than run.workers = 2",),
        ),
        (
            (
                "train",
                "--train.total-images",
                "9",
                "--train.epochs",
                "1",
                str(JOBS / "vae_digits.toml"),
            ),
            ("not both",),
        ),
        (("train", str(JOBS)), ("jobs is a folder without experiment.toml", "--data.source")),
        (("search", str(JOBS)), ("jobs is a folder without search.toml",)),
        (
            ("train", str(PICTURES / "mnist_samples.png")),
            ("is not a job file", "--data.source"),
        ),
        (
            ("check", "--decod", "shards/"),
            ("required: source", "'shards/' is the value of --decod"),
        ),
        (("train", "--method.name", "vae", "--data.source", ""), ("data.source is empty", "shell")),
        (
            ("train", "--method.name", "vae", "--data.more-sources", "['']"),
            ("data.more_sources is empty",),
        ),
        (("train", ""), ("an argument is empty after train",)),
        (("train", "--run.folder", "", "--method.name", "vae"), ("run.folder is empty",)),
        (("pack", "", "packed"), ("an argument is empty after pack", "shell")),
        (("pack", "digits", ""), ("an argument is empty after digits",)),
        (("pack", "digits", "packed", "--license", ""), ("--license is empty",)),
        (("index", ""), ("an argument is empty after index",)),
        (("check", "shards", "--fix", ""), ("an argument is empty after --fix",)),
        (("check", "shards", "--fix="), ("--fix= is empty",)),
        (("embed", "run", ""), ("an argument is empty after run",)),
        (("evaluate", "run", "--data", ""), ("--data is empty",)),
        (("sample", "run", "--out", ""), ("an argument is empty after --out",)),
        (("submit", ""), ("an argument is empty after submit",)),
        (
            ("train", "--method.name", "vae", "--lr", "1"),
            ("unknown setting lr: did you mean train.learning_rate?",),
        ),
        (("train", "--method.name", "vae", "--zzzz", "1"), ("the nearest are", "--settings")),
        (("pack", "digits"), ("required: dest",)),
        (("sample", "no-such-run"), ("there is no folder", "no-such-run")),
        (("sample", "tests", "--nn", "3"), ("unknown flag --nn", "udl sample --help")),
        (("fit-prior", "tests", "--nn", "3"), ("unknown flag --nn", "udl fit-prior --help")),
        (("traverse", ".", "--from", "a.png"), ("neither a run folder nor an exported model",)),
        (
            ("embed", ".", "digits", "out", "--part_images", "0"),
            ("part_images must be at least 1",),
        ),
        (("export", ".", "model", "--license", "mit"), ("neither a run folder",)),
        (("compare", "one"), ("needs two runs or more",)),
        (("report", "no-such-run"), ("is not a run folder",)),
        (("status", "--folow"), ("unknown flag --folow", "udl status --help")),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    refused(udl(*arguments), 2, *parts)


def test_a_refusal_names_no_more_than_a_few_settings() -> None:
    (line,) = udl("train", "--method.name", "vae", "--zzzz", "1").stderr.splitlines()
    assert len(line) < 300


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--train.total-images", "1024", "--run.workers=1", "--dry-run", "JOB"),
        ("train", "--dry-run", "JOB", "--train.total-images", "1024", "--run.workers", "1"),
        (
            "train",
            "--dry-run",
            "--method.name",
            "vae",
            "--data.source",
            "digits",
            "--train.total-images",
            "1024",
        ),
    ],
)
def test_flags_stand_before_a_job_file_or_without_one(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    job = tmp_path / "vae_digits.toml"
    # as an editor on Windows writes it
    job.write_bytes(b"\xef\xbb\xbf" + (JOBS / "vae_digits.toml").read_bytes())
    done = udl(*(str(job) if each == "JOB" else each for each in arguments), "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert (plan["method"], plan["total_images"], plan["workers"]) == ("vae", 1024, 1)
    assert plan["folder"] == "runs/vae_digits"


def test_settings_of_other_verbs_stand_before_their_arguments(tmp_path: Path) -> None:
    done = udl("pack", "--held-out-fraction", "0.2", "digits", str(tmp_path / "packed"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["records"]["val"] > 800


def test_a_run_without_a_job_file_is_as_long_as_is_usual_and_lies_by_its_data(
    tmp_path: Path,
) -> None:
    done = udl(
        "train",
        "--method.name",
        "gan",
        "--data.source",
        f"{PICTURES}/",
        "--dry-run",
        "--json",
    )
    plan = json.loads(done.stdout)
    assert (plan["folder"], plan["total_images"]) == ("runs/gan_pictures", 500_000)


def test_a_run_folder_is_a_job_file(trained: dict[str, Path]) -> None:
    done = udl("train", str(trained["ae"]), "--dry-run", "--json")
    assert json.loads(done.stdout)["folder"] == str(trained["ae"])


def test_a_missing_source_is_a_matter_of_data(tmp_path: Path) -> None:
    done = udl(
        "train",
        str(JOBS / "vae_digits.toml"),
        "--data.source",
        "nowhere",
        "--run.folder",
        str(tmp_path / "r"),
    )
    refused(done, 3, "nowhere")
    refused(udl("pack", "nowhere", str(tmp_path / "p")), 3, "nowhere")


def test_a_dry_run_says_what_would_happen_and_starts_nothing(tmp_path: Path) -> None:
    done = udl("train", str(JOBS / "vae_digits.toml"), "--dry-run", "--json", cwd=tmp_path)
    plan = json.loads(done.stdout)
    assert plan["records"] + plan["held_out_records"] == 5000
    assert plan["workers"] == 2
    assert plan["total_images"] == plan["steps"] * plan["batch_size"]
    assert plan["memory_bytes"] > 2**20
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--help"], []),
        (["train", "--help"], []),
        (["pack", "--help"], []),
        (["train", str(JOBS / "gan_digits.toml"), "--dry-run"], ["torch"]),
    ],
    ids=["help", "train --help", "pack --help", "dry run"],
)
def test_a_command_imports_no_more_than_it_needs(
    arguments: list[str], needed: list[str], tmp_path: Path
) -> None:
    code = (
        "import sys; from udl_dist import cli\ntry:\n    cli.main(sys.argv[1:])\nexcept SystemExit:"
        " print(sorted({'torch', 'ray', 'wandb', 'webdataset'} &"
        " set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == str(needed)


def test_pack_says_what_it_made(tmp_path: Path) -> None:
    done = udl("pack", "digits", str(tmp_path / "digits"), "--held-out-fraction", "0.1", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert sum(summary["records"].values()) == 5000
    refused(udl("pack", "digits", str(tmp_path / "digits")), 2, "digits")


def test_verbs_of_use_answer_machines(trained: dict[str, Path], tmp_path: Path) -> None:
    done = udl(
        "sample", str(trained["gan"]), "--n", "4", "--out", str(tmp_path / "grid.png"), "--json"
    )
    figures = json.loads(done.stdout)
    assert (figures["method"], figures["n"], figures["averaged"]) == ("gan", 4, True)
    assert (tmp_path / "grid.png").exists()
    run = Path(shutil.copytree(trained["gan"], tmp_path / "run"))
    done = udl("sample", str(run), "--n", "4", cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == f"4 images, seed 0: {run}/samples.png", done.stderr
    assert (run / "samples.png").exists() and not (tmp_path / "samples.png").exists()
    refused(
        udl("reconstruct", str(trained["gan"]), "digits"),
        2,
        "cannot reconstruct, it can decode, sample",
    )
    refused(udl("score", str(trained["ae"]), "grid.jpg", cwd=tmp_path), 3, "there is no file")
    assert not (tmp_path / "scores").exists()
    refused(
        udl("evaluate", str(trained["gan"]), "--families", "likelihood,distribution"),
        2,
        "no likelihood",
    )
    done = udl("report", str(trained["ae"]), "--out", str(tmp_path / "page.html"), "--json")
    assert json.loads(done.stdout)["faults"] == []
