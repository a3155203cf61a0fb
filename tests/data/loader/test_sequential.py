"""What cannot be indexed: read by webdataset's reader behind our checks, mixed and dealt by shards,
endless.
"""

from __future__ import annotations

import io
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.loader.made import encoded, one_line, pixels, shards, tar
from tests.storage.web import Web
from udl_dist.data.loader.loading import Records
from udl_dist.data.loader.opening import open_feed, open_streams
from udl_dist.data.loader.sequence import Entry, entries
from udl_dist.data.loader.sequential import Sequential, shuffled
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.packing.sequences import list_sequence
from udl_dist.data.settings import DataSettings
from udl_dist.errors import DataError, UsageError
from udl_dist.storage.fetching import Limits

COUNTS = [13, 5, 9, 7]
TOTAL = sum(COUNTS)
SOON = Limits(stall_seconds=0.4, request_seconds=2, attempts=2, total_seconds=5)


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("no_proxy", "*")
    made = shards(tmp_path / "made", COUNTS)
    with Web({f"/{path.name}": path.read_bytes() for path in made}) as served:
        yield served


def settings(source: str, **asked: Any) -> DataSettings:
    return DataSettings(
        **{"source": source, "sequential": True, "size": 8, "channels": 1, "readers": 0, **asked}
    )


def feed(source: str, seed: int = 0, **asked: Any) -> Sequential:
    found, _ = open_feed(prepare(settings(source, **asked)), seed)
    assert isinstance(found, Sequential)
    return found


def some(made: Iterator[Records], number: int) -> list[Records]:
    """The first batches; what they were read from is closed."""
    taken = list(islice(made, number))
    made.close()  # type: ignore[attr-defined]
    return taken


def labels(batches: list[Records]) -> list[int]:
    return [int(label) for batch in batches for label in batch.labels]


def every(web: Web) -> str:
    return web.url("/{000000..000003}.tar")


@pytest.mark.parametrize("readers", [0, 2])
def test_every_image_comes_once_an_epoch_and_is_the_right_one(web: Web, readers: int) -> None:
    batches = some(feed(every(web), readers=readers).batches(0, 17), 6)
    seen = labels(batches)
    for epoch in range(3):
        assert sorted(seen[epoch * TOTAL : (epoch + 1) * TOTAL]) == list(range(TOTAL))
    assert seen[:TOTAL] != seen[TOTAL : 2 * TOTAL] != sorted(seen[:TOTAL])
    for batch in batches:
        for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
            assert np.array_equal(image[0], pixels(label, 8, 8))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("reader")]


def test_a_seed_and_a_position_give_the_same_images_and_others_give_others(web: Web) -> None:
    def first(seed: int, position: int) -> list[int]:
        return labels(some(feed(every(web), seed).batches(position, 17), 3))

    assert first(1, 0) == first(1, 0)
    assert len({tuple(first(seed, position)) for seed in (1, 2) for position in (0, 17)}) == 4


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_share_the_shards_and_none_starves(web: Web, world: int) -> None:
    taken = [some(feed(every(web)).batches(0, 10, rank, world), 1) for rank in range(world)]
    assert sum(len(batches[0].labels) for batches in taken) == 10
    first = [set(labels(batches)) for batches in taken]
    assert not set.intersection(*first)
    for rank in range(world):
        assert len(some(feed(every(web)).batches(0, 10, rank, world), 40)) == 40, "endless"


def test_fewer_shards_than_ranks_are_refused(web: Web) -> None:
    with pytest.raises(UsageError) as raised:
        feed(every(web)).batches(0, 10, 0, 5)
    one_line(raised.value, "there are 4", "run.workers = 5")


def test_once_gives_every_record_in_the_order_of_the_shards(web: Web) -> None:
    found = feed(every(web))
    assert labels(list(found.once(10))) == list(range(TOTAL))
    assert labels(some(found.once(4), 1)) == [0, 1, 2, 3]


