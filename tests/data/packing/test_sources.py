"""Sources are recognised and read right, or refused by name; nothing is dropped silently."""

import gzip
import importlib.util
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.data.loader.made import encoded, folder_of_images, idx, mnist_like, pixels, refusal
from udl_dist.data.packing.sources import Folder, Source, identify, open_source
from udl_dist.data.shards.naming import Naming
from udl_dist.errors import DataError, UsageError


def all_pixels(
    source: Source, part: str = "train", size: int = 28, channels: int = 1
) -> NDArray[np.uint8]:
    images = source.parts[part]
    return np.stack(
        [images.pixels(number, (channels, size, size), "crop") for number in range(len(images))]
    )


def labels(source: Source, part: str = "train") -> list[int]:
    return [source.parts[part].label(number) for number in range(len(source.parts[part]))]


def test_folders_below_the_root_are_the_classes(tmp_path: Path) -> None:
    names = ["cat/1.png", "cat/deep/2.jpg", "dog/a.b/3.JPEG", "ant/4.webp"]
    source = open_source(str(folder_of_images(tmp_path / "pets", names)))
    assert source.name == "pets" and source.classes == ("ant", "cat", "dog")
    images = source.parts["train"]
    assert isinstance(images, Folder) and images.names == sorted(names)
    assert labels(source) == [0, 1, 1, 2]
    assert list(source.parts) == ["train"] and not source.ignored


def test_images_without_folders_have_no_label(tmp_path: Path) -> None:
    source = open_source(str(folder_of_images(tmp_path, ["b.png", "a.png", "x/c.png"])))
    assert labels(source) == [-1, -1, 0] and source.classes == ("x",)


def test_train_val_and_test_folders_are_parts(tmp_path: Path) -> None:
    names = ["train/cat/1.png", "train/dog/2.png", "val/dog/3.png", "test/emu/4.png"]
    source = open_source(str(folder_of_images(tmp_path, names)))
    assert set(source.parts) == {"train", "val", "test"} and source.classes == ("cat", "dog", "emu")
    assert (labels(source), labels(source, "val"), labels(source, "test")) == ([0, 1], [1], [2])


def test_other_files_are_counted_and_hidden_ones_ignored(tmp_path: Path) -> None:
    folder_of_images(tmp_path, ["a.png", ".hidden/b.png", "__MACOSX/c.png"])
    for name in ("x.gif", "y.gif", "notes.txt", "Makefile", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "LICENSE").write_text("CC0")
    source = open_source(str(tmp_path))
    assert source.ignored == {".gif": 2, ".txt": 1, "Makefile": 1} and source.license == "CC0"
    assert len(source.parts["train"]) == 1


def test_linked_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    folder_of_images(tmp_path / "elsewhere", ["1.png"])
    folder_of_images(tmp_path / "root", ["a/2.png"])
    (tmp_path / "root" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "a" / "circle").symlink_to(tmp_path / "root")
    assert len(open_source(str(tmp_path / "root")).parts["train"]) == 2


def test_keys_are_safe_unique_and_independent_of_the_rest(tmp_path: Path) -> None:
    names = ["a b/ü.x.png", "a_b/ü.x.png", "a_b/ü.x.jpg", "d" * 90 + "/e.png", "new\nline.png"]
    few, many = tmp_path / "few", tmp_path / "many"
    keys = []
    for root, chosen in ((few, names), (many, [*names, "0.png"])):
        images = open_source(str(folder_of_images(root, chosen))).parts["train"]
        assert isinstance(images, Folder)
        keys.append({name: images.key(number) for number, name in enumerate(images.names)})
    assert all(keys[1][name] == key for name, key in keys[0].items())
    assert len(set(keys[0].values())) == 5
    for key in keys[0].values():
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,77}", key)
        found = Naming().parts(key.encode() + b".png")
        assert found == (key.encode(), b"png")


