"""Shards in object storage: the same images in the same order as from disk, each byte read about
once.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from tests.data.loader import made
from tests.data.test_iterables import Shared
from tests.storage.faulty import Faulty
from tests.storage.served import put, served
from udl_dist.data.loader.opening import open_streams
from udl_dist.data.loader.reader import Stream
from udl_dist.data.packing import indexes
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.settings import DataSettings, IndexSettings
from udl_dist.errors import DataError, UsageError
from udl_dist.storage.objects import exists, upload


@pytest.fixture(scope="module", autouse=True)
def endpoint() -> Iterator[str]:
    with served() as endpoint:
        yield endpoint


def opened(source: str | Path, cache: Path, **changes: Any) -> tuple[Stream, Stream | None]:
    asked: dict[str, Any] = {
        "size": 8,
        "order": "blocks",
        "block_bytes": 2000,
        "readers": 2,
        **changes,
    }
    return open_streams(prepare(DataSettings(source=str(source), cache=str(cache), **asked)), 3)


def test_remote_batches_are_the_local_ones_at_any_world(tmp_path: Path) -> None:
    tars = made.shards(tmp_path / "tars", [150, 1, 149])
    remote, local = (
        opened(source, tmp_path / "cache", flip=True)
        for source in (put(tars[0].parent, "same"), tars[0].parent)
    )
    assert remote[1] and local[1] and remote[0].fingerprint == local[0].fingerprint
    expected = list(islice(local[0].batches(64, 32), 8))  # into the second epoch
    for world in (1, 3):
        ranks = [remote[0].batches(64, 32, rank, world) for rank in range(world)]
        for wanted in expected:
            shares = [next(rank) for rank in ranks]
            for name in ("images", "records", "keys", "labels"):
                assert np.array_equal(
                    np.concatenate([getattr(part, name) for part in shares]), getattr(wanted, name)
                )
    held_out = [
        np.concatenate([part.images for part in stream.once(7)]) for stream in (remote[1], local[1])
    ]
    assert np.array_equal(held_out[0], held_out[1])


def test_an_epoch_reads_each_byte_about_once(tmp_path: Path) -> None:
    tars = made.shards(tmp_path / "tars", [640, 640], size=64)  # PNGs of some kilobytes
    source = put(tars[0].parent, "once")
    nothing_ahead = {"read_ahead_bytes": 1, "readers": 0}  # else the next epoch is read already
    stream, _ = opened(
        source,
        tmp_path / "cache",
        held_out_fraction=0.0,
        block_bytes=30_000,
        size=64,
        **nothing_ahead,
    )
    records = Counter[int]()
    for batch in islice(stream.batches(0, 64), 20):
        records.update(batch.records.tolist())
    assert set(records.values()) == {1} and len(records) == 1280
    traffic = stream.datasets[0].shards.access.traffic
    needed = int(stream.datasets[0].index.rows["length"].sum())
    spare = 1280 * 2048  # headers, labels and padding between small images
    assert needed <= traffic.bytes_read <= 1.1 * (needed + spare)
    assert traffic.requests < 1280 / 3


def test_shards_are_indexed_next_to_themselves_and_found_by_pattern_and_list(
    tmp_path: Path,
) -> None:
    tars = made.shards(tmp_path / "tars", [5, 6])
    source = put(tars[0].parent, "indexed")
    cache = IndexSettings(cache=str(tmp_path / "cache"))
    found = indexes.index(source, cache)
    assert (found.records, found.index) == (11, f"{source}/index.udl") and exists(found.index)
    assert indexes.index(source, cache).index == found.index
    pattern = indexes.index(f"{source}/{{000000..000001}}.tar", cache)
    assert pattern.fingerprint == found.fingerprint
    (tmp_path / "list.txt").write_text(f"{source}/000001.tar\n")
    upload(tmp_path / "list.txt", f"{source}/some.txt")
    for listed in (tmp_path / "list.txt", f"{source}/some.txt"):
        assert indexes.index(str(listed), cache).records == 6
    made.shards(tmp_path / "tars", [5, 7])
    upload(tars[1], f"{source}/000001.tar")
    with made.refusal(DataError, f"{source}/000001.tar", "its index says", "index again"):
        list(opened(source, tmp_path / "cache", held_out_fraction=0.0)[0].once(4))
    assert (
        indexes.index(source, IndexSettings(cache=str(tmp_path / "cache"), again=True)).records
        == 12
    )
    assert (
        sum(
            len(part.records)
            for part in opened(source, tmp_path / "cache", held_out_fraction=0.0)[0].once(4)
        )
        == 12
    )


def test_a_shard_replaced_by_one_of_the_same_size_is_refused_by_its_etag(tmp_path: Path) -> None:
    tars = made.shards(tmp_path / "tars", [9])
    source = put(tars[0].parent, "etag")
    stream, _ = opened(source, tmp_path / "cache", held_out_fraction=0.0)
    data = tars[0].read_bytes()
    tars[0].write_bytes(data[:700] + bytes([data[700] ^ 1]) + data[701:])
    upload(tars[0], f"{source}/000000.tar")
    with made.refusal(DataError, f"{source}/000000.tar", "etag:", "its index says", "index again"):
        list(stream.once(4))


def test_the_local_copy_spares_requests_and_is_bounded(tmp_path: Path) -> None:
    tars = made.shards(tmp_path / "tars", [64, 64], size=32)
    source = put(tars[0].parent, "cached")
    counts = []
    for _ in range(2):
        stream, _ = opened(
            source, tmp_path / "cache", held_out_fraction=0.0, storage_cache_bytes=10**7
        )
        assert sum(len(part.records) for part in stream.once(16)) == 128
        counts.append(stream.datasets[0].shards.access.traffic.bytes_read)
    assert counts[0] > 0 and counts[1] == 0
    stored_before = stored_bytes(tmp_path)
    opened(source, tmp_path / "cache", storage_cache_bytes=40_000)
    assert stored_bytes(tmp_path) <= 40_000 < stored_before


def stored_bytes(folder: Path) -> int:
    return sum(
        path.stat().st_size for path in (folder / "cache" / "ranges").rglob("*") if path.is_file()
    )


def test_nothing_at_a_prefix_and_images_in_storage_are_named(tmp_path: Path) -> None:
    for source, said in (
        ("s3://bucket/nowhere", "is missing"),
        ("s3://bucket/none.tar", "is missing"),
    ):
        with made.refusal(DataError, source, said):
            opened(source, tmp_path / "cache")


def test_globs_parts_and_digests_hold_in_object_storage_too(tmp_path: Path) -> None:
    tars = made.shards(tmp_path / "tars", [4, 3, 2])
    for path, name in zip(tars, ("x-train-0.tar", "x-train-1.TAR", "x-val-0.tar"), strict=True):
        path.rename(path.with_name(name))
    (tmp_path / "tars" / "._x-train-0.tar").write_bytes(b"x")
    source = put(tmp_path / "tars", "named")
    upload(tmp_path / "tars" / "x-train-1.TAR", f"{source}/x-train-1.TAR")
    train, held_out = opened(source, tmp_path / "cache")
    assert held_out and (train.records, held_out.records) == (7, 2)
    glob, none = opened(
        source.rstrip("/") + "/x-train-*", tmp_path / "cache", held_out_fraction=0.0
    )
    assert glob.records == 7 and none is None
    with pytest.raises(DataError, match="matches no tar"):
        opened(source.rstrip("/") + "/y*.tar", tmp_path / "cache")
    local = opened(tmp_path / "tars" / "x-train-*", tmp_path / "cache2", held_out_fraction=0.0)[0]
    digests = [
        [shard.digest for shard in stream.datasets[0].index.shards] for stream in (glob, local)
    ]
    assert digests[0] == digests[1] and all(digests[0])


def test_shards_of_a_web_server_are_indexed_and_read_like_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    tars = made.shards(tmp_path / "tars", [150, 1, 149])
    files = {f"data/{path.name}": path.read_bytes() for path in tars}
    with Faulty(files) as server:
        pattern = f"{server.address}/data/{{000000..000002}}.tar?signature=s3cr3t"
        listed = "\n".join(path.name for path in tars)
        server.objects["data/list.txt"] = listed.encode()
        local, held_out = opened(tars[0].parent, tmp_path / "cache")
        expected = list(islice(local.batches(64, 32), 6))  # into the second epoch
        for source in (pattern, f"{server.address}/data/list.txt"):
            remote, remote_held_out = opened(source, tmp_path / "cache")
            assert remote.fingerprint == local.fingerprint and held_out and remote_held_out
            server.faults.extend(["short", "503", "reset"])
            for wanted, found in zip(expected, remote.batches(64, 32), strict=False):
                assert np.array_equal(wanted.images, found.images)
            assert "s3cr3t" not in str(remote.shards())
        with pytest.raises(UsageError, match="cannot be listed"):
            opened(f"{server.address}/data/", tmp_path / "cache")
        server.always = "whole"
        with made.refusal(DataError, "/data/00000", "gives no parts of files"):
            list(opened(pattern, tmp_path / "other")[0].once(4))


@pytest.mark.filterwarnings("default")  # PyTorch's on the number of cores
def test_spawned_workers_of_a_data_loader_read_and_forked_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = put(made.shards(tmp_path / "tars", [40])[0].parent, "spawned")
    samples = Shared(source)
    alone = [next(each) for each in [iter(Shared(source))] for _ in range(10)]

    def loader(how: str) -> DataLoader[str]:
        return DataLoader(samples, batch_size=None, num_workers=2, multiprocessing_context=how)

    assert list(islice(loader("spawn"), 10)) == alone
    with pytest.raises(UsageError, match='multiprocessing_context="spawn"'):
        next(iter(loader("fork")))
