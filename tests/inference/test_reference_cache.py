"""References are computed once; metrics are the same to the bit, whatever is in the cache."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

import udl_dist
from tests.launch.test_worker_data import spoilt
from tests.trained import run
from udl_dist.evaluation.extractor import Classifier
from udl_dist.evaluation.settings import MetricSettings
from udl_dist.inference import reference_cache
from udl_dist.inference.evaluating import evaluate
from udl_dist.inference.measuring import MeasuredPart, Measuring


@pytest.fixture(scope="module", autouse=True)
def made(labelled: Path) -> None:
    """A classifier next to the run, that no one has trained."""
    torch.manual_seed(0)
    Classifier((1, 8, 8), 4).save(labelled.parent / "extractor.safetensors")


@pytest.fixture
def cache(labelled: Path) -> Path:
    folder = labelled.parent / "references"
    for path in folder.glob("*"):
        path.unlink()
    return folder


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the extractor looked at, call by call."""
    calls: list[int] = []
    original = Classifier.features

    def features(self: Classifier, images: Tensor) -> Tensor:
        calls.append(len(images))
        return original(self, images)

    monkeypatch.setattr(Classifier, "features", features)
    return calls


def measured(run_folder: Path, out: Path, **asked_for: Any) -> bytes:
    wanted: dict[str, Any] = {
        "families": ("distribution",),
        "seeds": 1,
        "extractor": str(run_folder.parent / "extractor.safetensors"),
    } | asked_for
    asked = MetricSettings(**wanted)
    evaluate(udl_dist.load(run_folder), asked, out, lambda done, total: None)
    return out.read_bytes()


def test_a_second_evaluation_looks_at_generated_images_alone(
    labelled: Path, cache: Path, looked: list[int], tmp_path: Path
) -> None:
    first = measured(labelled, tmp_path / "1.json")
    everything = sum(looked)
    looked.clear()
    assert measured(labelled, tmp_path / "2.json") == first
    held_out = everything - 400  # real ones, training and held out, are 400
    assert sum(looked) == held_out
    assert len(list(cache.iterdir())) == 1


def test_what_is_known_costs_no_training_image(
    labelled: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    original = Measuring.part

    def part(self: Measuring, which: str, number: int) -> MeasuredPart:
        made.append(which)
        return original(self, which, number)

    monkeypatch.setattr(Measuring, "part", part)
    asked: dict[str, Any] = {"families": ("reconstruction", "likelihood", "distribution")}
    first = measured(labelled, tmp_path / "1.json", **asked)
    assert {"held_out", "train"} == set(made)
    assert len(list(cache.iterdir())) == 2  # the likelihood has none
    made.clear()
    assert measured(labelled, tmp_path / "2.json", **asked) == first
    assert {"held_out"} == set(made)
    made.clear()
    measured(labelled, tmp_path / "3.json", seed=1, **asked)  # other training images in the floor
    assert {"held_out", "train"} == set(made)


def test_codes_are_measured_again_and_pixels_are_not(
    labelled: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[set[str]] = []
    original = Measuring.part

    def part(self: Measuring, which: str, number: int) -> MeasuredPart:
        made = original(self, which, number)
        rows.append(set(made.collected["representation"].rows))
        return made

    monkeypatch.setattr(Measuring, "part", part)
    first = measured(labelled, tmp_path / "1.json", families=("representation",))
    assert len(list(cache.iterdir())) == 1 and all(
        names == {"codes", "pixels", "labels"} for names in rows
    )
    rows.clear()
    assert measured(labelled, tmp_path / "2.json", families=("representation",)) == first
    assert rows and all(names == {"codes", "labels"} for names in rows)
    figures = json.loads(first)["figures"]
    assert all("raw pixels" in one["floor"] for one in figures.values())


def test_a_damaged_or_foreign_file_is_made_again(
    labelled: Path, cache: Path, looked: list[int], tmp_path: Path
) -> None:
    first = measured(labelled, tmp_path / "1.json")
    everything = sum(looked)
    (stored,) = cache.iterdir()
    good = stored.read_bytes()
    measured(labelled, tmp_path / "other.json", seed=1)
    (other,) = (path.read_bytes() for path in cache.iterdir() if path != stored)
    flipped = bytearray(good)
    flipped[-3] ^= 1
    without_facts = save({name: value + 1 for name, value in load(good).items()})
    for bad in (bytes(flipped), other, without_facts, b"torn", b""):
        stored.write_bytes(bad)
        looked.clear()
        assert measured(labelled, tmp_path / "2.json") == first
        assert sum(looked) == everything
        looked.clear()
        assert measured(labelled, tmp_path / "3.json") == first
        assert sum(looked) == everything - 400  # mended


def test_what_another_program_worked_out_is_not_taken(
    labelled: Path,
    cache: Path,
    looked: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured(labelled, tmp_path / "1.json")
    everything = sum(looked)
    looked.clear()
    monkeypatch.setattr(reference_cache, "_program", lambda: "a later version")
    measured(labelled, tmp_path / "2.json")
    assert sum(looked) == everything
    assert len(list(cache.iterdir())) == 2


def test_what_was_taken_of_stand_ins_is_not_stored(cache: Path, tmp_path: Path) -> None:
    """Records that cannot be read may be mended by the next evaluation."""
    source = spoilt(tmp_path / "data", (2,))
    skipping = {
        "data__damaged": "skip",
        "data__damaged_limit": "0.5",
        "data__cache": str(cache.parent),
    }
    model = udl_dist.load(run("ae", source, tmp_path / "ae", **skipping))
    evaluate(
        model,
        MetricSettings(families=("reconstruction",)),
        tmp_path / "1.json",
        lambda done, total: None,
    )
    assert not list(cache.glob("*"))


def test_no_more_is_stored_than_is_allowed_and_a_cache_that_cannot_be_written_costs_no_figure(
    labelled: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured(labelled, tmp_path / "1.json")
    (stored,) = cache.iterdir()
    monkeypatch.setattr(reference_cache, "MOST_BYTES", stored.stat().st_size)
    measured(labelled, tmp_path / "2.json", seed=1)
    assert len(list(cache.iterdir())) == 1
    assert not stored.exists()
    next(cache.iterdir()).unlink()
    cache.rmdir()
    cache.write_text("a file where a folder should be")
    try:
        assert measured(labelled, tmp_path / "3.json") == first
    finally:
        cache.unlink()


@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("default")
def test_two_workers_make_the_same_bytes_with_and_without_what_is_remembered(
    labelled: Path, cache: Path, looked: list[int], tmp_path: Path
) -> None:
    bare = measured(labelled, tmp_path / "1.json", workers=2)
    assert len(list(cache.iterdir())) == 1
    assert measured(labelled, tmp_path / "2.json", workers=2) == bare
    assert measured(labelled, tmp_path / "3.json") == bare
    for path in cache.iterdir():
        path.unlink()
    assert measured(labelled, tmp_path / "4.json") == bare
