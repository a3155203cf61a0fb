"""Metrics of a trained model: with protocol and floors, the same over any number of workers."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import udl_dist
from tests.trained import run
from tests.training.learn import packed
from udl_dist.data.packing.pack import pack
from udl_dist.data.settings import PackSettings
from udl_dist.errors import DataError, TrainingError, UsageError
from udl_dist.evaluation import extractor
from udl_dist.evaluation.settings import ExtractorSettings, MetricSettings
from udl_dist.inference import evaluating
from udl_dist.inference.extractor_fitting import fit_extractor
from udl_dist.inference.fitting import fit_prior
from udl_dist.inference.inputs import scaled
from udl_dist.inference.model import Model
from udl_dist.reporting.run_reader import read_run


def evaluate(model: Model, out: Path, **asked: Any) -> dict[str, Any]:
    wanted = MetricSettings(**{"bound_samples": 4, **asked})
    done = evaluating.evaluate(model, wanted, out / "evaluation.json", lambda done, total: None)
    assert done.lines()
    return done.as_dict()


def test_figures_are_those_of_the_run_s_own_validation(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    for method in ("ae", "vae"):
        model = udl_dist.load(trained[method])
        found = evaluate(model, tmp_path, families=("reconstruction",))["figures"]
        assert found["mse"]["value"] == pytest.approx(model.origin.figures["val/mse"], rel=1e-5)
        assert "PCA of 4 numbers" in found["mse"]["floor"]  # of images of rank 4: rounding
        assert "ssim" not in found  # of images smaller than its window


def test_each_figure_is_stored_with_its_protocol_and_read_by_reports(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    model = udl_dist.load(trained["ae"])
    done = evaluate(model, tmp_path, families=("reconstruction",))
    stored = json.loads((tmp_path / "evaluation.json").read_text())["figures"]
    assert stored == done["figures"]
    protocol = stored["mse"]["protocol"]
    assert (protocol["split"], protocol["size"], protocol["checkpoint"]) == (
        "held_out",
        "1×8×8",
        model.origin.images,
    )
    assert protocol["weights"] == model.origin.weights
    (tmp_path / "experiment.toml").write_text((trained["ae"] / "experiment.toml").read_text())
    assert read_run(tmp_path).evaluation["mse"].value == stored["mse"]["value"]
    # Metrics of other weights are dropped, those of the same weights stay.
    (tmp_path / "evaluation.json").write_text(
        json.dumps(
            {
                "figures": {
                    "old": {"value": 1.0, "protocol": {"weights": "other"}},
                    "kept": stored["mse"],
                }
            }
        )
    )
    evaluate(model, tmp_path, families=("reconstruction",))
    assert set(json.loads((tmp_path / "evaluation.json").read_text())["figures"]) == {
        *stored,
        "kept",
    }


def test_what_a_method_cannot_have_is_refused_with_what_it_has(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no reconstruction: it cannot reconstruct; it has "):
        evaluate(udl_dist.load(trained["gan"]), tmp_path, families=("reconstruction",))
    with pytest.raises(UsageError, match=r"unknown metric group 'reconstuction': .*reconstruction"):
        evaluate(udl_dist.load(trained["ae"]), tmp_path, families=("reconstuction",))
    assert not (tmp_path / "evaluation.json").exists()


def test_numbers_that_are_not_finite_are_no_figures(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    model = udl_dist.load(trained["ae"])
    next(model.method.networks["decoder"].parameters()).data.fill_(torch.nan)
    with pytest.raises(TrainingError, match="not finite: use another checkpoint"):
        evaluate(model, tmp_path)


def test_a_run_that_holds_nothing_out_asks_for_images(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    from udl_dist.inference.export import ExportSettings, export

    export(udl_dist.load(trained["ae"]), tmp_path / "model", ExportSettings())
    exported = udl_dist.load(tmp_path / "model")
    with pytest.raises(
        UsageError, match="holds no images out that can be measured: name some with --data"
    ):
        evaluate(exported, tmp_path)
    source = packed(tmp_path / "data", 20) / "train"
    found = evaluate(exported, tmp_path, data=str(source), families=("reconstruction",))["figures"]
    assert found["mse"]["floor"] is None
    assert found["mse"]["protocol"]["pca"] == "none: no training images"


def test_some_images_are_a_random_part_of_all(trained: dict[str, Path], tmp_path: Path) -> None:
    source = str(packed(tmp_path / "data", 100) / "train")
    model = udl_dist.load(trained["ae"])
    part, whole = (
        evaluate(model, tmp_path, data=source, images=count, families=("reconstruction",))[
            "figures"
        ]["mse"]
        for count in (50, 0)
    )
    assert (part["protocol"]["n"], whole["protocol"]["n"]) == (50, 76)
    assert part["value"] != whole["value"] == pytest.approx(part["value"], rel=0.2)


def test_codes_and_sets_of_images_stand_next_to_pixels_and_real_images(
    labelled: Path, tmp_path: Path
) -> None:
    model = udl_dist.load(labelled)
    first, second = (evaluate(model, tmp_path) for _ in range(2))
    assert first["figures"] == second["figures"]  # chance comes from the seed
    skipped = [note.split(":")[0].removeprefix("no ") for note in first["skipped"]]
    assert skipped == [
        "anomaly",
        "ssim",
        "ms_ssim",
        "class_score, modes, mode_kl",
    ]  # no class left out, small images, no classifier
    figures = first["figures"]
    assert figures["knn_accuracy"]["floor"] == {
        "raw pixels": 1.0,
        "always the commonest class": pytest.approx(0.3, abs=0.1),
    }
    assert figures["cluster_nmi"]["floor"]["raw pixels"] > 0.9
    (drawn,) = first["maps"]
    with Image.open(drawn) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(10**6) or []}
    assert picture.format == "PNG" and min(picture.size) > 600 and len(colours) > 100
    (floor,) = figures["frechet"]["floor"].values()
    assert 0 < floor < figures["frechet"]["value"]
    assert figures["frechet"]["sd"] > 0
    assert figures["frechet"]["protocol"]["extractor"] == "multi-scale descriptor 1"


def test_averaged_pixels_tell_one_distance_and_what_they_cannot_see(
    labelled: Path, tmp_path: Path
) -> None:
    done = evaluate(
        udl_dist.load(labelled), tmp_path, families=("distribution",), extractor="pixels"
    )
    assert list(done["figures"]) == ["frechet"]
    protocol = done["figures"]["frechet"]["protocol"]
    assert protocol["extractor"] == "pixels averaged to 8×8"
    assert protocol["cannot_see"].startswith("anything finer than 8×8 pixels")
    (skipped,) = (note for note in done["skipped"] if "precision" in note)
    assert "cannot see anything finer than 8×8 pixels" in skipped


def test_pairs_and_the_bound_can_be_left_out_and_pairs_be_fewer(
    labelled: Path, tmp_path: Path
) -> None:
    model = udl_dist.load(labelled)
    families = ("likelihood", "distribution")
    lean = evaluate(model, tmp_path / "lean", families=families, pairs=0, bound_samples=0)[
        "figures"
    ]
    assert {"negative_elbo", "kl", "active_units", "frechet"} == set(lean) - {"bits_per_dimension"}
    some = evaluate(model, tmp_path / "some", families=families, pairs=60, bound_samples=2)[
        "figures"
    ]
    assert some["frechet"] == lean["frechet"]
    assert some["negative_elbo"]["floor"] == {"bound of 2 latents": some["iwae_2"]["value"]}
    every = evaluate(model, tmp_path / "every", families=families)["figures"]
    for name in ("kernel_distance", "precision", "recall", "density", "coverage"):
        assert some[name]["protocol"]["pairs_of"] == 60
        assert every[name]["protocol"]["pairs_of"] == every[name]["protocol"]["n"]
    assert some["kernel_distance"]["value"] != every["kernel_distance"]["value"]


def test_a_vae_is_measured_as_it_draws_from_its_own_prior_or_from_a_mixture(
    labelled: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(labelled, tmp_path / "vae"))
    families = ("distribution",)
    with pytest.raises(UsageError, match="no mixture to draw from: run udl fit-prior first"):
        evaluate(udl_dist.load(own), tmp_path, families=families, prior="mixture")
    fitted = fit_prior(udl_dist.load(own), 3, 50, 0, lambda done, total: None).values
    first, mixed, again = (
        evaluate(udl_dist.load(own), tmp_path, families=families, prior=prior)["figures"]["frechet"]
        for prior in ("auto", "mixture", "own")
    )
    # The one whose images were nearer to held-out ones.
    assert first == (mixed if fitted["preferred"] else again)
    assert fitted["preferred"] == (fitted["frechet_mixture"] < fitted["frechet_own"])
    assert mixed["value"] != again["value"]
    assert mixed["protocol"]["sampled_from"] == "a mixture of 3 Gaussians over codes"


def test_a_family_without_labels_or_images_enough_is_left_out_and_refused_when_asked_for(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    model = udl_dist.load(trained["vae"])
    source = str(packed(tmp_path / "data", 100) / "train")
    assert any(
        "have no labels" in note for note in evaluate(model, tmp_path, data=source)["skipped"]
    )
    with pytest.raises(UsageError, match="no representation: its images have no labels"):
        evaluate(model, tmp_path, data=source, families=("representation",))
    with pytest.raises(
        UsageError, match="no distribution: it needs 50 images or more, there are 18; it has "
    ):
        evaluate(model, tmp_path, families=("distribution",))
    with pytest.raises(UsageError, match="no distribution: it cannot sample"):
        evaluate(udl_dist.load(trained["ae"]), tmp_path, data=source, families=("distribution",))
    with pytest.raises(
        UsageError, match="no likelihood: it has no likelihood, so no ELBO; it has distribution"
    ):
        evaluate(udl_dist.load(trained["gan"]), tmp_path, data=source, families=("likelihood",))


@pytest.mark.parametrize("method", ["ae", "kl"])
def test_reconstructions_are_compared_with_the_same_images(
    source: Path, trained: dict[str, Path], tmp_path: Path, method: str
) -> None:
    folder = trained.get(method) or run(
        method, source, tmp_path / method, train__total_images="12", evaluate__every_images="0"
    )
    data, families = str(packed(tmp_path / "data", 100) / "train"), ("reconstruction_distance",)
    found = evaluate(udl_dist.load(folder), tmp_path, data=data, families=families)["figures"]
    assert list(found) == ["reconstruction_frechet", "reconstruction_kernel_distance"]
    for metric in found.values():
        assert metric["value"] > 0
        assert metric["floor"] == {"images and themselves": 0.0}
        assert metric["protocol"]["n"] == 76
    with pytest.raises(UsageError, match="no reconstruction_distance: it cannot reconstruct"):
        evaluate(udl_dist.load(trained["gan"]), tmp_path, data=data, families=families)


def test_an_extractor_is_fitted_stored_and_named_by_its_hash(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = tmp_path / "made.safetensors"
    wanted = ExtractorSettings(size=8, epochs=6, readers=0)
    source = str(labelled.parent / "made.npz")
    done = fit_extractor(source, made, wanted, lambda done, total: None).as_dict()
    assert done["accuracy"] > 0.9
    read, images = (
        extractor.load_classifier(made, (1, 8, 8)),
        torch.from_numpy(np.load(source)["images"])[:, None],
    )
    with torch.no_grad():
        bare, brought = (
            read.activated(scaled(images.numpy())).var(0),
            read.features(scaled(images.numpy())).var(0),
        )
    assert float(brought.mean()) == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(
        brought / brought.mean(), bare / bare.mean()
    )  # none is made louder than another
    model = udl_dist.load(labelled)
    figures = evaluate(model, tmp_path, extractor=str(made), families=("distribution",))["figures"]
    assert figures["frechet"]["protocol"]["extractor_sha256"] == done["sha256"]
    (real,) = figures["class_score"]["floor"].values()
    assert 3 < real <= 4 and 1 <= figures["class_score"]["value"] <= 4
    (real,) = figures["modes"]["floor"].values()
    assert real == 4 and 1 <= figures["modes"]["value"] <= 4
    assert 0 <= figures["mode_kl"]["value"] <= math.log(4)
    with pytest.raises(UsageError, match="exists: name a new file"):
        fit_extractor(source, made, wanted, lambda done, total: None)
    with pytest.raises(DataError, match="no label"):
        unlabelled = packed(tmp_path / "bare", 30)
        fit_extractor(str(unlabelled), tmp_path / "other", wanted, lambda done, total: None)


@pytest.mark.long
def test_an_extractor_learns_a_thousand_classes(tmp_path: Path) -> None:
    """By ReLU all features soon were 0, without a gradient: it took all images for one class."""
    pack("digits", str(tmp_path / "stacked"), PackSettings(stack=3))
    wanted, made = ExtractorSettings(epochs=4, readers=0), tmp_path / "made"
    source = str(tmp_path / "stacked")
    done = fit_extractor(source, made, wanted, lambda done, total: None).as_dict()
    assert done["classes"] == 1000 and done["accuracy"] > 0.02  # chance: 0.001


@pytest.mark.filterwarnings("ignore")
def test_sets_are_compared_by_a_network_of_one_s_own_that_is_trusted(
    labelled: Path, tmp_path: Path
) -> None:
    model, mine = udl_dist.load(labelled), tmp_path / "mine.pt"
    scripted = torch.jit.trace(torch.nn.AvgPool2d(2), torch.zeros(2, 1, 8, 8))  # type: ignore[no-untyped-call]
    torch.jit.save(scripted, str(mine))
    asked: dict[str, Any] = {"families": ("distribution",), "extractor": str(mine)}
    with pytest.raises(UsageError, match="say --trust-extractor true"):
        evaluate(model, tmp_path, **asked)
    done = evaluate(model, tmp_path, trust_extractor=True, **asked)
    protocol = done["figures"]["frechet"]["protocol"]
    assert (protocol["extractor"], len(protocol["extractor_sha256"])) == ("mine.pt", 64)
    assert done["skipped"] == [
        "no class_score, modes, mode_kl: the extractor (mine.pt) is not a classifier: make one"
        " with udl fit-extractor"
    ]


@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("counts", [(2,), pytest.param((1, 3), marks=pytest.mark.long)])
def test_any_number_of_workers_makes_the_same_figures(
    trained: dict[str, Path], tmp_path: Path, counts: tuple[int, ...]
) -> None:
    source = str(packed(tmp_path / "data", 900) / "train")
    model = udl_dist.load(trained["vae"])
    found = []
    for workers in (0, *counts):
        shutil.rmtree(
            stored := trained["vae"].parent / "cache" / "references", ignore_errors=True
        )  # each makes its own
        found.append(evaluate(model, tmp_path, data=source, workers=workers)["figures"])
    assert list(stored.iterdir())
    alone, *shared = found
    for other in shared:
        assert {name: entry["value"] for name, entry in other.items()} == pytest.approx(
            {name: entry["value"] for name, entry in alone.items()}, rel=1e-9
        )
        assert other["mse"]["protocol"] == alone["mse"]["protocol"]
