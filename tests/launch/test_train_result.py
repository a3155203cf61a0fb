"""The end of a run for people: what it says to do next."""

from pathlib import Path

from PIL import Image

from udl_dist import methods
from udl_dist.launch.train_result import TrainResult


def test_the_end_of_a_vae_names_the_commands_that_draw_better_samples(
    trained: dict[str, Path],
) -> None:
    for method in ("ae", "vae", "gan"):
        about = methods.find(method).about_samples
        ended = TrainResult("runs/faces", trained[method], 480, {}, about_samples=about)
        said = "udl sample runs/faces draws from a mixture" in "\n".join(ended.lines())
        assert said == (method == "vae")


def test_the_picture_of_prior_draws_says_so_below(trained: dict[str, Path]) -> None:
    sizes = {}
    for method in ("vae", "gan"):
        with Image.open(
            sorted((trained[method] / "pictures").glob("samples-*.png"))[-1]
        ) as picture:
            sizes[method] = picture.size
            last_row = picture.convert("L").crop(
                (0, picture.height - 1, picture.width, picture.height)
            )
            assert (last_row.getextrema() == (255, 255)) == (method == "vae")
    assert sizes["vae"][0] == sizes["gan"][0]
    assert sizes["vae"][1] > sizes["gan"][1]
