"""A check finds what is damaged, and names it; what is merely unusual it counts."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.loader.made import encoded, pixels, shards, tar
from tests.test_cli import udl
from udl_dist.data.checking.check import check
from udl_dist.data.checking.findings import Findings, Looked
from udl_dist.data.packing.pack import pack
from udl_dist.data.settings import CheckSettings, PackSettings
from udl_dist.data.shards.index import NAME
from udl_dist.data.shards.indexing import index_shards


def checked(source: Path, **settings: object) -> Findings:
    return check(str(source), CheckSettings(**{"threads": 1, **settings}))  # type: ignore[arg-type]


def looked(findings: Findings) -> Looked:
    assert findings.looked is not None
    return findings.looked


def photo(seed: int) -> Image.Image:
    """Noise with the spectrum of photos, in colour: as unlike each other as photos are."""
    across = np.fft.fftfreq(64)
    frequencies = np.hypot(across[:, None], across[None, :]) + np.eye(64)[0] * np.eye(64)[:, :1]
    noise = np.fft.fft2(np.random.default_rng(seed).normal(size=(3, 64, 64))) / frequencies
    values = np.fft.ifft2(noise).real.transpose(1, 2, 0)
    return Image.fromarray(((values - values.min()) / np.ptp(values) * 255).astype(np.uint8))


def test_whole_shards_have_no_damage(tmp_path: Path) -> None:
    index_shards(shards(tmp_path, [5, 4]))
    calls: list[tuple[int, int]] = []
    found = check(
        str(tmp_path), CheckSettings(decode=True), lambda done, total: calls.append((done, total))
    )
    assert (found.exit_code, found.damage, found.lost) == (0, [], 0)
    assert (found.shards, found.compared, found.indexed, found.readable, found.records) == (
        2,
        2,
        9,
        9,
        {"": 9},
    )
    assert looked(found).sizes == {"8 x 8": 9}
    assert (looked(found).channels, looked(found).constant, found.copies) == ({"1": 9}, 0, 0)
    assert found.classes == {str(number): 1 for number in range(9)}
    assert calls[-1] == (found.total_bytes, found.total_bytes)


def test_a_packed_folder_is_checked_by_its_parts(tmp_path: Path) -> None:
    images = np.stack([pixels(number, 8, 8) for number in range(40)])
    np.savez(tmp_path / "images.npz", x_train=images, y_train=np.arange(40) % 3)
    pack(
        str(tmp_path / "images.npz"),
        str(tmp_path / "packed"),
        PackSettings(size=8, format="raw", held_out_fraction=0.3, shard_records=9),
    )
    found = checked(tmp_path / "packed", decode=True)
    assert not found.damage
    assert set(found.records) == {"train", "val"}
    assert sum(found.records.values()) == found.readable == 40
    assert found.classes == {"0": 14, "1": 13, "2": 13}


def test_without_an_index_nothing_could_be_compared_and_that_is_said(tmp_path: Path) -> None:
    shards(tmp_path, [3])
    found = checked(tmp_path)
    assert (found.exit_code, found.compared, found.indexed, found.records) == (0, 0, 0, {"": 3})
    assert any("nothing to compare" in line for line in found.lines())


def missing_shard(folder: Path) -> None:
    (folder / "000001.tar").unlink()


def empty_shard(folder: Path) -> None:
    (folder / "000001.tar").write_bytes(b"")


def longer_shard(folder: Path) -> None:
    """Zeros behind the end mark are in order; only the index knows that they were not there."""
    with (folder / "000001.tar").open("ab") as file:
        file.write(bytes(512))


def strange_shard(folder: Path) -> None:
    tar(folder / "000002.tar", {"new.png": encoded(pixels(99, 8, 8))})


def other_shard(folder: Path) -> None:
    shards(folder / "other", [1, 2])
    (folder / "other" / "000001.tar").replace(folder / "000001.tar")
    shutil.rmtree(folder / "other")


def wounded_index(folder: Path) -> None:
    data = bytearray((folder / NAME).read_bytes())
    data[40] ^= 1
    (folder / NAME).write_bytes(data)


def wounded_rows(folder: Path) -> None:
    data = (folder / NAME).read_bytes()
    keys = b"".join(b"%06d" % number for number in range(5))
    row = len(data) - len(keys) - 10
    (folder / NAME).write_bytes(data[:row] + bytes((data[row] ^ 1,)) + data[row + 1 :])


def wounded_label(folder: Path) -> None:
    data = (folder / "000001.tar").read_bytes()
    (folder / "000001.tar").write_bytes(data.replace(b"\x004\x00", b"\x007\x00", 1))


WOUNDS: dict[Callable[[Path], None], tuple[str, str, int]] = {
    missing_shard: ("000001.tar", "is missing", 2),
    empty_shard: ("000001.tar", "is empty", 2),
    longer_shard: ("000001.tar", "has 10752 bytes, its index says 10240", 0),
    strange_shard: ("000002.tar", "is not in the index", 0),
    other_shard: ("000001.tar", "the index calls it '000003'", 2),
    wounded_index: (NAME, "damaged in its header", 0),
    wounded_rows: ("000001.tar", "its rows of shard '000001.tar' are damaged", 2),
    wounded_label: ("000001.tar", "its label is 7, its index says 4", 0),
}


@pytest.mark.parametrize("wound", WOUNDS, ids=lambda wound: wound.__name__)
def test_what_index_and_shards_do_not_agree_on_is_damage(
    tmp_path: Path, wound: Callable[[Path], None]
) -> None:
    index_shards(shards(tmp_path, [3, 2]))
    wound(tmp_path)
    where, what, lost = WOUNDS[wound]
    found = checked(tmp_path)
    said = [entry for entry in found.damage if entry.shard.endswith(where) and what in entry.what]
    assert said, found.damage
    assert (found.exit_code, found.lost) == (3, lost)
    assert found.readable + found.lost == found.indexed


def test_damage_without_an_index_is_named_by_the_rules_of_records(tmp_path: Path) -> None:
    image = encoded(pixels(0, 8, 8))
    members = {
        "a.png": image,
        "b.cls": b"1",
        "c.png": image,
        "c.jpg": image,
        "d.png": b"",
        "e.raw": image,
        "f.png": image,
        "f.cls": b"cat",
        "g.jpg": b"<!DOCTYPE html>",
    }
    tar(tmp_path / "0.tar", members)
    said = {entry.key: entry.what for entry in checked(tmp_path, decode=True).damage}
    assert said == {
        "'b'": "has 0 images, not one ('cls')",
        "'c'": "has 2 images, not one ('png', 'jpg')",
        "'d'": "its image has 0 bytes",
        "'e'": "is raw pixels, whose shape only an index by `udl pack` has",
        "'f'": "its label is not a whole number",
        "'g'": "is not a PNG, JPEG, WebP or npy image",
    }


def test_a_shard_without_a_record_is_named(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", {"README": b"x", "__meta__/a.png": b"x"})
    assert [entry.what for entry in checked(tmp_path).damage] == ["holds no record"]


def test_a_key_that_comes_twice_or_apart_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as file:
        for name, seed in (("a.png", 0), ("b.png", 1), ("a.png", 2), ("a.cls", 3)):
            data = encoded(pixels(seed, 8, 8))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    found = checked(tmp_path)
    assert [(entry.key, entry.what) for entry in found.damage] == [("'a'", "comes a second time")]
    assert found.records == {"": 2}


def test_what_does_not_decode_is_damage_only_if_it_was_asked_for(tmp_path: Path) -> None:
    tar(
        tmp_path / "0.tar",
        {
            "a.png": encoded(pixels(0, 8, 8)),
            "b.jpg": b"<html>",
            "c.png": encoded(pixels(1, 8, 8))[:-9],
        },
    )
    index_shards([tmp_path / "0.tar"])
    assert checked(tmp_path).exit_code == 0
    found = checked(tmp_path, decode=True)
    assert [(entry.key, entry.lost) for entry in found.damage] == [("'b'", 1), ("'c'", 1)]
    assert found.readable == 1


def test_copies_and_leaks_are_counted_and_are_no_damage(tmp_path: Path) -> None:
    seen = encoded(photo(0))
    again, smaller = (
        encoded(photo(0), "JPEG", quality=70),
        encoded(photo(0).resize((48, 48)), "WEBP"),
    )
    others = {f"{number}.png": encoded(photo(number)) for number in range(10, 40)}
    flat = encoded(np.full((64, 64, 3), 9, np.uint8))
    tar(
        tmp_path / "train" / "0.tar",
        {**others, "a.png": seen, "b.png": seen, "c.jpg": again, "flat.png": flat},
    )
    tar(tmp_path / "val" / "0.tar", {"x.png": seen, "y.webp": smaller, "z.png": encoded(photo(99))})
    found = checked(tmp_path, decode=True)
    assert found.exit_code == 0
    assert (found.copies, found.leaks) == (2, 1)
    assert [len(group) for group in found.copied] == [3]
    assert found.copied[0][0].endswith("key 'a'")
    assert looked(found).near_leaks == 1  # y; x is an exact one
    assert looked(found).near_copies == 3  # a, c and y; b and x are a to the byte
    assert (looked(found).constant, looked(found).channels) == (1, {"3": 36, "1": 1})
    (tmp_path / "train" / "1.tar").write_bytes((tmp_path / "train" / "0.tar").read_bytes())
    assert looked(checked(tmp_path, decode=True)).near_copies == 3  # exact copies are no near ones
    nothing = looked(checked(tmp_path, decode=True, near_bits=-1))
    assert (nothing.near_copies, nothing.near_leaks) == (0, 0)


def test_the_command_prints_a_table_or_json_and_ends_with_3_on_damage(tmp_path: Path) -> None:
    index_shards(shards(tmp_path, [40]))
    whole = udl("check", str(tmp_path))
    assert (whole.returncode, whole.stdout.splitlines()[-1].split()) == (0, ["damage", "none"])
    data = bytearray((tmp_path / "000000.tar").read_bytes())
    places = [at for at in range(0, len(data), 512) if b"ustar" in data[at : at + 512]]
    for at in places:
        data[at] ^= 1
    (tmp_path / "000000.tar").write_bytes(data)
    done = udl("check", str(tmp_path))
    assert done.returncode == 3
    assert "and 20 more: --json lists all" in done.stdout
    assert "at byte 0, key '000000': is not a tar" in done.stdout
    figures = json.loads(udl("check", str(tmp_path), "--json", "--decode").stdout)
    assert (len(figures["damage"]), figures["readable"], figures["lost"], figures["exit_code"]) == (
        40,
        40,
        0,
        3,
    )
    assert udl("check", str(tmp_path), "--decoed").returncode == 2
