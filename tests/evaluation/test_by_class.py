"""Metrics within each class are exact, and add up to those of all images."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import udl_dist
from tests.methods.cases import CLASSES, SHAPE, batch, made
from udl_dist.evaluation import io
from udl_dist.evaluation.distribution import Distribution
from udl_dist.evaluation.io import ClassMetric, Metric
from udl_dist.evaluation.metric_group import (
    HELD_OUT,
    Extractor,
    MetricBatch,
    PartialSums,
    Subject,
    summed,
)
from udl_dist.evaluation.settings import MetricSettings
from udl_dist.inference import evaluating
from udl_dist.inference.sources import open_run
from udl_dist.reporting.report import report
from udl_dist.training.batches import to_batch


def test_sums_within_classes_are_those_of_their_images_in_any_parts() -> None:
    values, labels = torch.tensor([1.0, 2, 4, 8, 16, 32]), torch.tensor([0, 7, 7, -1, 0, 7])
    halves = [summed({"error": values[part]}, labels[part]) for part in (slice(4), slice(4, 6))]
    for found in (summed({"error": values}, labels), PartialSums.joined(halves)):
        assert float(found.mean("error")) == 63 / 6
        within = {label: float(one.mean("error")) for label, one in found.classes.items()}
        assert within == {0: 17 / 2, 7: 38 / 3}
        assert [one.images for one in found.classes.values()] == [2, 3]


@pytest.mark.parametrize(("images", "of_class"), [(33, 11), (12, 4)])
def test_a_frechet_distance_within_a_class_needs_more_images_than_features(
    images: int, of_class: int
) -> None:
    method, data = made("gan", {"conditional": True, "width": 4}), batch(images)
    shift = torch.tensor([0.0, 0.5, 1.0])

    def sample(keys: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return data.images + shift[labels].view(-1, 1, 1, 1)

    # Ten pixels as they are: of equal covariances the distance is that of the means.
    extractor = Extractor("ten pixels", lambda shown: shown.flatten(1)[:, :10])
    asked = MetricSettings(seeds=2, pairs=0)
    subject = Subject(method, SHAPE, 64, asked, extractor, sample, "a shift", classes=CLASSES)
    group = Distribution(subject)
    assert data.labels is not None
    collected = group.collect(HELD_OUT, MetricBatch(data, data.labels, 0))
    found = group.metrics(collected, None, group.reference(collected, None))["frechet"].classes
    if of_class <= 10:
        assert found == {}
    else:
        assert {one.images for one in found.values()} == {of_class}
        values = [found[name].value for name in CLASSES]
        assert values == pytest.approx([0, 10 * 0.25, 10 * 1.0], abs=1e-6)


def test_the_share_of_images_that_a_classifier_takes_for_the_class_asked_for() -> None:
    method, data = made("gan", {"conditional": True, "width": 4}), batch(12)

    def sample(keys: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        # The class itself, but for class 2, of which each is made as class 0.
        return (labels % 2).view(-1, 1, 1, 1).expand(-1, *SHAPE).float()

    def logits(rows: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(rows[:, 0].round().long() % 3, 3).float()

    first = Extractor("the first pixel", lambda shown: shown.flatten(1)[:, :10], logits=logits)
    asked = MetricSettings(seeds=2, pairs=0)
    assert data.labels is not None
    for classes, expected in ((CLASSES, 2 / 3), ((*CLASSES, "another"), None)):
        subject = Subject(method, SHAPE, 64, asked, first, sample, "a rule", classes=classes)
        group = Distribution(subject)
        real = replace(data, images=data.labels.view(-1, 1, 1, 1).expand(-1, *SHAPE).float())
        collected = group.collect(HELD_OUT, MetricBatch(real, data.labels, 0))
        found = group.metrics(collected, None, group.reference(collected, None))
        if expected is None:  # a classifier of other classes
            assert "label_agreement" not in found
            continue
        agreement = found["label_agreement"]
        assert agreement.value == pytest.approx(expected) and agreement.sd == 0
        assert list(agreement.floor.values()) == [1.0]
        within = [agreement.classes[name] for name in CLASSES]
        assert within == [ClassMetric(1.0, 4), ClassMetric(1.0, 4), ClassMetric(0.0, 4)]


def test_an_evaluation_has_a_table_of_classes_that_the_report_shows(
    labelled: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(labelled, tmp_path / "run")
    model = udl_dist.load(own)
    asked = MetricSettings(families=("reconstruction", "likelihood"), bound_samples=2)
    done = evaluating.evaluate(model, asked, None, lambda done, total: None)
    by_hand: dict[str, list[Tensor]] = {}
    assert model.origin.experiment
    _, held_out = open_run(model.origin.experiment)
    assert held_out
    for records in held_out.once(16):
        data = to_batch(records, torch.device("cpu"))
        with torch.no_grad():
            error = (model.method.reconstruct(data.images) - data.images).div(2).square()
        for label, one in zip(records.labels.tolist(), error.flatten(1).mean(1), strict=True):
            by_hand.setdefault(str(label), []).append(one)
    figures = json.loads((own / io.NAME).read_text())["figures"]
    found = figures["mse"]["classes"]
    assert found.keys() == by_hand.keys() == set("0123")
    for name, errors in by_hand.items():
        assert found[name]["images"] == len(errors)
        assert found[name]["value"] == pytest.approx(float(torch.stack(errors).mean()), rel=1e-5)
    for metric in ("mse", "psnr", "negative_elbo", "kl"):
        entry = figures[metric]
        parts = [one["value"] * one["images"] for one in entry["classes"].values()]
        assert sum(parts) / held_out.records == pytest.approx(entry["value"], rel=1e-9)
    assert "class  images  mse" in "\n".join(done.lines())
    report(str(own), own / "page.html")
    page = (own / "page.html").read_text()
    assert "Metrics by class" in page
    assert f"<td>{found['2']['value']:.5g}</td>" in page


def test_a_damaged_table_of_classes_is_left_out(tmp_path: Path) -> None:
    good = {"value": 2, "images": 3}
    classes = {"ash": good, "elm": {"value": "much", "images": 3}, "oak": 5}
    entries = {"mse": {"value": 1.0, "classes": classes}, "psnr": {"value": 2.0, "classes": [1]}}
    (tmp_path / io.NAME).write_text(json.dumps({"figures": entries}))
    found = io.metrics_in(tmp_path / io.NAME, [])
    assert found["mse"].classes == {"ash": ClassMetric(2.0, 3)}
    assert found["psnr"].classes == {}
    found["kl"] = Metric(1.0, classes={"elm": ClassMetric(0.5, 1)})
    head = ["class", "images", "mse", "kl"]
    assert io.class_rows(found) == (head, [["ash", "3", "2", "–"], ["elm", "1", "–", "0.5"]])
