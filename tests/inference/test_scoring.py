"""Anomaly scores: the same as the model's, flagged above what held-out images stay below, shown
where they differ.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import udl_dist
from tests.trained import images
from udl_dist.errors import DataError, UsageError
from udl_dist.inference import layout, scoring
from udl_dist.inference.calibration import calibration
from udl_dist.inference.export import ExportSettings, export


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    """Twenty random images, which no run has seen the like of."""
    listed = [tmp_path / f"image {number}.png" for number in range(20)]
    for path, pixels in zip(listed, images(20), strict=True):
        Image.fromarray(pixels).save(path)
    return [str(path) for path in listed]


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]


def test_scores_are_the_model_s_and_flags_stand_above_the_threshold(
    trained: dict[str, Path], names: list[str], tmp_path: Path
) -> None:
    model = udl_dist.load(trained["ae"])
    done = scoring.score(
        model, names, "auto", scoring.Threshold(0.9), 0, tmp_path / "out"
    ).as_dict()
    expected = model.score(images(20))
    found = lines(tmp_path / "out")
    assert [line["key"] for line in found] == names
    torch.testing.assert_close(
        torch.tensor([line["score"] for line in found]), expected.float(), atol=1e-6, rtol=1e-5
    )
    assert [line["flag"] for line in found] == (expected > done["threshold"]).tolist()
    assert (done["score"], done["images"]) == ("reconstruction", 20)
    assert done["oddest"][0]["score"] == pytest.approx(float(expected.max()))
    with Image.open(tmp_path / "out" / "oddest.png") as picture:
        assert picture.mode == "RGB"


def test_every_image_of_a_folder_is_scored_by_the_path_it_was_given(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = [
        f"photos/{folder}/{number}.png" for folder in ("cats", "train", "val") for number in (1, 2)
    ]
    for name, pixels in zip(below, images(6), strict=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    model = udl_dist.load(trained["ae"])
    done = scoring.score(
        model, ["photos", "photos/cats/2.png"], "auto", scoring.Threshold(0.9), 0, tmp_path / "out"
    ).as_dict()
    found = lines(tmp_path / "out")
    assert [line["key"] for line in found] == [*below, "photos/cats/2.png"]
    assert done["images"] == 7
    assert found[1]["score"] == pytest.approx(found[6]["score"])  # the same image
    assert model.score(images(6)).tolist() == pytest.approx([line["score"] for line in found[:6]])


def test_the_threshold_is_what_that_part_of_the_held_out_images_stays_below(
    trained: dict[str, Path],
) -> None:
    known = calibration(udl_dist.load(trained["vae"]))
    scores = known.quantiles["negative_elbo"]
    assert known.held_out
    assert known.threshold("negative_elbo", 0.0) == scores[0]
    assert known.threshold("negative_elbo", 1.0) == scores[-1]
    assert known.threshold("negative_elbo", 0.5) == pytest.approx(np.median(scores), rel=1e-3)
    assert (trained["vae"] / layout.CALIBRATION).exists()


def test_a_threshold_can_be_given_and_another_score_asked_for(
    trained: dict[str, Path], names: list[str], tmp_path: Path
) -> None:
    model = udl_dist.load(trained["vae"])
    done = scoring.score(
        model, names, "reconstruction", scoring.Threshold(0.99, 0.0), 0, tmp_path / "out"
    ).as_dict()
    assert (done["flagged"], done["threshold_from"]) == (20, "as given")
    with pytest.raises(UsageError, match="has no score 'fid'"):
        scoring.score(model, names, "fid", scoring.Threshold(0.99), 0, tmp_path / "new")
    with pytest.raises(UsageError, match="--quantile 7 is not a part"):
        scoring.score(model, names, "auto", scoring.Threshold(7), 0, tmp_path / "new")
    with pytest.raises(UsageError, match="cannot score, it can decode, sample"):
        scoring.score(
            udl_dist.load(trained["gan"]),
            names,
            "auto",
            scoring.Threshold(0.9),
            0,
            tmp_path / "new",
        )
    assert not (tmp_path / "new").exists()


def test_an_exported_model_brings_its_threshold_along(
    trained: dict[str, Path], names: list[str], tmp_path: Path
) -> None:
    export(udl_dist.load(trained["ae"]), tmp_path / "model", ExportSettings())
    ours = scoring.score(
        udl_dist.load(trained["ae"]), names, "auto", scoring.Threshold(0.9), 0, tmp_path / "one"
    ).as_dict()
    theirs = scoring.score(
        udl_dist.load(tmp_path / "model"),
        names,
        "auto",
        scoring.Threshold(0.9),
        0,
        tmp_path / "two",
    ).as_dict()
    assert ours["threshold"] == theirs["threshold"]


def test_where_the_held_out_images_are_gone_nothing_is_flagged_and_that_is_said(
    trained: dict[str, Path], names: list[str], tmp_path: Path
) -> None:
    shutil.copytree(
        trained["ae"], tmp_path / "run", ignore=shutil.ignore_patterns(layout.CALIBRATION)
    )
    settings = tmp_path / "run" / "experiment.toml"
    settings.write_text(settings.read_text().replace("packed", "vanished"))
    done = scoring.score(
        udl_dist.load(tmp_path / "run"),
        names[:1],
        "auto",
        scoring.Threshold(0.9),
        0,
        tmp_path / "out",
    )
    assert (done.values["flagged"], done.values["threshold"]) == (0, None)
    assert "no threshold: there is no file or folder" in done.lines()[1]


def test_heat_goes_from_black_over_red_to_white() -> None:
    ramp = torch.tensor([0.0, 1 / 3, 1.0]).reshape(1, 1, 1, 3)
    assert scoring.heat(ramp)[0, :, 0].T.tolist() == [[0, 0, 0], [255, 0, 0], [255, 255, 255]]


def test_hostile_names_stay_within_their_line(trained: dict[str, Path], tmp_path: Path) -> None:
    name = tmp_path / "a\x1b[31m\n<script>.png"
    Image.fromarray(images(1)[0]).save(name)
    done = scoring.score(
        udl_dist.load(trained["ae"]),
        [str(name)],
        "auto",
        scoring.Threshold(0.9, 0.0),
        0,
        tmp_path / "out",
    )
    assert all("\x1b" not in line and "\n" not in line for line in done.lines())
    assert len((tmp_path / "out" / "scores.jsonl").read_text().splitlines()) == 1
    with pytest.raises(DataError):
        scoring.score(
            udl_dist.load(trained["ae"]),
            ["../nowhere"],
            "auto",
            scoring.Threshold(0.9, 0.0),
            0,
            tmp_path / "none",
        )


def test_the_noise_of_a_bound_comes_from_the_seed(
    trained: dict[str, Path], names: list[str], tmp_path: Path
) -> None:
    model = udl_dist.load(trained["vae"])
    scores = []
    for number, seed in enumerate((1, 1, 2)):
        scoring.score(
            model, names, "auto", scoring.Threshold(0.9, 0.0), seed, tmp_path / str(number)
        )
        scores.append([line["score"] for line in lines(tmp_path / str(number))])
    assert scores[0] == scores[1] != scores[2]
