"""`udl evaluate --follow`: metrics of every checkpoint, and the copy of the best one stays."""

import json
import resource
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import udl_dist
from tests.trained import run
from tests.training.learn import packed
from udl_dist.cli import main
from udl_dist.core import files as disk
from udl_dist.errors import TrainingError, UsageError
from udl_dist.evaluation.settings import MetricSettings
from udl_dist.inference import evaluating, following
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training import checkpoint

ASKED = MetricSettings(families=("reconstruction",), noise=())


def follow(
    folder: Path, best: str = "", asked: MetricSettings = ASKED, say: Callable[[str], None] = print
) -> Any:
    return following.follow(str(folder), "cpu", asked, best, lambda done, total: None, say)


def ended(words: list[str]) -> Any:
    with pytest.raises(SystemExit) as exit_:
        main(words)
    return exit_.value.code


@pytest.fixture
def own(trained: dict[str, Path], tmp_path: Path) -> Path:
    """A run of its own, ended, with all its checkpoints."""
    return Path(shutil.copytree(trained["ae"], tmp_path / "ae"))


def test_figures_are_those_of_each_checkpoint_and_the_best_one_outlives_the_run_s_own(
    own: Path,
) -> None:
    done = follow(own, "mse")
    figures = done.as_dict()["figures"]
    there = [int(path.name) for path in checkpoint.complete(own / "checkpoints")]
    assert sorted(figures) == there and len(there) > 3
    for images in there:
        alone = evaluating.evaluate(
            udl_dist.load(own, checkpoint=images), ASKED, own / "alone.json", lambda *_: None
        )
        assert figures[images] == {
            name: one["value"] for name, one in alone.as_dict()["figures"].items()
        }
    best = min(there, key=lambda images: figures[images]["mse"])
    assert done.as_dict()["best_images"] == best
    assert f"--checkpoint {best}" in "\n".join(done.lines())
    assert [int(path.name) for path in checkpoint.complete(own / "followed")] == [best]
    weights = udl_dist.load(own, checkpoint=best).origin.weights
    shutil.rmtree(own / "checkpoints" / f"{best:012d}")
    assert udl_dist.load(own, checkpoint=best).origin.weights == weights
    worst = max(figures, key=lambda images: figures[images]["psnr"])
    assert follow(own, "psnr").as_dict()["best_images"] == worst  # of decibels more is better


def test_what_was_measured_is_not_measured_again_unless_the_weights_are_others(
    own: Path, trained: dict[str, Path], tmp_path: Path
) -> None:
    said: list[str] = []
    follow(own, say=said.append)
    assert len(said) == len(checkpoint.complete(own / "checkpoints"))
    follow(own, say=said.append)
    assert len(said) == len(checkpoint.complete(own / "checkpoints"))
    other = run("ae", packed(tmp_path / "data"), tmp_path / "other", train__seed="5")
    last = checkpoint.complete(own / "checkpoints")[-1]
    checkpoint.adopt(other / "checkpoints" / last.name, own / "checkpoints")
    follow(own, say=said.append)
    assert said[-1].startswith(f"after {int(last.name):,} images: mse ")
    assert len(said) == len(checkpoint.complete(own / "checkpoints")) + 1


def held(folder: Path, train: Callable[[], object]) -> None:
    """Train as `udl train` does: the run folder is held meanwhile."""
    with RunFolder(folder).held():
        train()


def test_a_run_that_goes_on_is_followed_to_its_end_and_learns_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "POLL_SECONDS", 0.02)
    source = packed(tmp_path / "data")
    wanted = {
        "evaluate__every_images": "480",
        "train__total_images": "9600",
        "run__keep_checkpoints": "99",
    }
    alone = run("ae", source, tmp_path / "alone", **wanted)
    folder = tmp_path / "run"
    training = threading.Thread(
        target=held, args=(folder, partial(run, "ae", source, folder, **wanted))
    )
    training.start()
    try:
        while not (folder / "experiment.toml").exists():
            assert training.is_alive()
        done = follow(folder, "mse")
    finally:
        training.join()
    figures = done.as_dict()["figures"]
    assert sorted(figures) == list(range(480, 9601, 480))
    assert checkpoint.weights(
        tmp_path / "run" / "checkpoints" / f"{9600:012d}"
    ) == checkpoint.weights(alone / "checkpoints" / f"{9600:012d}")
    best = done.as_dict()["best_images"]
    assert udl_dist.load(tmp_path / "run", checkpoint=best).origin.images == best