BAD_FOLDERS: dict[str, tuple[dict[str, bytes], str]] = {
    "empty": ({}, "it is empty"),
    "no images": ({"a.txt": b"x", "b/c.md": b"x"}, "check the path"),
    "images of other kinds": ({"a.tif": b"x", "b.tif": b"x"}, "2 '.tif': convert them"),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_folder_without_images_is_named(tmp_path: Path, name: str) -> None:
    for file, content in BAD_FOLDERS[name][0].items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(content)
    with refusal(DataError, repr(str(tmp_path)), BAD_FOLDERS[name][1]):
        open_source(str(tmp_path))


@pytest.mark.parametrize("call", [open_source, identify])
def test_nothing_at_a_path_and_unknown_files_are_named(tmp_path: Path, call: Any) -> None:
    with refusal(DataError, "there is no file or folder"):
        call(str(tmp_path / "no\nwhere"))
    (tmp_path / "film.mp4").write_bytes(b"x")
    with pytest.raises(DataError, match="cannot be packed"):
        open_source(str(tmp_path / "film.mp4"))


@pytest.mark.parametrize("content", [b"hello", b"", encoded(pixels(1, 28, 28))[:-20]])
def test_unreadable_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "b\x1bad.jpg").write_bytes(content)
    source = open_source(str(tmp_path))
    with refusal(DataError, "b\\x1bad.jpg", "--skip-damaged"):
        source.parts["train"].pixels(0, (1, 28, 28), "crop")


@pytest.mark.parametrize("pack", [".gz", ""])
def test_idx_folder_has_its_parts_and_labels(tmp_path: Path, pack: str) -> None:
    mnist_like(tmp_path, 12, 5)
    if not pack:
        for path in list(tmp_path.iterdir()):
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
    source = open_source(str(tmp_path))
    assert {part: len(images) for part, images in source.parts.items()} == {"train": 12, "test": 5}
    assert labels(source) == [*range(10), 0, 1] and source.classes == tuple("0123456789")
    assert np.array_equal(all_pixels(source)[3, 0], pixels(3, 28, 28))
    alone = open_source(str(tmp_path / f"t10k-images-idx3-ubyte{pack}"))
    assert labels(alone) == [0, 1, 2, 3, 4] and np.array_equal(
        all_pixels(alone), all_pixels(source, "test")
    )


def test_bad_idx_files_are_named(tmp_path: Path) -> None:
    path = idx(tmp_path / "train-images-idx3-ubyte", np.zeros((4, 28, 28), np.uint8))
    whole = path.read_bytes()
    huge = whole[:4] + b"\xff" * 12 + whole[16:]
    for data, said in (
        (b"\0\0\x0d\3" + whole[4:], "magic number is 00000d03"),
        (whole[:-1], "has only 3135"),
        (whole + b"x", "has more"),
        (whole[:9], "magic"),
        (huge, "has only 3136"),
    ):
        path.write_bytes(data)
        with refusal(DataError, repr(str(path)), said):
            open_source(str(tmp_path))
    path.write_bytes(whole)
    idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(3, np.uint8))
    with pytest.raises(DataError, match="for each of 4 images"):
        open_source(str(tmp_path))
    idx(tmp_path / "letters-train-images-idx3-ubyte", np.full((1, 2, 2), 9, np.uint8))
    with pytest.raises(DataError, match="name one of them"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-9],
        lambda data: b"\x1f\x8b" + b"x" * 99,
        lambda data: data[:40] + bytes([data[40] ^ 255]) + data[41:],
    ],
)
def test_damaged_gzip_is_named(tmp_path: Path, damage: Any) -> None:
    path = mnist_like(tmp_path, 12, 5) / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with refusal(DataError, repr(str(path))):
        open_source(str(tmp_path))


GRAY, COLOUR = (
    np.stack([pixels(n, 28, 28) for n in range(4)]),
    np.stack([pixels(n, 28, 28, 3) for n in range(4)]),
)
READINGS: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
    "bytes": (GRAY, GRAY),
    "one channel last": (GRAY[..., None], GRAY),
    "one channel first": (GRAY[:, None], GRAY),
    "whole numbers": (GRAY.astype(np.int64), GRAY),
    "whole floats": (GRAY.astype(np.float64), GRAY),
    "0 to 1": (GRAY.astype(np.float32) / 255, GRAY),
    "-1 to 1": (GRAY / 127.5 - 1, GRAY),
    "half floats": ((GRAY > 99).astype(np.float16), (GRAY > 99) * 255),
    "true and false": (GRAY > 99, (GRAY > 99) * 255),
}


@pytest.mark.parametrize("name", READINGS)
def test_arrays_are_read_by_shape_and_range(tmp_path: Path, name: str) -> None:
    array, expected = READINGS[name]
    np.save(tmp_path / "a.npy", np.asarray(array))
    source = open_source(str(tmp_path / "a.npy"))
    assert np.array_equal(all_pixels(source)[:, 0], expected)
    assert labels(source) == [-1] * 4


