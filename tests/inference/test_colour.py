"""Colour goes the whole way: trained, rebuilt, scored, exported, measured, reported."""

from pathlib import Path

import numpy as np
from PIL import Image

import udl_dist
from tests.trained import run
from udl_dist.data.packing.pack import pack
from udl_dist.data.settings import PackSettings
from udl_dist.evaluation.settings import MetricSettings
from udl_dist.inference import drawing, evaluating, scoring
from udl_dist.inference.export import ExportSettings, export
from udl_dist.methods.pixels import levels
from udl_dist.reporting.report import report


def test_colour_goes_the_whole_way(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 40, 40, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    pack(
        str(tmp_path / "images.npy"),
        str(tmp_path / "packed"),
        PackSettings(size=40, channels=3, format="npy", held_out_fraction=0.2),
    )
    flags = {"data__channels": "3", "data__size": "40", "train__total_images": "120"}
    folder = run("ae", tmp_path / "packed", tmp_path / "run", **flags)
    model = udl_dist.load(folder)
    Image.fromarray(pixels[0]).save(tmp_path / "one.png")
    drawing.reconstruct(model, [str(tmp_path / "one.png")], 5, tmp_path / "made")
    with Image.open(tmp_path / "made" / "000000-one.png") as rebuilt:
        assert (
            np.asarray(rebuilt)
            == levels(model.reconstruct(pixels[:1])).numpy()[0].transpose(1, 2, 0)
        ).all()
    scoring.score(
        model, [str(tmp_path / "one.png")], "auto", scoring.Threshold(0.9), 0, tmp_path / "scores"
    )
    export(model, tmp_path / "model", ExportSettings())
    assert udl_dist.load(tmp_path / "model").shape == (3, 40, 40)
    wanted = MetricSettings(families=("reconstruction",))
    done = evaluating.evaluate(model, wanted, None, lambda done, total: None)
    mse = done.as_dict()["figures"]["mse"]
    assert mse["floor"]["PCA of 4 numbers"] > 0
    assert mse["protocol"]["pca"].startswith("fitted to 4")
    # Of the run with its evaluation.
    assert report(str(folder)).faults == []
