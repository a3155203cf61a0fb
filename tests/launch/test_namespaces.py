"""A closed cluster of machines that share nothing but object storage: each has its own address,
temporary and home folder, a second network that leads nowhere, and a name that means loopback to
itself.
"""

import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.launch import namespaces
from tests.launch.namespaces import HOME, Network, Node
from tests.launch.test_worker import curves, finished, manifest, wanted
from tests.storage.served import put
from tests.training import gloo
from tests.training.learn import packed
from udl_dist.runs.run_folder import RunFolder
from udl_dist.storage import objects
from udl_dist.storage.uris import joined

pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(why := namespaces.missing()), reason=why)]
IMAGES = 12_000
FLAGS = {
    "train__total_images": str(IMAGES),
    "evaluate__every_images": "6000",
    "train__report_images": "240",
    "run__checkpoint_images": "1200",
    "run__determinism": "elastic",
    "run__hang_seconds": "30",
    "data__held_out_fraction": "0.2",
    "data__storage_cache_bytes": "10000000",
}
JOB, DASHBOARD = str(HOME / "job.toml"), "http://127.0.0.1:8265"


class Cluster:
    """A head without CPUs, and nodes of one CPU each."""

    def __init__(self, network: Network, data: Path) -> None:
        self.network, self.data = network, data
        self.source = put(data / "train", "nodes")  # without an index: training makes one
        self.head, self.nodes = network.add(), list[Node]()
        done = self.head.ray(
            "--head",
            "--port",
            "6379",
            "--num-cpus",
            "0",
            "--num-gpus",
            "0",
            "--include-dashboard",
            "true",
            "--dashboard-host",
            "127.0.0.1",
        )
        assert done.returncode == 0, done.stdout + done.stderr
        self.address = f"{self.head.address}:6379"

    def add(self) -> None:
        self.nodes.append(self.network.add())
        done = self.nodes[-1].ray("--address", self.address, "--num-cpus", "1")
        assert done.returncode == 0, done.stdout + done.stderr

    def job(self, method: str, folder: str, **flags: str) -> None:
        """Put a job file into the home of the head."""
        asked = {"data__source": self.source, "run__folder": folder, **FLAGS, **flags}
        self.head.write(JOB, wanted(method, self.data, self.data / "unused", **asked).to_toml())

    def alive(self) -> int:
        """How many nodes there are by Ray's own account."""
        ask = (
            "import ray; ray.init('auto', log_to_driver=False); print(sum(node['Alive'] for node in"
            " ray.nodes()))"
        )
        return int(self.head.run("python", "-c", ask).stdout.split()[-1])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with namespaces.network() as network:
        yield Cluster(network, packed(tmp_path_factory.mktemp("data")))


@pytest.fixture
def cluster(made: Cluster) -> Cluster:
    """With three nodes at the start of each test."""
    while len(made.nodes) < 3:
        made.add()
    return made


def brought(far: str, folder: Path) -> Path:
    """All of a run as it lies in the storage, on a disk."""
    for name in objects.listing(far):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        objects.download(joined(far, name), folder / name)
    return folder


def until_reached(far: str, images: int, running: Any) -> None:
    """Wait for a point of the curves, and that three workers made it."""
    deadline, reached, said = time.monotonic() + 180, 0.0, ""
    while reached < images or " 3 workers" not in said:
        assert running.poll() is None and time.monotonic() < deadline, (running.communicate(), said)
        with contextlib.suppress(Exception):  # what is not there yet
            said = objects.read(joined(far, "messages.log")).decode()
            lines = objects.read(joined(far, "curves.jsonl")).splitlines()
            reached = max(json.loads(line)["images"] for line in lines)
        time.sleep(0.2)


TRAIN, SUBMIT = (
    ("train", JOB, "--run.address", "auto"),
    ("submit", JOB, "--follow", "--address", DASHBOARD),
)


