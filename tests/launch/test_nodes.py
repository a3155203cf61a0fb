"""Several nodes under real Ray: a range of workers goes on when a node is lost, and grows when one
comes.
"""

import contextlib
import io
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.launch import rays
from tests.launch.test_worker import curves, finished, manifest, wanted
from tests.training import gloo
from udl_dist.errors import ClusterError
from udl_dist.launch import capacity, driver, ray_runtime, train_group
from udl_dist.runs.run_folder import RunFolder

# Ray and its threads warn at will; they are not ours to mend.
pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("default")]
IMAGES, CHECKPOINT_IMAGES = 24_000, 1200
FLAGS = {
    "run__determinism": "elastic",
    "train__total_images": str(IMAGES),
    "evaluate__every_images": "6000",
    "train__report_images": "240",
    "run__checkpoint_images": str(CHECKPOINT_IMAGES),
    "run__hang_seconds": "30",
}


class Nodes:
    """A cluster whose head has no cores, and nodes of one core each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        memory = 80_000_000
        self.cluster = Cluster(True, head_node_args={"num_cpus": 0, "object_store_memory": memory})
        self._memory = memory
        self.nodes: list[Any] = []

    def add(self, **environment: str) -> None:
        # Ray's own, which only a main thread may set
        with patch("ray._private.utils.set_sigterm_handler"):
            self.nodes.append(
                self.cluster.add_node(
                    num_cpus=1, object_store_memory=self._memory, env_vars=environment
                )
            )

    def lose(self) -> None:
        """As if somebody pulled the plug."""
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    keys = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    # as the nodes of a cluster have them
    for name, value in (ray_runtime.ENVIRONMENT | keys).items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

        rays.end()
        nodes = Nodes()
        ray.init(address=nodes.cluster.address, log_to_driver=False, logging_level="ERROR")
        yield nodes
        ray.shutdown()
        nodes.cluster.shutdown()


@pytest.fixture(autouse=True)
def three(nodes: Nodes) -> None:
    """Three nodes at the start of each test."""
    while nodes.nodes:
        nodes.lose()
    for _ in range(3):
        nodes.add()
    nodes.cluster.wait_for_nodes()


def said(folder: Path) -> str:
    path = folder / "messages.log"
    return path.read_text() if path.exists() else ""


def reached(folder: Path) -> float:
    """Images of the last point that is written."""
    return max((point["images"] for point in RunFolder(folder).points()), default=0)


@contextlib.contextmanager
def acting(folder: Path, *turns: tuple[str, Callable[[], None]]) -> Iterator[None]:
    """Do each act two checkpoints after its line is said, for the first time after the act before;
    all are done.
    """
    over = threading.Event()

    def watch() -> None:
        at = 0
        for line, do in turns:
            while (found := said(folder).find(line, at)) < 0:
                time.sleep(0.1)
            at, since = found + len(line), reached(folder)
            while reached(folder) < since + 2 * CHECKPOINT_IMAGES:
                time.sleep(0.1)
            do()
        over.wait()  # a node dies with the thread that started it

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
    thread.join(1)
    assert not thread.is_alive(), "not all was done"


def test_a_node_lost_and_a_node_added_change_nothing_in_the_end(
    source: Path, tmp_path: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "GROW_SECONDS", 1.0)
    run = tmp_path / "run"
    with acting(run, ("3 workers", nodes.lose), (" 2 workers", nodes.add)):
        assert driver.train(
            wanted("vae", source, run, run__workers="2..4", **FLAGS), io.StringIO()
        ).complete
    reported = said(run)
    assert reported.index(" 3 workers") < reported.index(
        "start again from the newest checkpoint (1 of 3)"
    )
    assert (
        reported.index(" 2 workers")
        < reported.index("3 workers can be had now, not 2")
        < reported.rindex(" 3 workers")
    )
    gloo.run(1, finished, wanted("vae", source, tmp_path / "whole", **FLAGS), seconds=300)
    assert manifest(run, IMAGES) == manifest(tmp_path / "whole", IMAGES)
    assert [pytest.approx(point, rel=1e-5) for point in curves(run)] == curves(tmp_path / "whole")


def test_too_few_nodes_left_end_the_run_with_asked_and_available(
    source: Path, tmp_path: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_group, "START_SECONDS", 1.0)
    expected = "run.workers = 3..4 needs 3 CPU cores, the cluster has 2 CPU cores"
    with acting(tmp_path, ("workers", nodes.lose)), pytest.raises(ClusterError, match=expected):
        driver.train(wanted("vae", source, tmp_path, run__workers="3..4", **FLAGS), io.StringIO())
    assert (tmp_path / "checkpoints").exists()


def test_a_start_waits_for_a_node_that_is_on_its_way(
    source: Path, tmp_path: Path, nodes: Nodes
) -> None:
    """An autoscaler sees what is missing; here the node comes by hand."""
    many = len(nodes.nodes) + 1
    flags = {"run__workers": str(many), "run__place_seconds": "120", "train__total_images": "240"}
    seen: list[Any] = []
    ended = threading.Event()

    def add() -> None:
        from ray.util.placement_group import placement_group_table

        pending: list[Any] = []
        while not pending and not ended.is_set():
            pending = [
                each for each in placement_group_table().values() if each["state"] == "PENDING"
            ]
            time.sleep(0.2)
        seen.extend(pending)
        nodes.add()
        ended.wait()  # the processes of a node end with the thread that started them

    adding = threading.Thread(target=add, daemon=True)
    adding.start()
    try:
        assert driver.train(wanted("ae", source, tmp_path, **flags), io.StringIO()).complete
    finally:
        ended.set()
        adding.join()
    assert len(seen[0]["bundles"]) == many
