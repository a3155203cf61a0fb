"""Pictures from the command line: these images in these places, the same for a seed, refused where
there are none.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import udl_dist
from tests.trained import METHODS, images
from udl_dist.errors import DataError, UsageError
from udl_dist.evaluation.pictures import GAP
from udl_dist.inference import drawing
from udl_dist.methods.pixels import levels

ENLARGED = 7  # 8 px become 56


def tile(path: Path, row: int, column: int) -> np.ndarray:
    side = 8 * ENLARGED
    top, left = GAP + row * (side + GAP), GAP + column * (side + GAP)
    return np.asarray(Image.open(path))[top : top + side : ENLARGED, left : left + side : ENLARGED]


def test_a_grid_holds_the_images_of_the_seed(trained: dict[str, Path], tmp_path: Path) -> None:
    model = udl_dist.load(trained["gan"])
    done = drawing.sample(model, drawing.Draw(5, 3, "auto"), tmp_path / "new" / "grid.png")
    assert (done.values["n"], done.values["seed"]) == (5, 3)
    drawn = levels(model.sample(5, seed=3)).numpy()
    assert (tile(tmp_path / "new" / "grid.png", 1, 1) == drawn[4, 0]).all()


def test_single_images_fill_a_new_folder(trained: dict[str, Path], tmp_path: Path) -> None:
    model = udl_dist.load(trained["vae"])
    drawing.sample(model, drawing.Draw(300, 0, "own"), tmp_path / "many")
    assert len(list((tmp_path / "many").iterdir())) == 300
    assert (
        np.asarray(Image.open(tmp_path / "many" / "000299.png"))
        == levels(model.sample(1, start=299)).numpy()[0, 0]
    ).all()
    with pytest.raises(UsageError, match="exists and is not empty"):
        drawing.sample(model, drawing.Draw(3, 0, "own"), tmp_path / "many")


@pytest.mark.parametrize(
    ("count", "out", "words"),
    [
        (0, "grid.png", "draw at least one"),
        (9999, "grid.png", "too much for one picture"),
        (3, "grid.jpg", "pictures are PNG"),
        (3, "file/grid.png", "cannot write"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    trained: dict[str, Path], tmp_path: Path, count: int, out: str, words: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=words):
        drawing.sample(
            udl_dist.load(trained["vae"]), drawing.Draw(count, 0, "auto"), tmp_path / out
        )


def test_an_autoencoder_has_nothing_to_draw_from_and_leaves_no_folder(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="cannot sample.* run udl fit-prior first"):
        drawing.sample(udl_dist.load(trained["ae"]), drawing.Draw(3), tmp_path / "new")
    with pytest.raises(UsageError, match="no mixture to draw from: run udl fit-prior first"):
        drawing.sample(
            udl_dist.load(trained["vae"]), drawing.Draw(3, 0, "mixture"), tmp_path / "new"
        )
    assert not (tmp_path / "new").exists()


def test_originals_stand_over_reconstructions(trained: dict[str, Path], tmp_path: Path) -> None:
    model, given = udl_dist.load(trained["ae"]), images(20)
    names = [str(tmp_path / f"{number}.png") for number in range(20)]
    for name, one in zip(names, given, strict=True):
        Image.fromarray(one).save(name)
    done = drawing.reconstruct(model, names, 18, tmp_path / "out.png")
    rebuilt = model.reconstruct(given[:18])
    error = float((rebuilt - model.images(given[:18])).div(2).square().mean())
    assert done.values["n"] == 18
    assert done.values["mse"] == pytest.approx(error, rel=1e-5)
    assert (tile(tmp_path / "out.png", 0, 3) == given[3]).all()
    assert (tile(tmp_path / "out.png", 3, 1) == levels(rebuilt).numpy()[17, 0]).all()


def test_single_files_of_any_kind_and_size_are_fitted(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    model = udl_dist.load(trained["vae"])
    picture = Image.fromarray(images(1, 20)[0])
    names = [tmp_path / f"photo.{ending}" for ending in ("png", "jpg", "webp")]
    for name in names:
        picture.convert("RGB").save(name)
    done = drawing.reconstruct(model, [*map(str, names), str(tmp_path)], 5, tmp_path / "made")
    assert done.values["n"] == 5
    assert sorted(path.name for path in (tmp_path / "made").iterdir())[:3] == [
        f"00000{number}-photo.png" for number in range(3)
    ]
    (tmp_path / "broken.png").write_bytes(names[0].read_bytes()[:60])
    with pytest.raises(DataError, match=r"broken.png' is a (truncated|damaged) PNG"):
        drawing.reconstruct(model, [str(tmp_path / "broken.png")], 5, tmp_path / "out.png")
    with pytest.raises(DataError, match="there is no file or folder"):
        drawing.reconstruct(model, [str(tmp_path / "nowhere")], 5, tmp_path / "out.png")
    with pytest.raises(UsageError, match="cannot reconstruct, it can decode, sample"):
        drawing.reconstruct(udl_dist.load(trained["gan"]), [str(names[0])], 5, tmp_path / "out.png")


def test_that_some_of_many_images_are_taken_is_said(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    model = udl_dist.load(trained["ae"])
    (tmp_path / "photos").mkdir()
    for number, one in enumerate(images(9)):
        Image.fromarray(one).save(tmp_path / "photos" / f"{number}.png")
    some = drawing.reconstruct(model, [str(tmp_path / "photos")], 5, tmp_path / "some")
    assert "the first 5 of 9 images (--n 9 takes all): mean squared error" in some.lines()[-1]
    assert (some.values["n"], some.values["images"]) == (5, 9)
    assert min(path.name for path in (tmp_path / "some").iterdir()) == "000000-0.png"
    every = drawing.reconstruct(model, [str(tmp_path / "photos")], 64, tmp_path / "all.png")
    assert every.lines()[-1].startswith("9 images: mean squared error")


@pytest.mark.parametrize("method", METHODS)
def test_a_walk_moves_one_latent_a_row(
    trained: dict[str, Path], tmp_path: Path, method: str
) -> None:
    model = udl_dist.load(trained[method])
    done = drawing.traverse(model, drawing.Walk(2, 5, 3.0), "", 0, tmp_path / "walk.png")
    assert len(done.values["axes"]) == 2
    assert done.values["deviations"] == sorted(done.values["deviations"], reverse=True)
    middles = [tile(tmp_path / "walk.png", row, 2) for row in (0, 1)]
    assert (middles[0] == middles[1]).all()
    assert (tile(tmp_path / "walk.png", 0, 0) != middles[0]).any()


def test_an_interpolation_begins_and_ends_where_it_should(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    Image.fromarray(images(1)[0]).save(tmp_path / "one.png")
    vae = udl_dist.load(trained["vae"])
    done = drawing.interpolate(
        vae, (str(tmp_path / "one.png"), "seed:3"), drawing.Walk(8, 4, 3.0), 0, tmp_path / "way.png"
    )
    assert done.values["way"] == "spherical"
    assert (
        tile(tmp_path / "way.png", 0, 0) == levels(vae.reconstruct(images(1))).numpy()[0, 0]
    ).all()
    assert (
        tile(tmp_path / "way.png", 0, 3) == levels(vae.sample(1, start=3)).numpy()[0, 0]
    ).mean() > 0.9
    gan = udl_dist.load(trained["gan"])
    with pytest.raises(UsageError, match="cannot encode .*: give seed:N"):
        drawing.interpolate(
            gan,
            (str(tmp_path / "one.png"), "seed:1"),
            drawing.Walk(8, 4, 3.0),
            0,
            tmp_path / "way.png",
        )
    with pytest.raises(UsageError, match="write seed:N with a whole number"):
        drawing.interpolate(
            gan, ("seed:x", "seed:1"), drawing.Walk(8, 4, 3.0), 0, tmp_path / "way.png"
        )


def test_a_sphere_keeps_the_length_that_normal_draws_have() -> None:
    first, last = torch.randn(2, 400, generator=torch.Generator().manual_seed(0))
    middle = drawing.slerp(first, last, torch.tensor(0.5))
    assert float(middle.norm()) == pytest.approx(20, rel=0.1)
    assert float(torch.lerp(first, last, 0.5).norm()) < 16
    torch.testing.assert_close(drawing.slerp(first, last, torch.tensor(1.0)), last)
    torch.testing.assert_close(drawing.slerp(first, 2 * first, torch.tensor(0.5)), 1.5 * first)
