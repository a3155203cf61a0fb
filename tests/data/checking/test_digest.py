"""Every byte of a shard is under a digest: a check notices any change, wherever it is."""

import io
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import xxhash

from tests.data.loader.made import encoded, pixels, shards
from udl_dist.data.checking.check import check
from udl_dist.data.checking.findings import Findings
from udl_dist.data.packing.indexes import index
from udl_dist.data.packing.pack import pack
from udl_dist.data.settings import CheckSettings, IndexSettings, PackSettings
from udl_dist.data.shards.index import NAME, Index
from udl_dist.data.shards.indexing import index_shards


def with_pax(path: Path) -> Path:
    """A shard whose members carry a comment and a time in PAX headers, and one that is not
    read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        for name, content in {
            "a.png": encoded(pixels(1, 8, 8)),
            "a.json": b"{}",
            "b.png": encoded(pixels(2, 8, 8)),
        }.items():
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(content), {"comment": f"the comment of {name}"}
            file.addfile(info, io.BytesIO(content))
    return path


def checked(source: Path) -> Findings:
    return check(str(source), CheckSettings(threads=1))


def test_a_byte_changed_in_a_pax_record_is_found(tmp_path: Path) -> None:
    path = with_pax(tmp_path / "tars" / "0.tar")
    index_shards([path])
    assert checked(path.parent).exit_code == 0
    path.write_bytes(path.read_bytes().replace(b"the comment of b", b"the comment of c"))
    found = checked(path.parent)
    assert found.exit_code == 3 and found.lost == 0
    assert (
        "were changed since it was indexed" in found.damage[0].line()
        and "0.tar" in found.damage[0].line()
    )


def test_each_byte_counts(tmp_path: Path) -> None:
    path = with_pax(tmp_path / "tars" / "0.tar")
    index_shards([path])
    whole = path.read_bytes()
    assert Index.open(path.parent).shards[0].digest == xxhash.xxh3_128_hexdigest(whole)
    for at in range(0, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert checked(path.parent).exit_code == 3, at


def made_old(path: Path) -> None:
    """Rewrite an index as version 2, of the release before: no digests, nothing left out."""
    data = path.read_bytes()
    _, _, length, _ = struct.unpack_from("<8sIIQ", data)
    header = json.loads(data[24 : 24 + length])
    old = {
        "about": {
            name: value
            for name, value in header["about"].items()
            if name not in ("image", "key_dot")
        },
        "fingerprint": header["fingerprint"],
        "shards": [shard[:7] for shard in header["shards"]],
    }
    packed = json.dumps(old).encode()
    start = (
        struct.pack("<8sIIQ", b"UDLINDEX", 2, len(packed), xxhash.xxh3_64_intdigest(packed))
        + packed
    )
    path.write_bytes(start + bytes(-len(start) % 64) + data[24 + length + -(24 + length) % 64 :])


def test_an_older_index_is_read_and_what_it_cannot_tell_is_said(tmp_path: Path) -> None:
    index_shards(shards(tmp_path / "tars", [3, 2]))
    fingerprint = Index.open(tmp_path / "tars").fingerprint
    made_old(tmp_path / "tars" / NAME)
    assert Index.open(tmp_path / "tars").fingerprint == fingerprint
    found = checked(tmp_path / "tars")
    assert found.exit_code == 0
    assert any("older" in line and "udl index --again" in line for line in found.lines()), (
        found.lines()
    )
    index(str(tmp_path / "tars"), IndexSettings(again=True))
    assert not any("older" in line for line in checked(tmp_path / "tars").lines())


def test_packed_shards_that_are_indexed_again_keep_their_shape_and_classes(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz",
        images=np.stack([pixels(number, 8, 8) for number in range(9)]),
        labels=np.arange(9) % 3,
    )
    pack(str(tmp_path / "a.npz"), str(tmp_path / "packed"), PackSettings(format="raw"))
    about = Index.open(tmp_path / "packed" / "train").about
    made_old(tmp_path / "packed" / "train" / NAME)
    index(str(tmp_path / "packed" / "train"), IndexSettings(again=True))
    assert Index.open(tmp_path / "packed" / "train").about == about
    assert Index.open(tmp_path / "packed" / "train").shards[0].digest


def test_a_newer_index_is_refused_by_name(tmp_path: Path) -> None:
    path = index_shards(shards(tmp_path, [2])).path
    data = bytearray(path.read_bytes())
    data[8:12] = struct.pack("<I", 99)
    path.write_bytes(data)
    with pytest.raises(Exception, match="version 99"):
        Index.open(path)