def test_flips_and_crops_are_drawn_from_the_record_and_the_epoch(web: Web) -> None:
    (plain,), (turned,) = (
        some(feed(every(web), flip=flip).batches(0, TOTAL), 1) for flip in (False, True)
    )
    mirrored = [
        np.array_equal(a, b[:, :, ::-1]) for a, b in zip(plain.images, turned.images, strict=True)
    ]
    assert 5 < sum(mirrored) < TOTAL - 5


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (404, "is missing"),
        (503, "HTTP 503"),
        ("short", "broke off"),
        ("stall", "no byte for 0.4 s"),
    ],
)
def test_a_shard_that_breaks_off_stops_by_name(web: Web, fault: Any, said: str) -> None:
    web.faults["/000002.tar"] = fault
    with pytest.raises(DataError) as raised:
        some(feed(every(web), storage=SOON).batches(0, 17), 9)
    one_line(raised.value, web.url("/000002.tar"), said)


def test_a_shard_that_breaks_off_is_left_and_counted_if_that_is_asked(web: Web) -> None:
    web.faults["/000002.tar"] = "short"
    found = feed(every(web), damaged="skip")
    seen = labels(batches := some(found.batches(0, 17), 6))
    assert set(seen) >= set(range(18)) | set(range(27, 34))
    assert [line for line in found.damage if web.url("/000002.tar") in line and "broke off" in line]
    assert 3 <= sum(len(batch.damaged) for batch in batches) <= 5, "once an epoch"
    with pytest.raises(DataError, match="data.damaged_limit"):
        found.refuse_damage(4, 102)


def test_shards_that_all_fail_end_even_where_damage_is_skipped(web: Web) -> None:
    web.faults |= dict.fromkeys(web.files, 404)
    with pytest.raises(DataError, match="no shard of rank 0 gave a record"):
        some(feed(every(web), damaged="skip").batches(0, 17), 1)


def test_an_image_that_cannot_be_decoded_stops_or_is_replaced(web: Web, tmp_path: Path) -> None:
    members = {f"{n}.png": encoded(pixels(n, 8, 8)) if n != 3 else b"<html>" for n in range(6)}
    web.files["/odd.tar"] = tar(tmp_path / "odd.tar", members).read_bytes()
    with pytest.raises(DataError, match="is not a PNG"):
        some(feed(web.url("/odd.tar")).batches(0, 6), 1)
    found = feed(web.url("/odd.tar"), damaged="skip")
    (batch,) = some(found.batches(0, 6), 1)
    assert len(batch.damaged) == 1 and len({image.tobytes() for image in batch.images}) == 5
    assert ["3" in line for line in found.damage] == [True]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a.txt": b"x"}, "holds no record"),
        ({"a.cls": b"1"}, "0 images"),
        ({"a.png": b"1", "a.jpg": b"2"}, "2 images"),
        ({"a.raw": b"1"}, "raw pixels"),
        ({"a.png": b"1", "a.cls": b"cat"}, "no whole number"),
    ],
)
def test_a_record_that_is_none_is_named(
    web: Web, tmp_path: Path, members: dict[str, bytes], said: str
) -> None:
    web.files["/odd.tar"] = tar(tmp_path / "odd.tar", members).read_bytes()
    (entry,) = entries(web.url("/odd.tar"), DataSettings().storage)
    assert said in entry.fault and web.url("/odd.tar") in entry.fault


def test_members_that_could_run_code_are_never_opened(web: Web, tmp_path: Path) -> None:
    bad = b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    members = {
        "a.png": encoded(pixels(1, 8, 8)),
        "a.pkl": bad,
        "a.pyd": bad,
        "a.pth": bad,
        "a.cls": b"7",
    }
    web.files["/code.tar"] = tar(tmp_path / "code.tar", members).read_bytes()
    assert labels(some(feed(web.url("/code.tar")).batches(0, 3), 2)) == [7] * 6
    assert not (tmp_path / "ran").exists()


