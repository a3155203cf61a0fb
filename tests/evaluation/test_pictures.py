"""Pictures are what they claim: these pixels in this order, however small or many the images
are.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from udl_dist import methods
from udl_dist.core import rng
from udl_dist.evaluation import pictures
from udl_dist.evaluation.pictures import GAP
from udl_dist.methods.method import Batch, Method


def tile(picture: Image.Image, row: int, column: int, side: int) -> np.ndarray:
    """The pixels of one tile of `side` pixels."""
    top, left = GAP + row * (side + GAP), GAP + column * (side + GAP)
    return np.asarray(picture)[top : top + side, left : left + side]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_each_image_where_it_belongs(channels: int) -> None:
    images = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, channels, 28, 28)
    picture = pictures.grid(images, 3)
    assert picture.mode == ("L" if channels == 1 else "RGB")
    assert [int(tile(picture, n // 3, n % 3, 56).mean()) for n in range(5)] == [
        0,
        64,
        128,
        191,
        255,
    ]
    assert tile(picture, 1, 2, 56).std() == 0, "the empty place is background"


def test_values_out_of_range_are_cut_and_large_images_are_not_enlarged() -> None:
    picture = pictures.grid(torch.full((1, 1, 64, 64), 7.0), 1)
    assert picture.size == (64 + 2 * GAP, 64 + 2 * GAP)
    assert tile(picture, 0, 0, 64).min() == 255


def batch_of(images: torch.Tensor) -> Batch:
    keys = rng.keys(0, len(images))
    return Batch(images, keys, keys, 0)


def built(name: str, **settings: object) -> Method:
    kind = methods.find(name)
    torch.manual_seed(0)
    return kind(kind.Settings(**settings), (1, 28, 28)).eval()


def test_each_method_is_drawn_as_far_as_it_can() -> None:
    batch, keys = batch_of(torch.rand(4, 1, 28, 28) * 2 - 1), rng.keys(0, 4)
    drawn = {name: set(pictures.draw(built(name), batch, keys, 2)) for name in ("ae", "vae", "gan")}
    assert drawn == {
        "ae": {"reconstruction"},
        "vae": {"reconstruction", "samples"},
        "gan": {"samples"},
    }


def test_a_denoising_method_shows_what_it_saw_between_original_and_output() -> None:
    batch = batch_of(torch.zeros(2, 1, 28, 28))
    method = built("ae", noise="mask", noise_level=0.5)
    picture = pictures.draw(method, batch, batch.keys, 2)["reconstruction"]
    assert picture.height == 3 * 58 + GAP
    assert set(np.unique(tile(picture, 0, 0, 56))) == {128}
    assert set(np.unique(tile(picture, 1, 0, 56))) == {0, 128}


def test_a_caption_stands_below_and_changes_no_pixel_above() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 120), dtype=np.uint8))
    whole = pictures.captioned(
        picture, "Samples are drawn from the prior N(0, 1), and this takes several lines."
    )
    assert whole.width == 120
    assert (np.asarray(whole)[:40] == np.asarray(picture)).all()
    below = np.asarray(whole)[40:]
    assert below.max() == 255 and below.min() < 100  # white, with letters
    assert (below[:, -1] == 255).all()  # none is cut off at the edge