def test_a_damaged_checkpoint_is_passed_over_with_a_word(own: Path) -> None:
    first, *others = checkpoint.complete(own / "checkpoints")
    (first / "networks.safetensors").write_bytes(b"torn")
    said: list[str] = []
    figures = follow(own, say=said.append).as_dict()["figures"]
    assert sorted(figures) == [int(path.name) for path in others]
    assert said[0].startswith(f"passed over: {first.name}: ") and "damaged" in said[0]
    checkpoint.discard(others[0])  # as the run does with all but the newest
    (own / "followed" / f"{others[0].name}.json").write_text("torn")
    figures = follow(own, "mse").as_dict()["figures"]
    assert sorted(figures) == [int(path.name) for path in others[1:]]


def test_a_disk_that_refuses_a_copy_ends_it_in_one_line_and_the_same_command_goes_on(
    own: Path,
) -> None:
    checkpoints = checkpoint.complete(own / "checkpoints")
    follow(own, say=lambda line: None)
    for path in checkpoints[1:]:
        (own / "followed" / f"{path.name}.json").unlink()
    most = (
        checkpoint.path_of(own / "checkpoints", int(checkpoints[1].name)) / "networks.safetensors"
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (most.stat().st_size - 1, resource.RLIM_INFINITY))
    try:
        with pytest.raises(UsageError, match="cannot write .*followed") as refusal:
            follow(own)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert "File too large" in str(refusal.value)
    assert not list((own / "followed").glob(f"{checkpoint.TEMPORARY}*"))
    assert len(follow(own).as_dict()["figures"]) == len(checkpoints)


def test_a_checkpoint_that_gives_no_numbers_is_passed_over(own: Path) -> None:
    first, *others = checkpoint.complete(own / "checkpoints")
    files, facts = checkpoint.load(first)
    broken = {name: value * torch.nan for name, value in files["networks"].items()}
    checkpoint.save(own / "checkpoints", int(first.name), files | {"networks": broken}, facts)
    (others[0] / "manifest.json").write_text("torn")
    said: list[str] = []
    figures = follow(own, say=said.append).as_dict()["figures"]
    assert sorted(figures) == [int(path.name) for path in others[1:]]
    assert "not finite" in said[0] and "damaged" in said[1]


def test_what_cannot_be_followed_is_refused_in_one_line(own: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a run folder: it has no experiment\.toml"):
        follow(tmp_path)
    with pytest.raises(UsageError, match="there is no metric 'mze': .*mse"):
        follow(own, "mze")
    with pytest.raises(UsageError, match=r"holds metrics of other settings \(asked\.json\)"):
        follow(own, asked=MetricSettings(families=("reconstruction",)))
    follow(
        own, asked=MetricSettings(families=("reconstruction",), noise=(), readers=2)
    )  # changes no figure
    held = disk.lock(own / "followed")
    with pytest.raises(UsageError, match="is written by another udl evaluate --follow"):
        follow(own)
    assert held is not None
    shutil.rmtree(own / "followed")
    shutil.rmtree(own / "checkpoints")
    with pytest.raises(TrainingError, match="has no complete checkpoint and no process trains it"):
        follow(own)


def test_the_command_follows_and_refuses_flags_that_it_would_ignore(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(own), "--follow", "--families", "reconstruction", "--json"]
    assert ended([*words, "--best", "mse"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["best"] == "mse"
    assert "after 480 images: mse " in printed.err
    assert ended([*words, "--out", "x.json"]) == 2
    assert ended(["evaluate", str(own), "--best", "mse"]) == 2