@pytest.mark.parametrize("first", [True, False])
def test_colour_arrays_may_have_channels_first_or_last(tmp_path: Path, first: bool) -> None:
    np.save(tmp_path / "a.npy", COLOUR.transpose(0, 3, 1, 2) if first else COLOUR)
    assert np.array_equal(
        all_pixels(open_source(str(tmp_path / "a.npy")), channels=3), COLOUR.transpose(0, 3, 1, 2)
    )


BAD_ARRAYS: dict[str, tuple[NDArray[Any], str]] = {
    "no rows": (np.zeros((0, 28, 28), np.uint8), "no image"),
    "flat": (np.zeros((5, 784), np.uint8), "shape (5, 784)"),
    "one image": (np.zeros((28, 28, 3), np.uint8), "shape (28, 28, 3)"),
    "channels twice": (np.zeros((5, 3, 28, 3), np.uint8), "shape (5, 3, 28, 3)"),
    "two channels": (np.zeros((5, 28, 28, 2), np.uint8), "shape"),
    "0 and 1": (GRAY // 200, "0 and 1 alone"),
    "out of range": (GRAY.astype(np.float32) * 2, "values from"),
    "not a number": (np.full((2, 8, 8), np.nan), "values from nan"),
    "16 bit": (GRAY.astype(np.uint16) * 257, "whole numbers from"),
    "negative": (GRAY.astype(np.int32) - 128, "whole numbers from"),
    "complex": (GRAY.astype(complex), "type complex128"),
    "objects": (np.array([{}, None], object), "cannot be read"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_of_two_readings_are_refused(tmp_path: Path, name: str) -> None:
    array, said = BAD_ARRAYS[name]
    np.save(tmp_path / "a.npy", np.asarray(array), allow_pickle=True)
    with refusal(DataError, repr(str(tmp_path / "a.npy")), said):
        open_source(str(tmp_path / "a.npy"))


def test_npz_names_its_parts_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x_train=GRAY, y_train=np.arange(4), x_test=GRAY[:2], y_test=np.array([[1], [5]]))
    source = open_source(str(path))
    assert (
        labels(source) == [0, 1, 2, 3]
        and labels(source, "test") == [1, 5]
        and len(source.classes) == 6
    )
    np.savez(path, GRAY, np.arange(4))
    assert labels(open_source(str(path))) == [0, 1, 2, 3]
    np.savez_compressed(path, pictures=GRAY)
    with pytest.raises(DataError, match="'pictures'"):
        open_source(str(path))
    np.savez(path, images=GRAY, labels=np.arange(3))
    with pytest.raises(DataError, match="for each of 4 images"):
        open_source(str(path))


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_damaged_array_files_are_named(tmp_path: Path, name: str) -> None:
    stream = io.BytesIO()
    np.save(stream, GRAY) if name == "a.npy" else np.savez(stream, images=GRAY)
    for data in (stream.getvalue()[:-100], b"", b"hello", stream.getvalue()[:60]):
        (tmp_path / name).write_bytes(data)
        with refusal(DataError, repr(str(tmp_path / name))):
            open_source(str(tmp_path / name))


def test_embedded_digits_are_five_hundred_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source("digits")
    assert np.bincount(labels(source)).tolist() == [500] * 10
    assert 32 < all_pixels(source)[::50].mean() < 35
    assert "MNIST" in source.license and identify("digits") == identify("digits")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (open_source, identify):
        with refusal(UsageError, "pip install 'udl-dist[demo]'"):
            call("digits")


def test_identity_changes_with_names_sizes_and_times(tmp_path: Path) -> None:
    folder_of_images(tmp_path / "a", ["1.png", "2.png"])
    seen = [identify(str(tmp_path / "a"))]
    assert identify(str(tmp_path / "a")) == seen[0]
    (tmp_path / "a" / "1.png").rename(tmp_path / "a" / "3.png")
    seen.append(identify(str(tmp_path / "a")))
    (tmp_path / "a" / "3.png").write_bytes(b"x")
    seen.append(identify(str(tmp_path / "a")))
    mnist_like(tmp_path / "b", 4, 2)
    seen.append(identify(str(tmp_path / "b")))
    idx(tmp_path / "b" / "train-labels-idx1-ubyte.gz", np.zeros(4, np.uint8))
    seen.append(identify(str(tmp_path / "b")))
    assert len(set(seen)) == 5
