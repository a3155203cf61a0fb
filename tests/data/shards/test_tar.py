"""The walk over a tar names every regular member as Python's tarfile does, and no damage passes it
in silence.
"""

import gzip
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.loader.made import one_line, refusal, tar, walk
from udl_dist.data.shards.reading import opened
from udl_dist.data.shards.tar import Member
from udl_dist.errors import DataError

MEMBERS = {
    "a/000.png": b"x" * 700,
    "a/000.cls": b"1",
    "b" * 150 + ".png": b"y" * 512,
    "ü.png": b"",
    "last.png": b"z",
}


def walked(path: Path) -> list[Member]:
    with opened(str(path)) as (data, _):
        return list(walk(path, data))


def contents(path: Path) -> dict[str, bytes]:
    data = path.read_bytes()
    return {
        member.name.decode(): data[member.offset : member.offset + member.length]
        for member in walked(path)
    }


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_all_formats_are_found(tmp_path: Path, format: int) -> None:
    members = {
        ("c/" * 60 + name if format == tarfile.USTAR_FORMAT else name): content
        for name, content in MEMBERS.items()
        if format != tarfile.USTAR_FORMAT or len(name) < 100
    }
    assert contents(tar(tmp_path / "shard.tar", members, format)) == members


def test_folders_are_passed_by_and_sizes_of_pax_headers_hold(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as file:
        info = tarfile.TarInfo("folder")
        info.type = tarfile.DIRTYPE
        file.addfile(info)
        info = tarfile.TarInfo("folder/a.png")
        info.pax_headers = {"comment": "ü" * 600}
        file.addfile(info)
    assert [member.name for member in walked(path)] == [b"folder/a.png"]


def wounded(
    tmp_path: Path, change: tuple[int, bytes] | None = None, end: int | None = None
) -> Path:
    path = tar(tmp_path / "shard.tar", {f"{number}.png": b"x" * 600 for number in range(4)})
    data = bytearray(path.read_bytes())
    if change:
        data[change[0] : change[0] + len(change[1])] = change[1]
    path.write_bytes(data[:end])
    return path


# Members of 600 bytes take 512 + 1,024: headers at 0, 1536, 3072, 4608; the end mark at 6144.
DAMAGE = {
    "a flipped byte in a header": ((1536 + 3, b"#"), None, "byte 1536"),
    "a wiped header": ((1536, bytes(512)), None, "follows the end mark or a header is wiped"),
    "a wiped header and what it held": ((1536, bytes(1536)), None, "wiped"),
    "cut within a member": (None, 2000, "cut off"),
    "cut within a header": (None, 3072 + 100, "byte 3072: is cut off"),
    "cut between members": (None, 4608, "no end mark"),
    "half an end mark": (None, 6144 + 512, "half an end mark"),
    "no end mark": (None, 6144, "no end mark"),
    "a huge size": ((1536 + 124, b"\x80" + bytes(5) + b"\x20" + bytes(5)), None, "byte 1536"),
    "no tar": ((0, b"<!DOCTYPE html>"), None, "is not a tar"),
    "gzip": ((0, gzip.compress(b"x" * 600)), None, "compressed"),
    "something after the end": ((8000, b"x"), None, "follows the end mark"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_with_its_byte(tmp_path: Path, name: str) -> None:
    change, end, said = DAMAGE[name]
    path = wounded(tmp_path, change, end)
    with refusal(DataError, repr(str(path)), said):
        walked(path)


def headed(tmp_path: Path, size: bytes, kind: bytes = b"0") -> Path:
    """A tar whose only header gives `size` and has the right checksum."""
    header = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136], header[156:157], header[148:156] = size, kind, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "shard.tar"
    path.write_bytes(bytes(header) + bytes(1024))
    return path


@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"g"])
@pytest.mark.parametrize(
    "size",
    [b"\x80" + (2**45).to_bytes(11, "big"), b"\xff" * 12, b"99999999999\0", b"77777777777\0"],
)
def test_impossible_sizes_are_refused_at_once(tmp_path: Path, size: bytes, kind: bytes) -> None:
    with refusal(DataError, "byte 0"):
        walked(headed(tmp_path, size, kind))


def test_checksums_of_old_writers_and_binary_sizes_are_read(tmp_path: Path) -> None:
    """Some old writers summed the bytes of a header as signed numbers."""
    header = bytearray(tarfile.TarInfo("ü.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136], header[148:156] = b"\x80" + (600).to_bytes(11, "big"), b" " * 8
    header[148:156] = b"%06o\0 " % sum(byte - 256 * (byte > 127) for byte in header)
    path = tmp_path / "shard.tar"
    path.write_bytes(bytes(header) + b"x" * 600 + bytes(424 + 1024))
    assert walked(path) == [Member("ü.png".encode(), 512, 600)]


def test_missing_and_empty_shards_and_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "folder.tar").mkdir()
    for name, said in (
        ("missing.tar", "is missing"),
        ("empty.tar", "is empty"),
        ("folder.tar", "cannot be read"),
    ):
        with pytest.raises(DataError, match=said) as raised:
            walked(tmp_path / name)
        one_line(raised.value, name)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_one_changed_byte_of_any_header_is_noticed(tmp_path: Path, draw: st.DataObject) -> None:
    """Payloads have checksums of their own; every other byte is covered by a header's checksum or
    must be zero.
    """
    start = draw.draw(st.sampled_from([0, 1536, 3072, 4608, 6144, 6656]))
    at, value = start + draw.draw(st.integers(0, 511)), draw.draw(st.integers(1, 255))
    original = walked(wounded(tmp_path))
    path = tmp_path / "shard.tar"
    data = bytearray(path.read_bytes())
    data[at] ^= value
    path.write_bytes(data)
    try:
        assert walked(path) == original  # spaces and ends of the number fields carry nothing
    except DataError as error:
        one_line(error, "byte")
