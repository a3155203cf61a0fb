"""Size and channels of training come from the images unless they are set; the plan shows them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import udl_dist
from tests.data.loader.made import encoded, folder_of_images, mnist_like, pixels, refusal, tar
from tests.test_cli import refused, udl
from tests.trained import run
from tests.training.learn import asked
from udl_dist import experiment as experiments
from udl_dist.data.loader.opening import open_streams
from udl_dist.data.packing.pack import pack
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.settings import DataSettings, PackSettings
from udl_dist.errors import DataError, UsageError
from udl_dist.launch.plan import checked_plan


def shape(source: Path | str, tmp_path: Path, **settings: object) -> tuple[int, int, int]:
    """The shape that training on a source sees."""
    more: Any = {"held_out_fraction": 0.0, **settings}
    data = DataSettings(source=str(source), cache=str(tmp_path / "cache"), **more)
    return open_streams(prepare(data), 0)[0].shape


def photos(root: Path, *sizes: tuple[int, int]) -> Path:
    """Colour photographs of these heights and widths as one shard."""
    return tar(
        root / "0.tar",
        {
            f"{number}.jpg": encoded(pixels(number, *size, 3), "JPEG", quality=90)
            for number, size in enumerate(sizes)
        },
    ).parent


def test_a_packed_folder_is_trained_as_it_was_packed(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz", images=np.stack([pixels(number, 200, 200, 3) for number in range(4)])
    )
    pack(str(tmp_path / "a.npz"), str(tmp_path / "packed"), PackSettings(size=64, channels=3))
    assert shape(tmp_path / "packed", tmp_path) == (3, 64, 64)
    pack(str(tmp_path / "a.npz"), str(tmp_path / "large"), PackSettings(size=200, channels=1))
    assert shape(tmp_path / "large", tmp_path) == (1, 200, 200)
    assert shape(tmp_path / "large", tmp_path, size=32) == (1, 32, 32)
    assert shape(tmp_path / "large", tmp_path, channels=3) == (3, 200, 200)


def test_shards_of_one_size_are_trained_at_it_and_at_most_at_128(tmp_path: Path) -> None:
    assert shape(photos(tmp_path / "a", (100, 100), (100, 140)), tmp_path) == (3, 100, 100)
    assert shape(photos(tmp_path / "b", (300, 400), (300, 500)), tmp_path) == (3, 128, 128)


def test_of_many_sizes_the_median_counts_in_steps_of_eight(tmp_path: Path) -> None:
    source = photos(tmp_path / "a", (60, 90), (75, 80), (110, 101))
    assert shape(source, tmp_path) == (3, 72, 72)
    assert shape(source, tmp_path, fit="pad") == (3, 88, 88)


def test_gray_and_colour_come_from_the_pixels(tmp_path: Path) -> None:
    gray = np.repeat(pixels(1, 40, 40)[..., None], 3, axis=2)
    members = {f"{number}.jpg": encoded(gray, "JPEG") for number in range(3)}
    assert shape(tar(tmp_path / "gray" / "0.tar", members).parent, tmp_path) == (1, 40, 40)
    members["9.png"] = encoded(pixels(2, 40, 40, 3))
    assert shape(tar(tmp_path / "one" / "0.tar", members).parent, tmp_path) == (3, 40, 40)


def test_folders_arrays_and_digits_are_looked_at_too(tmp_path: Path) -> None:
    assert shape(folder_of_images(tmp_path / "folder", ["a.png", "b.jpg"], 48), tmp_path) == (
        1,
        48,
        48,
    )
    assert shape(mnist_like(tmp_path / "mnist", 12, 5), tmp_path) == (1, 28, 28)
    np.save(tmp_path / "a.npy", np.zeros((3, 3, 50, 50)))
    assert shape(tmp_path / "a.npy", tmp_path) == (3, 50, 50)
    assert shape("digits", tmp_path) == (1, 28, 28)
    photo = Image.fromarray(pixels(1, 60, 80, 3))
    exif = photo.getexif()
    exif[0x0112] = 6
    (tmp_path / "turned").mkdir()
    photo.save(tmp_path / "turned" / "a.jpg", exif=exif)
    assert shape(tmp_path / "turned", tmp_path) == (3, 60, 60)


def test_pack_keeps_size_and_colour_unless_set_otherwise(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(encoded(pixels(1, 96, 96, 3)))
    summary = pack(str(tmp_path / "photos"), str(tmp_path / "packed"), PackSettings())
    assert summary.shape == (3, 96, 96)
    assert any("96 x 96 pixels in colour" in line for line in summary.lines())


def test_the_plan_says_what_training_sees(tmp_path: Path) -> None:
    source = photos(tmp_path / "tars", *[(100, 100)] * 40)
    wanted = experiments.load(
        None, {"method.name": "gan", "data.source": str(source), "train.epochs": "1"}
    )
    lines = checked_plan(wanted).lines()
    assert any("100 x 100 pixels, colour" in line and "data.size" in line for line in lines), lines
    assert any("generator" in line and "discriminator" in line for line in lines)


def test_images_that_cannot_be_looked_at_are_named(tmp_path: Path) -> None:
    tar(tmp_path / "bad" / "0.tar", {"a.jpg": b"no image"})
    with refusal(DataError, "none of the images looked at can be read", "size and channels"):
        shape(tmp_path / "bad", tmp_path)


def test_a_height_and_a_width_are_packed_trained_and_reconstructed(tmp_path: Path) -> None:
    tall = np.stack([pixels(number, 30, 45) for number in range(40)])
    np.save(tmp_path / "a.npy", tall)
    pack(
        str(tmp_path / "a.npy"),
        str(tmp_path / "packed"),
        PackSettings(size=(24, 40), channels=1, held_out_fraction=0.2),
    )
    assert shape(tmp_path / "packed", tmp_path) == (1, 24, 40)
    # Of the data as they are: a flag, and a job file.
    assert shape(tmp_path / "a.npy", tmp_path, size=(24, 40)) == (1, 24, 40)
    flag = asked("ae", tmp_path / "a.npy", data__size="24,40")
    job = tmp_path / "job.toml"
    job.write_text(flag.to_toml())
    assert experiments.load(job, {}).data.size == flag.data.size == (24, 40)
    model = udl_dist.load(run("ae", tmp_path / "packed", tmp_path / "run", data__size="24,40"))
    assert model.reconstruct(-torch.rand(3, 1, 24, 40)).shape == (3, 1, 24, 40)
    with pytest.raises(UsageError, match="24"):
        model.reconstruct(-torch.rand(3, 1, 40, 24))


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("24,40,3", "data.size is [height, width] or one number for both, not [24, 40, 3]"),
        ("24,0", "data.size is [height, width] or one number for both, not [24, 0]"),
        ("24,-1", "data.size"),
        ("24x40", "data.size"),
    ],
)
def test_another_number_of_sides_is_refused(size: str, said: str) -> None:
    refused(
        udl("train", "--data.source", "digits", "--method.name", "ae", "--data.size", size), 2, said
    )
