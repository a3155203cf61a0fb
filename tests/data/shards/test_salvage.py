"""Behind damage the walk goes on: whatever is whole is found, and what is hostile is refused in
bounded time.
"""

import io
import tarfile
from pathlib import Path

import pytest

from tests.data.loader.made import refusal, tar, walk
from udl_dist.data.shards import tar as reading
from udl_dist.data.shards.tar import Damage, Member, salvage
from udl_dist.errors import DataError

NAMES = [f"{number}.png".encode() for number in range(6)]


def whole(tmp_path: Path, format: int = tarfile.GNU_FORMAT) -> bytearray:
    """Members of 600 bytes take 1,536: headers at 0, 1536, …, the end mark at 9216."""
    members = {name.decode(): b"x" * 600 for name in NAMES}
    return bytearray(tar(tmp_path / "shard.tar", members, format).read_bytes())


def found(data: bytes) -> tuple[list[bytes], list[Damage]]:
    everything = list(salvage(data))
    members = [entry.name for entry in everything if isinstance(entry, Member)]
    return members, [entry for entry in everything if isinstance(entry, Damage)]


@pytest.mark.parametrize("at", range(0, 512, 37))
def test_one_flipped_byte_costs_one_member(tmp_path: Path, at: int) -> None:
    data = whole(tmp_path)
    data[1536 + at] ^= 0x15
    members, damage = found(bytes(data))
    lost = [name for name in NAMES if name not in members]
    # a field's blanks carry nothing
    assert (lost, [entry.at for entry in damage]) in (([NAMES[1]], [1536]), ([], []))


def test_a_wiped_header_costs_one_member(tmp_path: Path) -> None:
    data = whole(tmp_path)
    data[3072 : 3072 + 1024] = bytes(1024)
    members, damage = found(bytes(data))
    assert members == NAMES[:2] + NAMES[3:]
    assert [entry.at for entry in damage] == [3072]


@pytest.mark.parametrize("end", [5000, 4608 + 100, 4608])
def test_what_lies_before_a_cut_is_found(tmp_path: Path, end: int) -> None:
    members, damage = found(bytes(whole(tmp_path)[:end]))
    assert members == NAMES[:3]
    assert len(damage) == 1
    assert damage[0].at == 4608


def test_one_tar_after_another_is_found_whole_and_named(tmp_path: Path) -> None:
    members, damage = found(bytes(whole(tmp_path)) * 2)
    assert members == NAMES * 2
    assert [entry.at for entry in damage] == [9216]


def test_a_tar_within_a_tar_is_one_member(tmp_path: Path) -> None:
    inner = bytes(whole(tmp_path))
    data = tar(tmp_path / "outer.tar", {"a.tar": inner, "a.png": b"x", "b.tar": inner}).read_bytes()
    assert found(bytes(data)) == ([b"a.tar", b"a.png", b"b.tar"], [])
    assert found(data[: len(data) - 15_000])[0] == [
        b"a.tar",
        b"a.png",
    ]  # cut within the last: nothing of it is a member


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_member_whose_long_name_is_damaged_is_not_found_under_another(
    tmp_path: Path, format: int
) -> None:
    long = "k" * 300 + ".png"
    data = bytearray(tar(tmp_path / "long.tar", {long: b"x", "b.png": b"y"}, format).read_bytes())
    data[0] ^= 1  # the header of the extension
    members, damage = found(bytes(data))
    assert members == [b"b.png"]
    assert len(damage) == 1
    if format == tarfile.PAX_FORMAT:
        data[0] ^= 1
        data[512] ^= 0x40  # the entries themselves
        assert found(bytes(data)) == ([b"b.png"], [Damage(0, "a damaged PAX header")])


