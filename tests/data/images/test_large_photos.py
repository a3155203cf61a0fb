"""Photographs larger than memory would like: decoded at the scale needed; what claims too much is
refused unread.
"""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.images.test_images import png
from tests.data.loader.made import encoded, pixels, refusal, tar
from udl_dist.data.checking.check import check
from udl_dist.data.images.coding import decode, decode_into
from udl_dist.data.images.headers import MOST_PIXELS, Shape, read_header
from udl_dist.data.packing.pack import pack
from udl_dist.data.settings import CheckSettings, PackSettings
from udl_dist.data.shards.indexing import index_shards
from udl_dist.errors import DataError

SHAPE: Shape = (3, 32, 32)


@pytest.fixture(scope="module")
def photo() -> tuple[bytes, Image.Image]:
    """A JPEG of 24 megapixels, as cameras make them, and the same picture small."""
    small = Image.fromarray(pixels(5, 32, 48, 3))
    return encoded(small.resize((6000, 4000), Image.Resampling.BICUBIC), "JPEG", quality=80), small


def claiming(width: int, height: int, marker: bytes = b"\xff\xc0", scans: int = 0) -> bytes:
    """A small JPEG whose header claims another size; `scans` is how many components its first scan
    claims.
    """
    data = bytearray(encoded(pixels(1, 64, 64, 3), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at : at + 2] = marker
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    if scans:
        data[data.index(b"\xff\xda", at) + 4] = scans
    return bytes(data)


def test_a_photo_of_24_megapixels_is_decoded_for_training_and_for_packing(
    photo: tuple[bytes, Image.Image],
) -> None:
    data, small = photo
    expected = np.asarray(small.crop((8, 0, 40, 32))).transpose(2, 0, 1).astype(int)
    row = np.empty(SHAPE, np.uint8)
    decode_into(row, data, "crop")
    assert np.abs(row - expected).mean() < 4
    assert np.abs(decode(data, SHAPE, "crop") - expected).mean() < 4


def test_folders_and_shards_of_large_photos_are_packed_and_checked(
    tmp_path: Path, photo: tuple[bytes, Image.Image]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(photo[0])
    summary = pack(
        str(tmp_path / "photos"), str(tmp_path / "packed"), PackSettings(size=32, channels=3)
    )
    assert summary.records == {"train": 1}
    index_shards([tar(tmp_path / "tars" / "0.tar", {"a.jpg": photo[0]})])
    found = check(str(tmp_path / "tars"), CheckSettings(decode=True))
    assert not found.damage and found.looked and found.looked.sizes == {"6000 x 4000": 1}


def test_an_image_wider_than_two_bytes_can_count_is_checked(tmp_path: Path) -> None:
    index_shards([tar(tmp_path / "0.tar", {"a.png": encoded(np.full((2, 70_000), 9, np.uint8))})])
    found = check(str(tmp_path), CheckSettings(decode=True))
    assert found.looked and found.looked.sizes == {"70000 x 2": 1}


@pytest.mark.parametrize(
    "bomb",
    [
        claiming(65_000, 65_000),
        claiming(8192, 8192, b"\xff\xc2"),
        claiming(8192, 8192, scans=1),
        png(8192, 8192, 8, 0, b""),
    ],
    ids=["more than a camera has", "progressive", "a scan for each component", "png"],
)
def test_what_must_be_decoded_whole_has_the_lower_limit(bomb: bytes) -> None:
    for way in (
        lambda: decode_into(np.empty(SHAPE, np.uint8), bomb, "crop"),
        lambda: decode(bomb, SHAPE, "crop"),
    ):
        with refusal(DataError, "pixels", "most_pixels"):
            way()


def test_a_jpeg_that_is_decoded_at_an_eighth_may_have_eight_times_the_pixels() -> None:
    assert read_header(claiming(800, 800), 80_000).scalable
    with refusal(DataError, "800 x 800", "79,999 (times 8, as a JPEG)"):
        read_header(claiming(800, 800), 79_999)
    assert not read_header(claiming(512, 512)).scalable
    assert read_header(claiming(513, 512)).scalable


def test_the_limit_is_a_setting() -> None:
    data = encoded(pixels(1, 64, 64, 3))
    row = np.empty(SHAPE, np.uint8)
    decode_into(row, data, "crop", most_pixels=4096)
    for way in (
        lambda: decode_into(row, data, "crop", most_pixels=4095),
        lambda: decode(data, SHAPE, "crop", most_pixels=4095),
    ):
        with pytest.raises(DataError, match="64 x 64 pixels, more than most_pixels = 4,095"):
            way()
    assert 24e6 < MOST_PIXELS < 50e6