def test_a_tar_from_anybody_is_read_and_a_hostile_one_is_refused(web: Web, tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.png")
    info.size, info.type = 2**30, tarfile.GNUTYPE_SPARSE
    web.files |= {"/sparse.tar": info.tobuf(tarfile.GNU_FORMAT), "/page.tar": b"<html>" * 999}
    for path, said in (("/sparse.tar", "a sparse file"), ("/page.tar", "is no tar")):
        with pytest.raises(DataError) as raised:
            some(feed(web.url(path)).batches(0, 3), 1)
        one_line(raised.value, web.url(path), said)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as file:
        made = tarfile.TarInfo("x/" * 120 + "a.png")
        made.size = len(content := encoded(pixels(1, 8, 8)))
        file.addfile(made, io.BytesIO(content))
    web.files["/a.tgz"] = packed.getvalue()
    assert np.array_equal(
        some(feed(web.url("/a.tgz")).batches(0, 2), 1)[0].images[0, 0], pixels(1, 8, 8)
    )


def test_a_pipe_is_read_and_its_command_is_run_only_with_the_flag(tmp_path: Path) -> None:
    (path,) = shards(tmp_path, [9])
    command = f"pipe:touch {tmp_path}/ran; cat {path}"
    with pytest.raises(UsageError) as raised:
        prepare(DataSettings(source=command))
    one_line(
        raised.value,
        "pipe:",
        "data.sequential = true",
        "exact order",
        "resume",
        "checksums",
        "equal batches",
    )
    assert not (tmp_path / "ran").exists()
    assert sorted(labels(some(feed(command).batches(0, 9), 1))) == list(range(9))
    assert (tmp_path / "ran").exists()
    with pytest.raises(DataError, match="exit code 3"):
        some(feed(f"pipe:cat {path}; exit 3").batches(0, 9), 1)


def test_a_list_is_read_from_a_disk_or_a_url_and_never_runs_a_command(
    web: Web, tmp_path: Path
) -> None:
    web.files["/l.txt"] = b"# four\n{000000..000002}.tar\n\n" + web.url("/000003.tar").encode()
    expected = tuple(web.url(f"/{shard:06d}.tar") for shard in range(4))
    assert list_sequence(settings(web.url("/l.txt"))) == expected
    (tmp_path / "l.txt").write_text("\n".join(expected))
    assert list_sequence(settings(str(tmp_path / "l.txt"))) == expected
    for line in ("pipe:cat x", "/etc/passwd", "file:///etc/passwd", "s3://b/a.tar"):
        (tmp_path / "odd.txt").write_text(line)
        with pytest.raises(UsageError, match="http: and https: URLs alone"):
            list_sequence(settings(str(tmp_path / "odd.txt")))
    web.files["/odd.txt"] = b"pipe:touch /tmp/x"
    with pytest.raises(UsageError, match="http: and https: URLs alone"):
        list_sequence(settings(web.url("/odd.txt")))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"source": "digits"}, "can be indexed"),
        ({"source": "s3://b/a.tar"}, "can be indexed"),
        ({"source": "pipe:"}, "no command"),
        ({"limit": 3}, "data.limit"),
        ({"keys": "x"}, "data.keys"),
        ({"order": "full"}, "data.order"),
        ({"held_out_fraction": 0.3}, "data.held_out_fraction"),
        ({"more_sources": ("http://h/a.tar",)}, "twice"),
        ({"source": "http://u:p@h/a.tar"}, "password"),
    ],
)
def test_what_has_no_meaning_in_sequence_is_refused_by_name(
    asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as raised:
        list_sequence(settings(**{"source": "http://h/a.tar", **asked}))
    one_line(raised.value, said)


def test_the_exact_stream_is_not_given_for_what_is_read_in_sequence(web: Web) -> None:
    with pytest.raises(UsageError, match="is for udl train"):
        open_streams(prepare(settings(every(web))), 0)


def test_a_fingerprint_knows_the_shards_and_not_their_signatures(web: Web) -> None:
    one, same, other = (
        feed(web.url(path)).fingerprint
        for path in ("/000000.tar?a=1", "/000000.tar", "/000001.tar")
    )
    assert one == same != other


def test_the_buffer_mixes_and_loses_nothing() -> None:
    made = [Entry(str(number).encode(), bytes(10)) for number in range(9_000)]
    mixed = list(shuffled(iter(made), np.random.default_rng(1), 2**20))
    assert Counter(mixed) == Counter(made)
    moved = np.abs(np.array([int(entry.key) for entry in mixed]) - np.arange(9_000))
    assert np.median(moved) > 1000
    tight = list(shuffled(iter(made), np.random.default_rng(1), 100))
    assert Counter(tight) == Counter(made), "a buffer of few bytes mixes little, and goes on"
