"""A class that training never saw: its images are in no batch, and `udl evaluate` detects them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import udl_dist
from tests.trained import corners, of_corners
from tests.training.learn import asked, packed
from udl_dist.data.loader.opening import Prepared, open_left_out, open_streams
from udl_dist.data.loader.reader import Stream
from udl_dist.data.packing.prepare import prepare
from udl_dist.errors import DataError, UsageError
from udl_dist.evaluation import anomaly
from udl_dist.evaluation.io import EXTRA
from udl_dist.evaluation.settings import MetricSettings
from udl_dist.inference.evaluating import evaluate


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE that saw three of four classes."""
    return of_corners(tmp_path_factory.mktemp("without"), data__without_labels="3")


def figures(folder: Path, out: Path, **wanted: Any) -> dict[str, Any]:
    settings = MetricSettings(**{"families": ("anomaly",), **wanted})
    done = evaluate(udl_dist.load(folder), settings, out, lambda done, total: None).as_dict()
    found: dict[str, Any] = done["figures"]
    return found


def prepared(folder: Path) -> Prepared:
    experiment = udl_dist.load(folder).origin.experiment
    assert experiment
    return prepare(experiment.data)


def seen(stream: Stream | None) -> tuple[set[int], int]:
    """The labels of a stream, and how many images it has."""
    assert stream
    labels = np.concatenate([records.labels for records in stream.once(50)])
    return set(labels.tolist()), len(labels)


def test_no_stream_but_that_of_the_left_out_has_their_images(without: Path) -> None:
    opened = prepared(without)
    (train, trained), (held_out, others), (left_out, count) = map(
        seen, (*open_streams(opened, 0), open_left_out(opened, 0))
    )
    assert (train, held_out, left_out) == ({0, 1, 2}, {0, 1, 2}, {3})
    everything = replace(opened.settings, without_labels=())
    assert (others, trained) != (0, 0) and count
    assert (
        others + count == seen(open_streams(prepare(everything), 0)[1])[1]
    )  # held out by the same hash
    assert open_left_out(prepare(everything), 0) is None


def test_each_score_has_its_auroc_and_a_threshold_of_normal_images(
    without: Path, tmp_path: Path
) -> None:
    found = figures(without, tmp_path / "out.json")
    scores = ("reconstruction", "negative_elbo", "code_distance", "code_outlier_factor")
    assert set(found) == {
        f"anomaly_{what}_{score}" for what in ("auroc", "detected") for score in scores
    }
    auroc = found["anomaly_auroc_reconstruction"]
    assert 0.5 < auroc["value"] <= 1.0
    assert set(auroc["floor"]) == {
        "PCA of 4 numbers, its error",
        "raw pixels, distance from the mean",
        "raw pixels, outlier factor",
    }
    assert all(0 <= value <= 1 for value in auroc["floor"].values())
    protocol = auroc["protocol"]
    assert (protocol["left_out"], protocol["left_out_n"] + protocol["n"] > 60) == ("3", True)
    detected = found["anomaly_detected_reconstruction"]
    assert detected["floor"]["false alarms"] < 0.3 and 0 <= detected["value"] <= 1
    assert detected["protocol"]["quantile"] == 0.95 and detected["protocol"]["threshold"] > 0


def test_the_scores_are_those_of_the_images_themselves(without: Path, tmp_path: Path) -> None:
    model = udl_dist.load(without)
    opened = prepared(without)
    errors = []
    for stream in (open_left_out(opened, 0), open_streams(opened, 0)[1]):
        assert stream
        images = (
            torch.cat(
                [torch.from_numpy(records.images.copy()) for records in stream.once(50)]
            ).float()
            / 127.5
            - 1
        )
        errors.append((model.reconstruct(images) - images).double().square().flatten(1).mean(1))
    found = figures(without, tmp_path / "out.json")["anomaly_auroc_reconstruction"]["value"]
    assert found == pytest.approx(anomaly.auroc(*errors), abs=1e-6)


