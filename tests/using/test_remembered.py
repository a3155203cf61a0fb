"""Features of real images are extracted once; figures are the same to the bit, whatever lies in the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import udl_dist
from tests.trained import corners, run
from udl_dist.evaluation.extractor import Classifier
from udl_dist.evaluation.settings import FigureSettings
from udl_dist.using import remembered
from udl_dist.using.evaluating import evaluate


@pytest.fixture(scope="module")
def trained_here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remembered")
    corners(folder / "made.npz")
    torch.manual_seed(0)
    made = Classifier((1, 8, 8), 4)
    made.save(folder / "extractor.safetensors")
    return run("vae", folder / "made.npz", folder / "vae", data__held_out_fraction="0.25", data__cache=str(folder))


@pytest.fixture
def cache(trained_here: Path) -> Path:
    folder = trained_here.parent / "features"
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


def measured(run_folder: Path, out: Path, workers: int = 0, seed: int = 0) -> bytes:
    asked = FigureSettings(families=("distribution",), seeds=1, seed=seed, workers=workers,
                           extractor=str(run_folder.parent / "extractor.safetensors"))  # fmt: skip
    evaluate(udl_dist.load(run_folder), asked, out, lambda done, total: None)
    return out.read_bytes()


def test_a_second_evaluation_looks_at_generated_images_alone(
    trained_here: Path, cache: Path, looked: list[int], tmp_path: Path
) -> None:
    first = measured(trained_here, tmp_path / "1.json")
    everything = sum(looked)
    looked.clear()
    assert measured(trained_here, tmp_path / "2.json") == first
    held_out = everything - 400  # real ones, training and held out, are 400
    assert sum(looked) == held_out
    assert len(list(cache.iterdir())) == 3  # two parts of training images, one of held-out ones


def test_a_damaged_or_foreign_file_is_made_anew(
    trained_here: Path, cache: Path, looked: list[int], tmp_path: Path
) -> None:
    first = measured(trained_here, tmp_path / "1.json")
    everything = sum(looked)
    kept = sorted(cache.iterdir())
    good = [path.read_bytes() for path in kept]
    flipped = bytearray(good[0])
    flipped[-3] ^= 1
    kept[0].write_bytes(flipped)
    kept[1].write_bytes(good[0])  # whole, and of another part
    save_file({"features": load_file(kept[2])["features"] + 1}, kept[2])  # without its facts
    looked.clear()
    assert measured(trained_here, tmp_path / "2.json") == first
    assert sum(looked) == everything
    looked.clear()
    assert measured(trained_here, tmp_path / "4.json") == first
    assert sum(looked) == everything - 400  # mended
    for path in kept:
        path.write_bytes(b"torn")
    assert measured(trained_here, tmp_path / "3.json") == first


def test_no_more_is_kept_than_is_allowed_and_a_cache_that_cannot_be_written_costs_no_figure(
    trained_here: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured(trained_here, tmp_path / "1.json")
    largest = max(path.stat().st_size for path in cache.iterdir())
    for path in cache.iterdir():
        path.unlink()
    monkeypatch.setattr(remembered, "MOST_BYTES", largest)
    measured(trained_here, tmp_path / "2.json")
    assert len(list(cache.iterdir())) == 1
    next(cache.iterdir()).unlink()
    cache.rmdir()
    cache.write_text("a file where a folder should be")
    try:
        assert measured(trained_here, tmp_path / "3.json") == first
    finally:
        cache.unlink()


@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("default")
def test_two_workers_make_the_same_bytes_with_and_without_what_is_remembered(
    trained_here: Path, cache: Path, looked: list[int], tmp_path: Path
) -> None:
    bare = measured(trained_here, tmp_path / "1.json", workers=2)
    assert len(list(cache.iterdir())) == 3
    assert measured(trained_here, tmp_path / "2.json", workers=2) == bare
    assert measured(trained_here, tmp_path / "3.json") == bare  # from what the workers kept
    for path in cache.iterdir():
        path.unlink()
    assert measured(trained_here, tmp_path / "4.json") == bare