@pytest.mark.parametrize(
    ("method", "command", "unplugged", "reported"),
    [
        ("ae", TRAIN, False, ""),
        ("vae", SUBMIT, False, ""),
        ("gan", TRAIN, False, ""),
        ("ae", TRAIN, True, "made no step for 30 s"),
    ],
    ids=["ae", "vae-submitted", "gan", "ae-unplugged"],
)
def test_a_run_whose_node_is_lost_ends_with_the_weights_of_the_undisturbed_one(
    method: str,
    command: tuple[str, ...],
    unplugged: bool,
    reported: str,
    cluster: Cluster,
    tmp_path: Path,
) -> None:
    far = f"s3://bucket/runs/{tmp_path.name}"
    cluster.job(method, far, run__workers="2..3")
    with cluster.head.start("python", "-m", "udl_dist", *command) as running:
        try:
            until_reached(far, 3600, running)
            cluster.nodes.pop(0).lose(unplugged)
            out, err = running.communicate(timeout=240)
        finally:
            running.kill()
    assert running.returncode == 0, out + err
    run = brought(far, tmp_path / "run")
    heard = RunFolder(run).messages.read_text()
    turns = (
        " 3 workers",
        reported,
        "start again from the newest checkpoint (1 of 3)",
        " 2 workers",
        "resumed after",
    )
    assert [heard.index(turn) for turn in turns if turn] == sorted(
        heard.index(turn) for turn in turns if turn
    ), heard
    whole = wanted(
        method, cluster.data, tmp_path / "whole", **{"data__source": cluster.source, **FLAGS}
    )
    gloo.run(1, finished, whole, seconds=300)
    assert manifest(run, IMAGES) == manifest(tmp_path / "whole", IMAGES)
    assert [pytest.approx(point, rel=1e-5) for point in curves(run)] == curves(tmp_path / "whole")


def test_doctor_asks_every_node_by_its_own_address(cluster: Cluster) -> None:
    cluster.job("ae", "s3://bucket/runs/asked", run__workers="3")
    done = cluster.head.udl("doctor", JOB, "--address", DASHBOARD)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        "token      accepted",
        "folder     s3://bucket/runs/asked on all 4 nodes",
        "data       s3://bucket/nodes on all 4 nodes",
        "workers    run.workers = 3 can be placed",
    ):
        assert f"ok   {line}\n" in done.stdout
    cluster.job("ae", "/tmp/run", run__workers="3")
    done = cluster.head.udl("doctor", JOB, "--address", DASHBOARD)
    assert done.returncode == 5
    assert re.search(
        r"^BAD  folder     /tmp/run on node-\d \(10\.77\.0\.\d, node .* and 2 more: ",
        done.stdout,
        re.M,
    )
    assert re.search(rf"^BAD  folder     {HOME}/.cache/udl-dist on node-", done.stdout, re.M)


@pytest.mark.parametrize(
    ("folder", "flags", "expected"),
    [
        (
            "s3://bucket/runs/apart",
            {"data__source": "/tmp/only/packed"},
            "/tmp/only/packed/train/index.udl of the data ",
        ),
        ("/tmp/run", {}, "run.folder /tmp/run is not the same on "),
    ],
    ids=["shards", "run-folder"],
)
def test_what_the_head_alone_has_is_refused_with_the_names_of_the_others(
    folder: str, flags: dict[str, str], expected: str, cluster: Cluster
) -> None:
    pack = (
        "import pathlib; from tests.training.learn import packed as p; p(pathlib.Path('/tmp/only'))"
    )
    assert cluster.head.run("sh", "-c", f'test -d /tmp/only || python -c "{pack}"').returncode == 0
    cluster.job("ae", folder, run__workers="3", **flags)
    named = [f"{node.name} ({node.address}, node " for node in cluster.nodes]
    done = cluster.head.udl("train", JOB, "--run.address", "auto")
    (reported,) = [line for line in done.stderr.splitlines() if line.startswith("udl: ")]
    assert done.returncode == 5, done.stderr
    assert expected in reported
    assert all(name in reported for name in named)
    done = cluster.head.udl("submit", JOB, "--address", DASHBOARD)
    (reported,) = done.stderr.splitlines()
    assert done.returncode == 5
    assert reported.startswith("udl: nothing is sent: ")
    assert any(name in reported for name in named)


def test_a_machine_without_the_token_can_neither_join_nor_train(cluster: Cluster) -> None:
    cluster.job("ae", "s3://bucket/runs/strange", run__workers="3")
    stranger, before = cluster.network.add(knows_token=False), cluster.alive()
    for environment, why in (
        ({}, "no authentication token was found"),
        ({"RAY_AUTH_MODE": "disabled"}, "token is missing or incorrect"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "token is missing or incorrect"),
    ):
        done = stranger.ray("--address", cluster.address, "--num-cpus", "1", **environment)
        assert done.returncode != 0
        assert why in done.stderr
    assert cluster.alive() == before
    stranger.write(JOB, cluster.head.run("cat", JOB).stdout)
    done = stranger.udl("train", JOB, "--run.address", cluster.address)
    (reported,) = [line for line in done.stderr.splitlines() if line.startswith("udl: ")]
    assert done.returncode == 5
    assert f"no Ray at {cluster.address}" in reported
    assert "token" in reported
