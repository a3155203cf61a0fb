"""Three gray images as the colours of one: which, their labels, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from udl_dist.data.loader.opening import open_streams
from udl_dist.data.packing.pack import pack
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.packing.sources import open_source
from udl_dist.data.packing.stacking import stacked
from udl_dist.data.settings import DataSettings, PackSettings
from udl_dist.errors import UsageError


def gray(folder: Path, classes: int = 10, count: int = 60) -> Path:
    """Images of one gray each, 4 times their number; the label is the number modulo `classes`."""
    numbers = np.arange(count)
    images = np.broadcast_to(4 * numbers[:, None, None], (count, 8, 8)).astype(np.uint8)
    np.savez(folder / "gray.npz", images=images, labels=numbers % classes)
    return folder / "gray.npz"


def test_each_gray_image_is_once_each_color_and_the_seed_chooses(tmp_path: Path) -> None:
    source = open_source(str(gray(tmp_path)))
    sets = [stacked(source, seed).parts["train"] for seed in (0, 0, 1)]
    members = []
    for images in sets:
        shape = images.shape(0, 10**6)
        assert shape == (3, 8, 8)
        pixels = np.stack([images.pixels(number, shape, "crop") for number in range(60)])
        assert (pixels == pixels[:, :, :1, :1]).all()
        members.append(pixels[:, :, 0, 0] // 4)
    assert np.array_equal(members[0], members[1])
    assert not np.array_equal(members[0], members[2])
    for colors in members[0].T:
        assert sorted(colors.tolist()) == list(range(60))
    assert (members[0][:, 0] == np.arange(60)).all()
    assert (members[0][:, 1] != members[0][:, 2]).any()


def test_labels_and_their_names_are_the_three_digits(tmp_path: Path) -> None:
    pack(str(gray(tmp_path)), str(tmp_path / "out"), PackSettings(stack=3, format="npy"))
    stream, _ = open_streams(
        prepare(DataSettings(source=str(tmp_path / "out"), held_out_fraction=0, readers=0)), 0
    )
    assert stream.shape == (3, 8, 8)
    assert len(stream.classes) == 1000
    assert stream.classes[427] == "427"
    for records in stream.once(60):
        digits = records.images[:, :, 0, 0] // 4 % 10
        assert (records.labels == digits @ [100, 10, 1]).all()


def test_images_without_labels_stay_so(tmp_path: Path) -> None:
    np.save(tmp_path / "gray.npy", np.full((9, 8, 8), 200, np.uint8))
    made = stacked(open_source(str(tmp_path / "gray.npy")), 0)
    assert made.classes == ()
    assert made.parts["train"].label(3) == -1


def test_gray_stacks_and_millions_of_classes_are_refused(tmp_path: Path) -> None:
    source = str(gray(tmp_path, classes=30))
    with pytest.raises(UsageError, match="--stack makes colour images: leave --channels out"):
        pack(source, str(tmp_path / "out"), PackSettings(stack=3, channels=1))
    with pytest.raises(UsageError, match="--stack makes 30³ classes of .*: give a source of at m"):
        pack(source, str(tmp_path / "out"), PackSettings(stack=3))
    assert not (tmp_path / "out").exists()
