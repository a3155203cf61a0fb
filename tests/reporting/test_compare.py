"""A comparison shows what differs, and never sets figures of different protocols side by side."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.trained import run
from udl_dist.errors import UsageError
from udl_dist.reporting.compare import compare


@pytest.fixture(scope="module")
def pair(trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The autoencoder's run, and one with another latent size on the same images."""
    source = trained["ae"].parent / "data" / "packed"
    return trained["ae"], run(
        "ae", source, tmp_path_factory.mktemp("pair") / "wide", method__latent_dim="6"
    )


def test_figures_curves_and_settings_stand_side_by_side(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    found = compare([str(one) for one in pair], tmp_path / "curves.png")
    assert found.settings == {"method.latent_dim": [4, 6]}
    last = [
        json.loads((one / "curves.jsonl").read_text().splitlines()[-1])["val/mse"] for one in pair
    ]
    assert found.figures["val/mse (last)"] == last
    assert all(best <= end for best, end in zip(found.figures["val/mse (best)"], last, strict=True))
    assert not found.refused
    with Image.open(found.picture) as picture:
        assert picture.width > 800
    text = "\n".join(found.lines())
    assert "settings that differ  ae  wide" in text
    assert "method.latent_dim      4     6" in text


def test_other_images_are_no_rivals(pair: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(pair[1], tmp_path / "other")
    for state in (tmp_path / "other" / "checkpoints").glob("*/state.json"):
        state.write_text(json.dumps(json.loads(state.read_text()) | {"data": "another"}))
    found = compare([str(pair[0]), str(tmp_path / "other")], tmp_path / "curves.png")
    assert not found.figures
    assert "data is " in found.refused["held-out metrics"]
    assert ", another" in found.refused["held-out metrics"]
    assert not found.picture
    assert any(
        line.startswith("not compared: held-out metrics: their protocols differ")
        for line in found.lines()
    )


def test_settings_that_change_what_is_measured_keep_figures_apart(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(trained["vae"], tmp_path / "binary")
    settings = tmp_path / "binary" / "experiment.toml"
    settings.write_text(settings.read_text().replace('binarise = "none"', 'binarise = "static"'))
    found = compare([str(trained["vae"]), str(tmp_path / "binary")], tmp_path / "curves.png")
    assert found.refused["held-out metrics"].endswith("method.binarise is none, static")


def test_of_different_methods_only_what_they_share_is_compared(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    found = compare([str(trained["ae"]), str(trained["vae"])], tmp_path / "curves.png")
    assert {name.split(" ")[0] for name in found.figures} == {"val/mse", "images"}
    (refused,) = found.refused
    assert "val/reconstruction" in refused


def test_evaluations_are_compared_by_their_own_protocols(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for number, (source, folder) in enumerate(zip(pair, folders, strict=True)):
        shutil.copytree(source, folder)
        figures = {
            "knn": {
                "value": 0.9 + number / 100,
                "sd": None,
                "floor": None,
                "protocol": {
                    "n": 10,
                    "checkpoint": f"c{number}",
                    "sampled_from": f"prior {number}",
                },
            },
            "fid": {"value": 3.0, "protocol": {"n": 10 + number}},
        }
        (folder / "evaluation.json").write_text(json.dumps({"figures": figures}))
    found = compare(list(map(str, folders)), tmp_path / "curves.png")
    assert found.figures["knn"] == [0.9, 0.91]
    assert found.refused == {"fid": "their protocols differ: n is 10, 11"}


def test_what_is_no_comparison_is_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs two runs or more"):
        compare([str(trained["ae"])], tmp_path / "curves.png")
    with pytest.raises(UsageError, match="is named twice"):
        compare([str(trained["ae"])] * 2, tmp_path / "curves.png")
    with pytest.raises(UsageError, match="is not a run folder"):
        compare([str(trained["ae"]), str(tmp_path)], tmp_path / "curves.png")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write"):
        compare([str(trained["ae"]), str(trained["vae"])], tmp_path / "file" / "curves.png")
