"""A tar as a stream: webdataset sees nothing of it that was not checked, and nothing of it is lost
without a word.
"""

from __future__ import annotations

import gzip
import io
import resource
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.loader.made import encoded, one_line, pixels, tar
from udl_dist.data.loader.guard import LARGEST_MEMBER, Guard
from udl_dist.data.loader.sequence import is_read
from udl_dist.errors import DataError

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
NAMES = {
    f"{'long/' * 40 * (number % 2)}{number:03d}.png": encoded(pixels(number, 8, 8))
    for number in range(9)
}


class Slowly:
    """Bytes that come a few at a time, as from a network."""

    def __init__(self, content: bytes, step: int = 777) -> None:
        self._stream, self._step = io.BytesIO(content), step

    def read(self, size: int, /) -> bytes:
        return self._stream.read(min(size, self._step))


def passed(content: bytes) -> bytes:
    return b"".join(parts(Guard("a.tar", Slowly(content), is_read)))


def parts(guard: Guard) -> Iterator[bytes]:
    while part := guard.read(10_240):
        yield part


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("format", FORMATS)
def test_a_whole_tar_passes_as_it_is(tmp_path: Path, format: int) -> None:
    members = {
        name: NAMES[name] for name in NAMES if len(name) < 100 or format != tarfile.USTAR_FORMAT
    }
    content = tar(tmp_path / "a.tar", members, format).read_bytes()
    assert passed(content) == content
    assert passed(gzip.compress(content)) == content


def test_a_flip_in_any_header_and_a_cut_at_any_place_are_noticed(tmp_path: Path) -> None:
    content = tar(
        tmp_path / "a.tar", {f"{n}.png": bytes(700) for n in range(4)}, tarfile.USTAR_FORMAT
    ).read_bytes()
    end = 4 * 3 * 512
    for at in range(0, end + 1024, 97):
        with pytest.raises(DataError, match="'a.tar' at byte"):
            passed(content[:at])
    for start in range(0, end, 3 * 512):
        for at in (0, 124, 156, 300):
            flipped = bytearray(content)
            flipped[start + at] ^= 4
            with pytest.raises(DataError, match="checksum|is no tar"):
                passed(bytes(flipped))
    with pytest.raises(DataError, match="cannot be unpacked"):
        passed(gzip.compress(content)[:-20])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (header("a.png", 2**45), f"has {2**45} bytes"),
        (header("a.png", LARGEST_MEMBER + 1), f"has {LARGEST_MEMBER + 1} bytes"),
        (header("a.mp4", 2**45), "cut off"),
        (header("a.png", 2**30, tarfile.GNUTYPE_SPARSE), "a sparse file"),
        (header("a.png", 0, tarfile.SYMTYPE), "a symbolic link"),
        (header("a.png", 0, tarfile.CHRTYPE), "a device"),
        (header("a/", 1024, tarfile.DIRTYPE) + header("b.png", 2**45) * 2, f"has {2**45} bytes"),
        (
            header("a/", 1024, tarfile.AREGTYPE) + header("b.png", 2**45) * 2,
            "a folder with content",
        ),
        (header("a/", 0, tarfile.DIRTYPE) * 40_000, "no member in"),
        (bytes(2**25), "no member in"),
        (b"<html>503</html>" * 100, "is no tar"),
        (b"BZh91AY&SY" * 100, "is compressed"),
        (b"", "is no tar"),
    ],
)
def test_what_must_not_be_read_is_refused_before_room_is_made_for_it(
    content: bytes, said: str
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError) as raised:
        passed(content)
    one_line(raised.value, "'a.tar'", said)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 * 1024, "KiB"


def test_a_sparse_member_by_pax_header_is_refused() -> None:
    info = tarfile.TarInfo("a.png")
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.realsize": str(2**30),
    }
    with pytest.raises(DataError, match="a sparse file"):
        passed(info.tobuf(tarfile.PAX_FORMAT))


def test_a_bomb_of_gzip_is_refused_at_its_first_headers() -> None:
    bomb = gzip.compress(header("a.png", 2**33) + bytes(2**25), 9)
    with pytest.raises(DataError, match=f"has {2**33} bytes"):
        passed(bomb)
