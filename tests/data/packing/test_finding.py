"""However a source names its shards, they are found, or one line says what to write instead."""

from pathlib import Path

import pytest

from tests.data.loader.made import folder_of_images, one_line, refusal, shards
from udl_dist.data.loader.opening import open_streams
from udl_dist.data.packing.finding import list_shards
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.settings import DataSettings
from udl_dist.errors import DataError, UsageError
from udl_dist.storage.uris import parse


def names(source: str) -> list[str]:
    return [Path(shard).name for shard in list_shards(source)]


def records(source: str, tmp_path: Path) -> int:
    data = DataSettings(source=source, cache=str(tmp_path / "cache"), held_out_fraction=0.0)
    return open_streams(prepare(data), 0)[0].records


def test_globs_name_shards(tmp_path: Path) -> None:
    tars = shards(tmp_path / "tars", [1, 2, 3])
    (tmp_path / "tars" / "._000000.tar").write_bytes(b"x")
    assert names(f"{tmp_path}/tars/*.tar") == [path.name for path in tars]
    assert names(f"{tmp_path}/t?rs/00000[12].tar") == ["000001.tar", "000002.tar"]
    assert names(f"{tmp_path}/tars/{{000000,*2}}.tar") == ["000000.tar", "000002.tar"]
    assert records(f"{tmp_path}/tars/*.tar", tmp_path) == 6
    for nothing in ("tars/x*.tar", "tars/*.jpg"):
        with refusal(DataError, nothing, "no tar"):
            prepare(DataSettings(source=f"{tmp_path}/{nothing}"))


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(tmp_path: Path) -> None:
    shards(tmp_path / "tars[1]", [2])
    assert names(f"{tmp_path}/tars[1]") == ["000000.tar"]


def test_two_colons_join_sources_as_webdataset_does(tmp_path: Path) -> None:
    first, second = shards(tmp_path / "a", [1, 2])
    shards(tmp_path / "b", [4])
    assert names(f"{second}::{first}") == [second.name, first.name]
    assert len(list_shards(f"{tmp_path}/a::{tmp_path}/b")) == 3
    assert records(f"{second}::{first}", tmp_path) == 3
    with refusal(DataError, "nothing", "no tar"):
        records(f"{second}::{tmp_path}/nothing", tmp_path)


def test_uris_of_files_are_paths(tmp_path: Path) -> None:
    tars = shards(tmp_path / "my tars", [2])
    assert list_shards(f"file://{tmp_path}/my%20tars") == [str(tars[0])]
    assert records(f"file://{tmp_path}/my tars/000000.tar", tmp_path) == 2
    (tmp_path / "some.txt").write_text(f"file://{tmp_path}/my%20tars/000000.tar\n")
    assert list_shards(str(tmp_path / "some.txt")) == [str(tars[0])]
    with pytest.raises(UsageError):
        parse(f"file://{tmp_path}/my tars")
    folder_of_images(tmp_path / "photos", ["a.png", "b.png"])
    assert records(f"file://localhost{tmp_path}/photos", tmp_path) == 2


def test_capital_letters_are_a_tar_too(tmp_path: Path) -> None:
    path = shards(tmp_path / "tars", [2])[0]
    path.rename(path.with_name("A.TAR"))
    assert records(f"{tmp_path}/tars", tmp_path) == 2
    assert records(f"{tmp_path}/tars/A.TAR", tmp_path) == 2


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar.zst"])
def test_compressed_tars_are_refused_with_the_cure(tmp_path: Path, suffix: str) -> None:
    path = shards(tmp_path / "tars", [2, 2])[0]
    path.rename(path.with_name(f"0{suffix}"))
    with pytest.raises(DataError) as mixed:
        records(f"{tmp_path}/tars", tmp_path)
    one_line(mixed.value, f"'0{suffix}'", "unpack")
    path.with_name("000001.tar").unlink()
    with pytest.raises(DataError) as alone:
        records(f"{tmp_path}/tars", tmp_path)
    one_line(alone.value, "compressed tars", "unpack")


def test_other_schemes_are_still_refused() -> None:
    with refusal(UsageError, "ftp:"):
        list_shards("ftp://host/0.tar")
