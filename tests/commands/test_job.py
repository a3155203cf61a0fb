"""A job as it travels: absolute, named by what it is, and nothing next to it."""

import io
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from udl_dist import experiment as experiments
from udl_dist.commands import job as jobs
from udl_dist.errors import UsageError
from udl_dist.search import config as searches

JOBS = Path(__file__).parent.parent.parent / "jobs"


def test_every_path_is_absolute_before_it_travels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    flags = {
        "data.source": "shards",
        "data.held_out": "~/held",
        "data.more_sources": '["s3://bucket/more", "b/{0..9}.tar"]',
        "data.keys": "keys.txt",
        "data.cache": "cache",
        "track.key_file": "key",
    }
    job = jobs.load(JOBS / "ae_digits.toml", flags)
    data, run = job.experiment.data, job.experiment.run
    assert (data.source, data.held_out) == (f"{tmp_path}/shards", "/home/me/held")
    assert data.more_sources == ("s3://bucket/more", f"{tmp_path}/b/{{0..9}}.tar")
    assert (data.keys, data.cache) == (f"{tmp_path}/keys.txt", f"{tmp_path}/cache")
    assert (run.folder, run.address) == (f"{tmp_path}/runs/ae_digits", "auto")
    assert job.experiment.track.key_file == f"{tmp_path}/key"


def test_names_and_addresses_of_storage_travel_as_they_are() -> None:
    job = jobs.load(JOBS / "ae_digits.toml", {"run.folder": "s3://bucket/run?region=eu"})
    assert (job.experiment.data.source, job.folder) == ("digits", "s3://bucket/run?region=eu")
    assert job.name.startswith("udl-run-")


def test_what_travels_is_the_same_experiment(tmp_path: Path) -> None:
    job = jobs.load(JOBS / "vae_digits.toml", {"run.folder": str(tmp_path)})
    (tmp_path / "job.toml").write_text(job.toml)
    assert experiments.load(tmp_path / "job.toml", {}) == job.experiment


def test_a_search_travels_as_a_search(tmp_path: Path) -> None:
    job = jobs.load(
        JOBS / "search_vae_digits.toml", {"search.trials": "3", "run.folder": str(tmp_path)}
    )
    assert job.verb == "search"
    (tmp_path / "job.toml").write_text(job.toml)
    found = searches.load(tmp_path / "job.toml", {})
    assert (found.settings.trials, found.folder, len(found.axes)) == (3, tmp_path, 2)


def test_a_run_folder_travels_as_its_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a run").mkdir()
    wanted = experiments.load(
        JOBS / "ae_digits.toml",
        {"run.folder": "elsewhere", "run.address": "far", "run.workers": "8"},
    )
    (tmp_path / "a run" / "experiment.toml").write_text(wanted.to_toml())
    monkeypatch.chdir(tmp_path)
    flags = {
        "families": "likelihood,reconstruction",
        "noise": "0.1,0.2",
        "data": "shards",
        "checkpoint": "last",
        "tsne": "true",
    }
    job = jobs.load(Path("a run"), flags)
    verb, folder, *rest = shlex.split(job.command.partition("udl_dist ")[2])
    assert (verb, folder) == ("evaluate", f"{tmp_path}/a run")
    assert set(rest) == {
        "--families=likelihood,reconstruction",
        "--noise=0.1,0.2",
        f"--data={tmp_path}/shards",
        "--workers=1",
        "--address=auto",
        "--checkpoint=last",
        "--tsne=true",
    }
    run = job.experiment.run
    assert (run.folder, run.workers, run.address) == (folder, 1, "auto")
    assert (
        job.name
        == jobs.load(tmp_path / "a run", flags).name
        != jobs.load(tmp_path / "a run", {}).name
    )
    with pytest.raises(UsageError, match="address is for udl evaluate: give udl submit --address"):
        jobs.load(Path("a run"), {"address": "far"})
    with pytest.raises(UsageError, match="is no run folder: it has no experiment.toml"):
        jobs.load(tmp_path, {})


def test_the_name_is_of_the_job_and_its_folder(tmp_path: Path) -> None:
    one = jobs.load(JOBS / "ae_digits.toml", {"run.folder": str(tmp_path / "one")})
    assert (
        one.name == jobs.load(JOBS / "ae_digits.toml", {"run.folder": str(tmp_path / "one")}).name
    )
    assert (
        one.name != jobs.load(JOBS / "ae_digits.toml", {"run.folder": str(tmp_path / "two")}).name
    )
    assert (
        one.name
        != jobs.load(JOBS / "ae_digits.toml", {"run.folder": one.folder, "train.seed": "1"}).name
    )


def test_a_job_that_makes_no_sense_never_leaves(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"run\.address is for udl train: give udl submit --address"
    ):
        jobs.load(JOBS / "ae_digits.toml", {"run.address": "auto"})
    large = tmp_path / "large.toml"
    with large.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(UsageError, match="is not a job file: it has 1,073,741,824 bytes"):
        jobs.load(large, {})
    large.rename(tmp_path / "experiment.toml")  # of a run folder
    with pytest.raises(
        UsageError, match="experiment.toml is not a job file: it has 1,073,741,824 bytes"
    ):
        jobs.load(tmp_path, {})


def test_the_upload_holds_the_package_and_the_job_alone(tmp_path: Path) -> None:
    made = jobs.packed("x = 1\n")
    with zipfile.ZipFile(io.BytesIO(made.content)) as archive:
        sent = set(archive.namelist())
        assert archive.read("job.toml") == b"x = 1\n"
    assert (made.files, made.bytes > 100_000) == (len(sent), True)
    assert made.name == jobs.packed("x = 1\n").name != jobs.packed("x = 2\n").name
    assert {
        "job.toml",
        "udl_dist/cli.py",
        "udl_dist/py.typed",
        "udl_dist/reporting/style.css",
    } <= sent
    assert all(name == "job.toml" or name.startswith("udl_dist/") for name in sent)
    assert not [name for name in sent if "__pycache__" in name or "/." in name]


def test_what_lies_in_the_package_and_is_not_ours_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "udl_dist"
    (package / ".git").mkdir(parents=True)
    for name in ("cli.py", ".env", "shard.tar", ".git/config.py", "key"):
        (package / name).write_text("secret")
    (package / "linked.py").symlink_to("/etc/passwd")
    monkeypatch.setattr(jobs, "PACKAGE", package)
    assert [file.name for file in jobs.files()] == ["cli.py"]


def test_an_upload_that_is_too_large_is_refused_with_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "LIMIT_BYTES", 1000)
    with pytest.raises(UsageError, match=r"package and job are [\d,]+ bytes, more than 1,000"):
        jobs.packed("")


def test_a_file_of_a_gigabyte_in_the_package_is_refused_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "udl_dist").mkdir()
    with (tmp_path / "udl_dist" / "large.py").open("wb") as file:
        file.truncate(2**30)
    monkeypatch.setattr(jobs, "PACKAGE", tmp_path / "udl_dist")
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it was read"))
    with pytest.raises(UsageError, match=r"package and job are 1,073,741,825 bytes, more than"):
        jobs.packed("x")


def test_the_upload_runs_by_itself(tmp_path: Path) -> None:
    """Nothing but the package on the path: what the cluster will run."""
    job = jobs.load(JOBS / "ae_digits.toml", {"run.folder": str(tmp_path)})
    with zipfile.ZipFile(io.BytesIO(jobs.packed(job.toml).content)) as archive:
        archive.extractall(tmp_path)
    command = [sys.executable, "-c", "import udl_dist.cli as cli; print(cli.__file__)"]
    done = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "udl_dist" / "cli.py")
