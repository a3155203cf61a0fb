"""A training on shards that cannot be indexed: to its end, stopped and resumed, planned, and
refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.loader.made import shards
from tests.launch.test_worker import finished, wanted
from tests.storage.web import Web
from tests.training import gloo
from tests.training.learn import packed
from udl_dist.data.packing.prepare import prepare
from udl_dist.errors import DataError, UsageError
from udl_dist.experiment import Experiment
from udl_dist.launch.plan import plan
from udl_dist.launch.worker import work
from udl_dist.training.distributed import Ranks

LOST = ("exact order", "resume within an epoch", "checksums", "equal batches at other world sizes")


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("no_proxy", "*")
    made = shards(tmp_path / "made", [11, 6, 8])
    with Web({f"/{path.name}": path.read_bytes() for path in made}) as served:
        yield served


def asked(web: Web, folder: Path, **flags: str) -> Experiment:
    source = web.url("/{000000..000002}.tar?signature=s3cr3t")
    return wanted(
        "ae", Path("x"), folder, **{"data__source": source, "data__sequential": "true", **flags}
    )


def messages(folder: Path) -> str:
    return (folder / "messages.log").read_text()


def test_a_run_says_what_is_lost_and_ends(web: Web, tmp_path: Path) -> None:
    ended = finished(asked(web, tmp_path / "run"))
    assert (ended["images"], ended["stopped"]) == (240, False)
    (line,) = [
        line for line in messages(tmp_path / "run").splitlines() if "data.sequential" in line
    ]
    assert all(promise in line for promise in (*LOST, "nothing is held out"))
    assert sorted((tmp_path / "run" / "pictures").iterdir())
    assert not [name for name in ended["figures"] if name.startswith("val/")]
    assert "s3cr3t" not in messages(tmp_path / "run") + (tmp_path / "run" / "data.json").read_text()


def test_a_run_with_readers_and_a_held_out_source_that_is_indexed(web: Web, tmp_path: Path) -> None:
    held_out = str(packed(tmp_path / "data") / "train")
    ended = finished(asked(web, tmp_path / "run", data__held_out=held_out, data__readers="2"))
    assert ended["images"] == 240 and ended["figures"]["val/mse"] > 0
    assert f"held out is {held_out!r}" in messages(tmp_path / "run")


def test_a_stopped_run_goes_on_in_an_order_drawn_anew_and_says_so(web: Web, tmp_path: Path) -> None:
    experiment = asked(web, tmp_path / "run")
    stopped = finished(experiment, stop_after=2)
    assert stopped["stopped"] and 120 < stopped["images"] < 240
    (tmp_path / "run" / "stop").unlink()
    assert finished(experiment)["images"] == 240
    assert f"resumed after {stopped['images']} images, in an order drawn anew" in messages(
        tmp_path / "run"
    )
    images = [
        json.loads(line)["images"]
        for line in (tmp_path / "run" / "curves.jsonl").read_text().splitlines()
    ]
    assert images == sorted(set(images))


def test_other_shards_are_refused_at_a_resume(web: Web, tmp_path: Path) -> None:
    finished(asked(web, tmp_path / "run", train__total_images="120"))
    other = wanted(
        "ae",
        Path("x"),
        tmp_path / "run",
        data__source=web.url("/{000000..000001}.tar"),
        data__sequential="true",
    )
    with pytest.raises(DataError, match="first 120 images .* others .*000002.tar"):
        finished(other)


def test_a_server_that_fails_in_the_middle_ends_the_run_by_name(web: Web, tmp_path: Path) -> None:
    web.faults["/000001.tar"] = "short"
    with pytest.raises(DataError, match="000001.tar' broke off"):
        finished(asked(web, tmp_path / "run"))


@pytest.mark.long
def test_two_ranks_train_on_their_own_shards(web: Web, tmp_path: Path) -> None:
    outcomes = gloo.run(2, trained, asked(web, tmp_path / "run", train__total_images="60"))
    assert outcomes == [60, 60]


def trained(experiment: Experiment) -> int:
    images: int = work(experiment, prepare(experiment.data), Ranks())["images"]
    return images


def test_a_plan_says_what_is_known_and_what_is_lost(web: Web, tmp_path: Path) -> None:
    planned = plan(asked(web, tmp_path / "run"))
    text = "\n".join(planned.lines())
    assert "an unknown number of records in 3 shards, 0 held out" in text
    assert all(promise in text for promise in LOST)
    assert (planned.total_images, planned.records) == (240, 0)
    assert not web.seen, "nothing is read for a plan"


def test_what_cannot_be_planned_is_refused_by_name(web: Web, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="train.epochs = 2 cannot be counted.*set train.total_images"
    ):
        plan(asked(web, tmp_path, train__total_images="0", train__epochs="2"))
    with pytest.raises(UsageError, match="there are 3 for run.workers = 4"):
        plan(asked(web, tmp_path, run__workers="4"))
    with pytest.raises(UsageError, match="http: cannot be indexed.*data.sequential = true"):
        plan(asked(web, tmp_path, data__sequential="false"))
