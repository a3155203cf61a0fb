"""Reference codes of training images: stored, exported, and images far from them flagged."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import udl_dist
from tests.trained import images, of_corners
from udl_dist.errors import DataError, UsageError
from udl_dist.evaluation.settings import MetricSettings
from udl_dist.inference import scoring
from udl_dist.inference.evaluating import evaluate
from udl_dist.inference.export import ExportSettings, export
from udl_dist.inference.fitting import fit_outliers
from udl_dist.inference.layout import CODES
from udl_dist.inference.model import Model
from udl_dist.training import checkpoint


def fit(model: Model, neighbours: int = 5) -> None:
    fit_outliers(model, neighbours, lambda done, total: None)


@pytest.fixture
def own(trained: dict[str, Path], tmp_path: Path) -> Path:
    """An autoencoder's run of its own, to be written to; its data has 52 training images."""
    return Path(shutil.copytree(trained["ae"], tmp_path / "run"))


def test_scores_are_those_of_scikit_learn_and_more_outside(own: Path) -> None:
    sklearn = pytest.importorskip("sklearn.neighbors")
    bare = udl_dist.load(own)
    assert bare.scores == ("reconstruction",)
    fit(bare)
    model = udl_dist.load(own)
    assert model.scores == ("reconstruction", "code_outlier_factor") and model.reference_codes
    codes = (model.reference_codes.rows + model.reference_codes.centre).numpy()
    assert len(codes) == 52 and len(np.unique(codes, axis=0)) > 40
    theirs = sklearn.LocalOutlierFactor(5, novelty=True).fit(codes)
    given = images(20)
    expected = -theirs.score_samples(model.encode(given).double().numpy())
    np.testing.assert_allclose(
        model.score(given).numpy(), expected, rtol=1e-5
    )  # `auto` is the last score
    torch.testing.assert_close(model.score(given, by="reconstruction"), bare.score(given))


def test_held_out_images_set_its_threshold_again_when_other_neighbours_are_stored(
    own: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "given.npy", images(20))
    found = []
    for neighbours in (5, 9):
        fit(udl_dist.load(own), neighbours)
        model = udl_dist.load(own)
        out = tmp_path / str(neighbours)
        done = scoring.score(
            model, [str(tmp_path / "given.npy")], "auto", scoring.Threshold(0.5), 0, out
        ).as_dict()
        lines = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
        assert done["score"] == "code_outlier_factor" and (out / "oddest.png").exists()
        assert [line["flag"] for line in lines] == [
            line["score"] > done["threshold"] for line in lines
        ]
        found.append(done["threshold"])
    assert found[0] != found[1]


def test_an_exported_model_brings_the_codes_along_and_says_so(own: Path, tmp_path: Path) -> None:
    fit(udl_dist.load(own))
    model = udl_dist.load(own)
    export(model, tmp_path / "model", ExportSettings())
    exported = udl_dist.load(tmp_path / "model")
    assert torch.equal(exported.score(images(20)), model.score(images(20)))
    assert (
        f"`{CODES}` holds the codes of training images"
        in (tmp_path / "model" / "README.md").read_text()
    )
    with pytest.raises(UsageError, match="is an exported model: store the codes of its run"):
        fit(exported)


def test_the_factor_is_that_of_the_figures(tmp_path: Path) -> None:
    """`udl evaluate` and `udl score` tell a class that was left out alike."""
    folder = of_corners(tmp_path, "ae", data__held_out_fraction="0.5", data__without_labels="3")
    asked = MetricSettings(families=("anomaly",), neighbours=5, train_images=0)
    figures = evaluate(udl_dist.load(folder), asked, None, lambda done, total: None).as_dict()[
        "figures"
    ]
    fit(udl_dist.load(folder))
    model = udl_dist.load(folder)
    made = np.load(tmp_path / "made.npz")
    outlying = model.score(made["images"][made["labels"] == 3])
    others = model.score(made["images"][made["labels"] != 3])
    auroc = float((outlying[:, None] > others).double().mean())
    assert auroc == pytest.approx(figures["anomaly_auroc_code_outlier_factor"]["value"], abs=0.1)


def test_codes_of_another_checkpoint_are_left_alone_and_damaged_ones_are_refused(own: Path) -> None:
    fit(udl_dist.load(own))
    other = min(int(path.name) for path in checkpoint.complete(own / "checkpoints"))
    model = udl_dist.load(own, checkpoint=other)
    assert model.reference_codes is None and "run udl fit-outliers again" in model.origin.notes[0]
    # Copies: older safetensors map the file, which is written over here.
    whole = {name: value.clone() for name, value in load_file(own / CODES).items()}
    for changed, why in (
        ({"rows": whole["rows"][:, :3].clone()}, "reference codes of 4 numbers"),
        ({"reach": whole["reach"][:5].clone()}, "not a valid file"),
        ({"neighbours": torch.tensor(52)}, "not a valid file"),
        ({"density": whole["density"] * torch.nan}, "not finite"),
        ({"more": torch.ones(1)}, "not a valid file of reference codes"),
    ):
        save_file(whole | changed, own / CODES)
        with pytest.raises(DataError, match=f"{why}.*: delete it, then run udl fit-outliers again"):
            udl_dist.load(own)
    (own / CODES).write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(DataError, match="not a valid file of reference codes"):
        udl_dist.load(own)
    (own / CODES).unlink()  # the cure that is named
    fit(udl_dist.load(own))
    assert udl_dist.load(own).reference_codes is not None


def test_what_cannot_be_stored_is_refused(trained: dict[str, Path], own: Path) -> None:
    with pytest.raises(UsageError, match="cannot encode"):
        fit(udl_dist.load(trained["gan"]))
    with pytest.raises(UsageError, match="--neighbours 0: give 1 or more"):
        fit(udl_dist.load(own), 0)
    with pytest.raises(UsageError, match="52 training images are too few for 52 neighbours"):
        fit(udl_dist.load(own), 52)
    assert not (own / CODES).exists()
