"""Settings of data that name files keep their meaning in another folder."""

from pathlib import Path

import pytest

from udl_dist.data.settings import DataSettings


def test_every_path_becomes_absolute_and_everything_else_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = DataSettings(
        source="a/{0..3}.tar::b",
        more_sources=("c", "s3://bucket/d"),
        held_out="e",
        keys="f",
        cache="g",
    )
    there = here.absolute()
    assert there.source == f"{tmp_path}/a/{{0..3}}.tar::{tmp_path}/b"
    assert there.more_sources == (f"{tmp_path}/c", "s3://bucket/d")
    assert (there.held_out, there.keys, there.cache) == (
        f"{tmp_path}/e",
        f"{tmp_path}/f",
        f"{tmp_path}/g",
    )
    assert there.absolute() == there
    for source in ("digits", "https://host/x.tar", "gs://bucket/x"):
        assert DataSettings(source=source).absolute() == DataSettings(source=source)
