"""Packing writes plain WebDataset tars, the same bytes each time, complete or absent."""

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.data.loader.made import (
    encoded,
    folder_of_images,
    mnist_like,
    pixels,
    refusal,
    seen_by_webdataset,
)
from udl_dist.core.files import partial_folder
from udl_dist.data.packing.pack import pack
from udl_dist.data.settings import PackSettings
from udl_dist.data.shards.index import Index
from udl_dist.errors import DataError, UsageError

NAMES = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(20)]


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "npy", "raw"])
def test_webdataset_reads_what_was_packed(tmp_path: Path, kind: str) -> None:
    source = folder_of_images(tmp_path / "pets", NAMES)
    summary = pack(
        str(source),
        str(tmp_path / "out"),
        PackSettings(size=16, format=kind, shard_records=15),  # type: ignore[arg-type]
    )
    assert (
        summary.records == {"train": 40}
        and summary.shards == 3
        and summary.classes == ("cat", "dog")
    )
    shards = sorted((tmp_path / "out" / "train").glob("*.tar"))
    assert [shard.name for shard in shards] == ["000000.tar", "000001.tar", "000002.tar"]
    records = seen_by_webdataset(*shards)
    index = Index.open(tmp_path / "out" / "train")
    assert [index.key(number) for number in range(40)] == [record["__key__"] for record in records]
    by_key = {record["__key__"].split("-")[0]: record for record in records}
    extension = {"jpeg": "jpg"}.get(kind, kind)
    for number, name in enumerate(NAMES):
        record = by_key[name.removesuffix(".png").replace("/", "_")]
        assert int(record["cls"]) == (number >= 20)
        back = (
            np.frombuffer(record[extension], np.uint8).reshape(16, 16)
            if kind == "raw"
            else _decoded(record[extension])
        )
        assert np.abs(back.reshape(16, 16).astype(int) - pixels(number, 16, 16)).max() <= (
            40 if kind in ("jpeg", "webp") else 0
        )


def _decoded(data: bytes) -> NDArray[np.uint8]:
    return (
        np.load(io.BytesIO(data))
        if data[:6] == b"\x93NUMPY"
        else np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    )


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    source = str(folder_of_images(tmp_path / "pets", NAMES))
    for name, threads in (("a", 1), ("b", 3)):
        pack(
            source,
            str(tmp_path / name),
            PackSettings(size=16, shard_records=7, threads=threads, held_out_fraction=0.2),
        )
    assert files(tmp_path / "a") == files(tmp_path / "b")
    pack(
        source,
        str(tmp_path / "c"),
        PackSettings(size=16, shard_records=7, held_out_fraction=0.2, seed=1),
    )
    assert files(tmp_path / "a").keys() >= {"train/000000.tar", "val/000000.tar", "train/index.udl"}
    assert files(tmp_path / "a") != files(tmp_path / "c")


def test_idx_gives_train_and_test_and_the_index_names_the_source(tmp_path: Path) -> None:
    (mnist_like(tmp_path / "digits", 60, 20) / "LICENSE").write_text("CC BY-SA 3.0\n")
    progress = list[tuple[int, int]]()
    summary = pack(
        str(tmp_path / "digits"),
        str(tmp_path / "out"),
        PackSettings(),
        lambda *seen: progress.append(seen),
    )
    assert summary.records == {"train": 60, "test": 20}
    assert progress == [(done, 80) for done in range(1, 81)]
    about = Index.open(tmp_path / "out" / "test").about
    assert (about.source, about.license, about.format) == ("digits", "CC BY-SA 3.0\n", "png")
    assert about.classes == tuple("0123456789") and about.shape == (1, 28, 28)
    assert summary.total_bytes == sum(len(content) for content in files(tmp_path / "out").values())
    assert (
        "train 60" in summary.lines()[0]
        and json.loads(json.dumps(summary.as_dict()))["shards"] == 2
    )
    records = {
        record["__key__"]: record
        for record in seen_by_webdataset(tmp_path / "out" / "train" / "000000.tar")
    }
    assert sorted(records) == [f"{number:09d}" for number in range(60)]
    assert np.array_equal(_decoded(records["000000042"]["png"]), pixels(42, 28, 28))


def test_held_out_images_stay_held_out_when_others_come(tmp_path: Path) -> None:
    for name, names in (
        ("few", NAMES),
        ("many", [*NAMES, *(f"emu/{number}.png" for number in range(20))]),
    ):
        source = folder_of_images(tmp_path / name, names)
        pack(
            str(source), str(tmp_path / f"{name}-out"), PackSettings(size=16, held_out_fraction=0.3)
        )
    parts = {
        (name, part): {index.key(number) for number in range(index.records)}
        for name in ("few", "many")
        for part in ("train", "val")
        for index in [Index.open(tmp_path / f"{name}-out" / part)]
    }
    assert (
        parts["few", "val"] < parts["many", "val"]
        and parts["few", "train"] < parts["many", "train"]
    )
    assert (
        4 <= len(parts["few", "val"]) <= 20
        and len(parts["few", "val"] | parts["few", "train"]) == 40
    )


def test_shards_keep_to_records_and_bytes(tmp_path: Path) -> None:
    source = str(folder_of_images(tmp_path / "pets", NAMES))
    pack(source, str(tmp_path / "out"), PackSettings(size=16, shard_bytes=20_000))
    index = Index.open(tmp_path / "out" / "train")
    # tar pads its end to 10 KiB
    assert max(shard.shard_bytes for shard in index.shards) <= 20_480 + 10_240
    records = [shard.records for shard in index.shards]
    assert sum(records) == 40 and max(records) - min(records) <= 1 < len(records)
    with pytest.raises(UsageError, match="shard_bytes"):
        pack(source, str(tmp_path / "none"), PackSettings(size=16, shard_bytes=1000))