def test_neighbours_are_as_many_as_are_asked_for(without: Path, tmp_path: Path) -> None:
    few, many = (
        figures(without, tmp_path / "out.json", neighbours=count)[
            "anomaly_auroc_code_outlier_factor"
        ]
        for count in (2, 40)
    )
    assert (few["protocol"]["neighbours"], many["protocol"]["neighbours"]) == (2, 40)
    assert few["value"] != many["value"]


def test_a_run_that_saw_every_class_has_no_such_figures_and_says_why(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(
        UsageError,
        match=r"no anomaly: no class was left out of its training \(data.without_labels\)",
    ):
        figures(trained["vae"], tmp_path / "out.json")
    with pytest.raises(UsageError, match="no anomaly: it has no score of an image"):
        figures(trained["gan"], tmp_path / "out.json")


def test_too_few_images_are_refused_and_too_few_to_learn_from_leave_neighbours_out(
    without: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        UsageError, match="no anomaly: it needs 20 images or more, there are 1; it has "
    ):
        figures(without, tmp_path / "out.json", images=1)
    found = figures(without, tmp_path / "out.json", train_images=20, neighbours=20)
    assert "anomaly_auroc_code_distance" in found and not any("outlier" in name for name in found)


def test_a_class_that_is_nowhere_and_images_without_labels_are_refused(tmp_path: Path) -> None:
    corners(tmp_path / "made.npz")
    for source, said in (
        (packed(tmp_path / "data"), "has no labels"),
        (tmp_path / "made.npz", "no record of .* is of class 7: name one"),
    ):
        data = asked("ae", source, data__without_labels="0,7", data__cache=str(tmp_path)).data
        with pytest.raises(DataError, match=rf"data\.without_labels: .*{said}"):
            open_streams(prepare(data), 0)


def test_a_class_of_one_of_two_sources_is_left_out_and_one_without_labels_is_refused(
    tmp_path: Path,
) -> None:
    """Images that have no label may be of the class that is to be left out."""
    corners(tmp_path / "four.npz")
    both = np.load(tmp_path / "four.npz")
    few = both["labels"] < 2
    np.savez(tmp_path / "two.npz", images=both["images"][few], labels=both["labels"][few])
    flags = {"data__without_labels": "3", "data__cache": str(tmp_path)}
    data = asked(
        "ae", tmp_path / "two.npz", data__more_sources=str(tmp_path / "four.npz"), **flags
    ).data
    train, _ = open_streams(prepare(data), 0)
    seen = [label for records in train.once(50) for label in records.labels.tolist()]
    assert set(seen) == {0, 1, 2} and len(seen) == train.records
    np.save(tmp_path / "bare.npy", both["images"])
    bare = asked(
        "ae", tmp_path / "four.npz", data__more_sources=str(tmp_path / "bare.npy"), **flags
    ).data
    with pytest.raises(DataError, match="has no labels"):
        open_streams(prepare(bare), 0)


@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("default")
def test_two_workers_make_the_same_bytes(without: Path, tmp_path: Path) -> None:
    stored = []
    for workers in (0, 2):
        figures(without, tmp_path / str(workers), workers=workers)
        stored.append((tmp_path / str(workers)).read_bytes())
    assert stored[0] == stored[1]


def test_without_scikit_learn_outlier_factors_are_left_out_with_the_extra(
    without: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anomaly, "sklearn_missing", lambda: f"it needs scikit-learn: {EXTRA}")
    asked_for = MetricSettings(families=("anomaly",), seed=1)  # not in the cache of references
    out = tmp_path / "out.json"
    done = evaluate(udl_dist.load(without), asked_for, out, lambda done, total: None).as_dict()
    assert not any("outlier" in name for name in done["figures"])
    assert any("pip install 'udl-dist[evaluate]'" in note for note in done["skipped"])
