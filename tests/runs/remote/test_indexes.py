"""The index of shards in object storage that have none in their folder: made by the launcher, found
by every node.
"""

import shutil
from pathlib import Path

import pytest

from tests.storage.served import put, served
from tests.training.learn import packed
from udl_dist.data.loader.opening import open_streams
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.settings import DataSettings
from udl_dist.runs.remote_launcher import Launcher
from udl_dist.runs.run_folder import RunFolder
from udl_dist.storage.uris import is_remote


def test_a_node_with_another_disk_opens_what_the_launcher_has_indexed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "launcher"))
    data = packed(tmp_path / "data")
    with served():
        run = Launcher("s3://bucket/runs/indexed", RunFolder(tmp_path / "working"))
        source = put(data / "train", "unindexed")
        prepared = prepare(DataSettings(source=source, size=8, held_out=put(data / "val", "val")))
        assert not any(map(is_remote, (*prepared.train, *prepared.held_out)))
        there = run.shared(prepared)
        shutil.rmtree(tmp_path / "launcher")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node"))
        stream, held_out = open_streams(there, 0)
        assert stream.records + (held_out.records if held_out else 0) == 70
        assert next(stream.batches(0, 4)).images.shape == (4, 1, 8, 8)
        assert run.shared(there) == there


def test_what_lies_on_a_disk_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "launcher"))
    prepared = prepare(DataSettings(source=str(packed(tmp_path / "data")), size=8))
    assert (
        Launcher("s3://bucket/runs/none", RunFolder(tmp_path / "working")).shared(prepared)
        == prepared
    )