def test_a_damaged_image_stops_packing_and_nothing_is_left(tmp_path: Path) -> None:
    source = folder_of_images(tmp_path / "pets", NAMES)
    (source / "cat" / "3.png").write_bytes(encoded(pixels(1, 16, 16))[:-30])
    with refusal(DataError, repr(str(source / "cat" / "3.png")), "truncated PNG", "--skip-damaged"):
        pack(str(source), str(tmp_path / "out"), PackSettings(size=16, shard_records=5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets"]


def test_damaged_images_are_left_out_and_listed_if_asked(tmp_path: Path) -> None:
    source = folder_of_images(tmp_path / "pets", NAMES)
    (source / "cat" / "3.png").write_bytes(b"hello")
    (source / "notes.txt").write_bytes(b"hello")
    summary = pack(
        str(source),
        str(tmp_path / "out"),
        PackSettings(size=16, shard_records=1, skip_damaged=True),
    )
    assert (
        summary.records == {"train": 39}
        and len(summary.left_out) == 1
        and summary.ignored == {".txt": 1}
    )
    listed = (tmp_path / "out" / "left_out.txt").read_text().splitlines()
    assert len(listed) == 1 and "3.png" in listed[0]
    assert Index.open(tmp_path / "out" / "train").about.left_out == 1
    assert "1 damaged" in "\n".join(summary.lines()) and "'.txt'" in "\n".join(summary.lines())
    for path in source.rglob("*.png"):
        path.write_bytes(b"hello")
    with pytest.raises(DataError, match="not one image"):
        pack(
            str(source),
            str(tmp_path / "none"),
            PackSettings(size=16, channels=1, skip_damaged=True),
        )
    assert not (tmp_path / "none").exists()


def test_a_destination_with_content_is_refused_and_an_empty_one_used(tmp_path: Path) -> None:
    source = str(folder_of_images(tmp_path / "pets", NAMES))
    dest = tmp_path / "out"
    dest.mkdir()
    pack(source, str(dest), PackSettings(size=16))
    before = files(dest)
    (tmp_path / "file").write_text("mine")
    for used in (dest, tmp_path / "file"):
        with refusal(UsageError, repr(str(used)), "not empty"):
            pack(source, str(used), PackSettings(size=16))
    assert files(dest) == before and (tmp_path / "file").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    source = str(folder_of_images(tmp_path / "pets", NAMES))
    (tmp_path / "file").write_text("mine")
    with refusal(UsageError, "cannot write", repr(str(tmp_path / "file"))):
        pack(source, str(tmp_path / "file" / "out"), PackSettings(size=16))


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    source = str(folder_of_images(tmp_path / "pets", NAMES))
    monkeypatch.setattr("os.fsync", full)
    with refusal(DataError, "No space left on device", repr(str(tmp_path / "out"))):
        pack(source, str(tmp_path / "out"), PackSettings(size=16))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets"]


@pytest.mark.parametrize("fraction", [0.0001, 0.9])
def test_a_part_without_images_is_refused(tmp_path: Path, fraction: float) -> None:
    source = str(folder_of_images(tmp_path / "pets", NAMES[:1]))
    with pytest.raises(DataError, match="of 1 images"):
        pack(source, str(tmp_path / "out"), PackSettings(size=16, held_out_fraction=fraction))


def test_a_fraction_of_a_source_with_its_own_val_part_is_refused(tmp_path: Path) -> None:
    source = str(folder_of_images(tmp_path / "pets", ["train/1.png", "val/2.png"]))
    with pytest.raises(UsageError, match="has a val part"):
        pack(source, str(tmp_path / "out"), PackSettings(size=16, held_out_fraction=0.5))
    assert pack(source, str(tmp_path / "out"), PackSettings(size=16)).records == {
        "train": 1,
        "val": 1,
    }


PACK = """
import signal, sys, time
from udl_dist.data.packing import pack
from udl_dist.data.settings import PackSettings
# A test run in the background inherits that the signal is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
encode = pack.encode
pack.encode = lambda *given: (time.sleep(0.08), encode(*given))[1]
pack.pack(sys.argv[1], sys.argv[2], PackSettings(size=16, shard_records=4, threads=2))
"""


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_pack_leaves_nothing_that_looks_complete(
    tmp_path: Path, kill: signal.Signals
) -> None:
    source = str(folder_of_images(tmp_path / "pets", NAMES))
    dest = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", PACK, source, str(dest)], stderr=subprocess.DEVNULL
    )
    _wait_for(lambda: len(list(tmp_path.glob(".out.partial-*/train/*.tar"))) >= 4)
    process.send_signal(kill)
    assert process.wait(20) != 0
    assert not dest.exists()
    left = list(tmp_path.glob(".out.partial-*"))
    assert len(left) == (kill == signal.SIGKILL)
    with partial_folder(tmp_path / "other"):  # of another process, at work
        pack(source, str(dest), PackSettings(size=16, shard_records=4))
        assert len(list(tmp_path.glob(".other.partial-*"))) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pets"]
    assert Index.open(dest / "train").records == 40


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited 30 s in vain"
        time.sleep(0.01)