def test_links_devices_and_sparse_members_are_refused_and_passed(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as file:
        for kind in (
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.CHRTYPE,
            tarfile.BLKTYPE,
            tarfile.FIFOTYPE,
            b"S",
            b"M",
            b"Z",
        ):
            info = tarfile.TarInfo("a.png")
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
        info = tarfile.TarInfo("b.png")
        file.addfile(info, io.BytesIO())
    members, damage = found(path.read_bytes())
    assert members == [b"b.png"]
    assert [entry.at for entry in damage] == [512 * place for place in range(8)]
    assert ["which is never read" in entry.what for entry in damage] == [True] * 7 + [False]
    with refusal(DataError, str(path), "byte 0", "which is never read"):
        list(walk(path, path.read_bytes()))


def pax_sparse(size: int) -> bytes:
    """A sparse member as GNU tar writes it in PAX format 1.0."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as file:
        info = tarfile.TarInfo("GNUSparseFile.0/a.png")
        info.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "a.png",
            "GNU.sparse.realsize": str(size),
        }
        file.addfile(info)
        file.addfile(tarfile.TarInfo("b.png"))
    return stream.getvalue()


def test_a_sparse_member_of_pax_is_refused_and_passed() -> None:
    members, damage = found(pax_sparse(2**30))
    assert members == [b"b.png"]
    assert [entry.what for entry in damage] == ["holds a sparse file, which is never read"]


@pytest.mark.parametrize("header", ["path", "size", "GNU.sparse.major"])
def test_a_global_header_may_comment_and_no_more(tmp_path: Path, header: str) -> None:
    for headers, fine in (({"comment": "size=3 path=x"}, True), ({header: "3"}, False)):
        with tarfile.open(
            tmp_path / "g.tar", "w", format=tarfile.PAX_FORMAT, pax_headers=headers
        ) as file:
            file.addfile(tarfile.TarInfo("b.png"))
        members, damage = found((tmp_path / "g.tar").read_bytes())
        assert members == [b"b.png"]
        assert (not damage) == fine


@pytest.mark.parametrize(
    "name", [b"../../etc/a.png", b"/etc/a.png", b"a\nb.png", b"a\x1b[31mb.png", b"\xff\xfe.png"]
)
def test_unusual_names_are_bytes_and_nothing_else(name: bytes) -> None:
    info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
    data = info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape") + bytes(1024)
    assert found(bytes(data)) == ([name], [])


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_name_of_10_kilobytes_is_refused(tmp_path: Path, format: int) -> None:
    data = tar(
        tmp_path / "shard.tar", {"k" * 10_000 + ".png": b"x", "b.png": b"y"}, format
    ).read_bytes()
    assert found(bytes(data))[0] == [b"b.png"]
    with refusal(DataError, "a name of 100", "byte 0"):
        list(walk("shard.tar", data))


def test_more_members_than_any_shard_has_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_HEADERS", 4)
    members, damage = found(bytes(whole(tmp_path)))
    assert members == NAMES[:4]
    assert damage == [Damage(4 * 1536, "more than 4 members")]


class Forward:
    """Bytes of which only what lies at or behind the last slice can be had, as of a storage that is
    read ahead.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.asked = data, 0, 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, span: slice) -> bytes:
        assert span.start >= self.at, f"went back from {self.at} to {span.start}"
        self.at, self.asked = span.start, self.asked + len(self.data[span])
        return self.data[span]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_walk_goes_forward_and_reads_headers_alone(tmp_path: Path, format: int) -> None:
    members = {f"{number}ü.png": b"x" * 100_000 for number in range(5)}
    data = Forward(tar(tmp_path / "shard.tar", members, format).read_bytes())
    assert len(list(walk("shard.tar", data))) == 5
    assert data.asked < 40_000


def test_what_is_full_of_headers_is_gone_through_once(tmp_path: Path) -> None:
    """Extended headers that claim a megabyte each, with nothing in them: reading each would be
    quadratic.
    """
    info = tarfile.TarInfo("x")
    info.type, info.size = b"x", 2**20
    bomb = bytes(whole(tmp_path)[:1536]) + b"\xff" * 512 + info.tobuf(tarfile.USTAR_FORMAT) * 8192
    data = Counted(bomb)
    damage = [entry for entry in salvage(data) if isinstance(entry, Damage)]
    assert damage
    assert data.asked < 4 * len(bomb)


class Counted(Forward):
    """Bytes that count what is asked for; the search behind damage looks twice at a header."""

    def __getitem__(self, span: slice) -> bytes:
        self.asked += len(self.data[span])
        return self.data[span]
