"""What is handed to the verbs that use a model, and should not be: one line, an exit code, and
nothing left behind.
"""

import shutil
from pathlib import Path

import pytest

import udl_dist
from tests.trained import METHODS
from tests.training.learn import packed
from udl_dist import cli
from udl_dist.errors import UsageError
from udl_dist.evaluation.settings import MetricSettings
from udl_dist.inference.evaluating import evaluate

VERBS = {
    "sample": [],
    "reconstruct": ["digits"],
    "traverse": [],
    "embed": ["digits", "DEST"],
    "score": ["digits"],
    "evaluate": [],
    "fit-prior": [],
    "export": ["DEST"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_run_without_a_checkpoint_is_refused_by_every_verb(
    verb: str, trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained["ae"], tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    arguments = [str(tmp_path / "dest") if word == "DEST" else word for word in VERBS[verb]]
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, str(tmp_path / "run"), *arguments])
    assert ended.value.code == 4
    said = capsys.readouterr().err.strip()
    assert "has no checkpoint yet: train it first" in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "dest").exists()


@pytest.mark.parametrize("method", METHODS)
def test_one_image_has_the_figures_that_one_can_have(
    method: str, trained: dict[str, Path], tmp_path: Path
) -> None:
    model = udl_dist.load(trained[method])
    asked = MetricSettings(images=1, bound_samples=2)
    if method == "gan":
        with pytest.raises(
            UsageError, match="has no metrics: .*needs 50 images or more, there are 1"
        ):
            evaluate(model, asked, tmp_path / "out.json", lambda done, total: None)
        return
    found = evaluate(model, asked, tmp_path / "out.json", lambda done, total: None).as_dict()
    assert found["figures"]["mse"]["protocol"]["n"] == 1
    assert any("distribution" in note for note in found["skipped"])


def test_images_of_another_size_are_brought_to_the_model_s(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    source = str(packed(tmp_path / "data", 60, size=16) / "train")
    asked = MetricSettings(data=source, families=("reconstruction",))
    found = evaluate(
        udl_dist.load(trained["ae"]), asked, tmp_path / "out.json", lambda done, total: None
    ).as_dict()
    assert found["figures"]["mse"]["protocol"]["size"] == "1×8×8"
