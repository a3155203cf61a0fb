"""What people hold images in becomes what a method takes, or is refused in one line that says what
is expected.
"""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from udl_dist.errors import DataError, UsageError
from udl_dist.inference.inputs import as_images, as_latents

GRAY, COLOUR = (1, 4, 4), (3, 4, 4)
PIXELS = np.arange(48, dtype=np.uint8).reshape(3, 4, 4) * 5


def floats(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1)


@pytest.mark.parametrize(
    "given",
    [
        PIXELS,
        PIXELS.transpose(1, 2, 0),
        PIXELS[None],
        torch.from_numpy(PIXELS),
        floats(PIXELS),
        floats(PIXELS).numpy(),
        floats(PIXELS).double().numpy(),
        Image.fromarray(PIXELS.transpose(1, 2, 0).copy()),
        [PIXELS],
        PIXELS.transpose(1, 2, 0)[None],
    ],
)
def test_one_colour_image_is_the_same_however_it_is_given(given: Any) -> None:
    torch.testing.assert_close(as_images(given, COLOUR), floats(PIXELS)[None], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "given",
    [
        PIXELS,
        PIXELS[:, None],
        PIXELS[..., None],
        list(PIXELS),
        [Image.fromarray(one) for one in PIXELS],
    ],
)
def test_gray_images_need_no_channel(given: Any) -> None:
    torch.testing.assert_close(as_images(given, GRAY), floats(PIXELS)[:, None], atol=1e-6, rtol=0)


def test_a_pil_image_of_another_kind_and_size_is_fitted_as_in_training() -> None:
    wide = Image.fromarray(np.full((8, 16, 3), 200, np.uint8))
    torch.testing.assert_close(as_images(wide, GRAY), torch.full((1, *GRAY), 200 / 127.5 - 1))
    padded = as_images(wide, GRAY, "pad")
    assert float(padded.min()) == -1
    transparent = Image.new("RGBA", (4, 4), (0, 0, 0, 0))  # laid on white
    assert float(as_images(transparent, COLOUR).min()) == 1


def test_floats_from_0_to_1_are_warned_of_once() -> None:
    half = (floats(PIXELS) + 1) / 2
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("default")
        for _ in range(3):
            as_images(half, COLOUR)
        as_images(floats(PIXELS), COLOUR)
        as_images([half, floats(PIXELS)], COLOUR)  # one bright image among others
    (warning,) = heard
    assert "if yours are in [0, 1], give 2 * images - 1, or uint8" in str(warning.message)


def test_a_batch_of_none_is_a_batch() -> None:
    assert as_images([], GRAY).shape == (0, 1, 4, 4)
    assert as_images(np.zeros((0, 4, 4), np.uint8), GRAY).shape == (0, 1, 4, 4)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (
            np.zeros((2, 5, 5), np.uint8),
            UsageError,
            r"shape \(2, 5, 5\), this model takes 1 × 4 × 4",
        ),
        (np.zeros((2, 3, 4, 4), np.uint8), UsageError, "this model takes 1 × 4 × 4"),
        (np.zeros((4, 4), np.int64), UsageError, "of type int64: give uint8 from 0 to 255, floats"),
        (torch.zeros(4, 4, dtype=torch.int32), UsageError, "of type int32"),
        (np.full((4, 4), 200.0), UsageError, "reach from 200 to 200: give uint8"),
        (np.full((4, 4), np.nan), DataError, "not finite"),
        ("a.png", UsageError, "a str is not an image"),
        ([np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8)], UsageError, r"shape \(4, 5\)"),
    ],
)
def test_anything_else_is_refused_by_name(given: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        as_images(given, GRAY)


def test_latents_of_any_shape_are_taken_whole_or_as_rows() -> None:
    shape, whole = (2, 3, 4), torch.arange(48.0).view(2, 2, 3, 4)
    for given in (whole, whole.flatten(1), whole.double().numpy(), whole.flatten(1).tolist()):
        torch.testing.assert_close(as_latents(given, shape), whole)
    for one in (whole[0], whole[0].flatten()):
        torch.testing.assert_close(as_latents(one, shape), whole[:1])
    assert as_latents(np.zeros((0, 24)), shape).shape == (0, 2, 3, 4)
    # As many numbers in another order are other latents, not the same.
    for wrong in (whole.view(2, 3, 2, 4), whole.view(2, 2, 12), whole.view(4, 12), whole.flatten()):
        with pytest.raises(UsageError, match=r"this model takes \[N, 2, 3, 4\]"):
            as_latents(wrong, shape)


def test_latents_of_another_width_or_that_are_no_numbers_are_refused() -> None:
    assert as_latents([0.0, 1.0], (2,)).shape == (1, 2)
    with pytest.raises(UsageError, match=r"shape \(4, 3\), this model takes \[N, 2\]"):
        as_latents(np.zeros((4, 3)), (2,))
    with pytest.raises(DataError, match="not finite"):
        as_latents(torch.tensor([[0.0, float("inf")]]), (2,))
