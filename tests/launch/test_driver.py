"""Real Ray, real workers: two ranks end to end, a killed rank, a refusing rank, signals, and
nothing left behind.
"""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch import rays
from tests.launch.test_worker import finished, manifest, wanted
from tests.training import gloo
from tests.training.learn import packed
from udl_dist import experiment as experiments
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.shards.index import Index
from udl_dist.errors import ClusterError, DataError, UsageError
from udl_dist.launch import driver
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training import checkpoint

# Ray and its threads warn at will; they are not ours to mend
pytestmark = pytest.mark.filterwarnings("default")
JOBS = Path(__file__).parents[2] / "jobs"


class Watching(io.StringIO):
    """A terminal that notes, at each line, which actors the Ray of this process runs."""

    actors: frozenset[str] = frozenset()

    def write(self, text: str) -> int:
        self.actors |= rays.actors()
        return super().write(text)


@pytest.mark.usefixtures("cluster")
def test_two_ray_workers_train_and_say_where_everything_lies(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    experiment = wanted("vae", Path(source.name), tmp_path / "run", run__workers="2")
    out = Watching()
    ended = driver.train(experiment, out)
    assert (ended.images, ended.complete, ended.exit_code) == (240, True, 0)
    assert ended.metrics["val/negative_elbo"] > 0
    # Each process more delays the first step by half a second.
    assert "TrainController" in out.actors and "RayTrainWorker" in out.actors
    idle = {"DatasetManager", "PlacementGroupCleaner", "PreemptionWatcher"}
    assert not (idle | {"_AutoscalingCoordinatorActor"}) & out.actors
    assert "100 % · " in out.getvalue() and "240 of 240 images" in out.getvalue()
    assert "starting 2 workers" in out.getvalue().splitlines()
    assert f"udl report {tmp_path}/run --follow" in out.getvalue()
    assert "2, 6 images each a step" in out.getvalue()
    folder = RunFolder(tmp_path / "run")
    assert [point["images"] for point in folder.points()] == sorted(
        {*range(24, 241, 24), 60, 120, 180, 240}
    )
    assert not (tmp_path / "run" / ".ray").exists()
    assert experiments.load(folder.experiment, {}).data.source == str(source), (
        "found from any other folder"
    )
    # Complete: said at once, without workers; more images asked: it goes on.
    again = driver.train(experiment, io.StringIO())
    assert (again.images, again.metrics) == (240, ended.metrics)


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_a_worker_knows_how_many_share_the_cores_of_its_machine(
    source: Path, tmp_path: Path
) -> None:
    experiment = wanted("ae", source, tmp_path / "run", run__workers="2")

    def noted(images: int) -> bool:
        (tmp_path / "shared").write_text(os.environ["LOCAL_WORLD_SIZE"])
        return True

    driver.train_in_cluster(experiment, prepare(experiment.data), noted)
    assert (tmp_path / "shared").read_text() == "2"


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("job", ["kl_digits", "vq_digits"])
def test_the_jobs_of_tokenizers_learn_digits_in_a_fifth_of_their_images(
    job: str, tmp_path: Path
) -> None:
    flags = {
        "run.folder": str(tmp_path / "run"),
        "train.total_images": "12000",
        "method.adversary.acts_after_images": "6000",
        "method.adversary.ramp_images": "1000",
    }
    ended = driver.train(experiments.load(JOBS / f"{job}.toml", flags), io.StringIO())
    assert ended.complete
    assert ended.metrics["train/adversary_weight"] > 0  # it acts
    # The mean image alone has an error of 0.07.
    assert ended.metrics["val/mse"] < 0.02
    assert job != "vq_digits" or ended.metrics["val/usage"] > 0.9


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_the_written_experiment_fed_back_gives_the_same_run(source: Path, tmp_path: Path) -> None:
    first = wanted("ae", source, tmp_path / "first", run__workers="2")
    driver.train(first, io.StringIO())
    again = experiments.load(
        tmp_path / "first" / "experiment.toml", {"run.folder": str(tmp_path / "again")}
    )
    gloo.run(2, finished, again)  # and without Ray, which changes nothing either
    assert manifest(tmp_path / "first") == manifest(tmp_path / "again")


@pytest.mark.usefixtures("cluster")
def test_more_workers_than_cores_are_refused_at_once(source: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    expected = (
        r"run.workers = 5 needs 5 CPU cores, the cluster has 4 CPU cores: set run.workers to 4 or"
        r" fewer"
    )
    with pytest.raises(ClusterError, match=expected):
        driver.train(wanted("ae", source, tmp_path, run__workers="5"), io.StringIO())
    expected = (
        r"run.workers = 2 needs 2 CPU cores and 2 GPUs, the cluster has 4 CPU cores and 0 GPUs:"
        r" set run.device to cpu"
    )
    with pytest.raises(ClusterError, match=expected):
        driver.train(
            wanted("ae", source, tmp_path, run__workers="2", run__device="cuda"), io.StringIO()
        )
    # Of a cluster the number is known only where Ray is.
    joined = wanted("ae", source, tmp_path, run__device="cuda", run__address="auto")
    with pytest.raises(
        ClusterError, match=r"run.workers = 1 needs 1 CPU core and 1 GPU, .*: set run.device to cpu"
    ):
        driver.train(joined, io.StringIO())
    assert "run.workers = auto: 1" in RunFolder(tmp_path).messages.read_text()
    assert time.monotonic() - began < 10


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_a_worker_that_refuses_ends_the_run_with_its_own_words(tmp_path: Path) -> None:
    """A record damaged on disk after it was indexed: the rank that reads it says which, no one
    retries or waits.
    """
    damaged = packed(tmp_path)
    shard = damaged / "train" / "000000.tar"
    content = bytearray(shard.read_bytes())
    content[int(Index.open(damaged / "train").rows["offset"][3]) + 150] ^= 1
    stat = shard.stat()
    shard.write_bytes(content)
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    began = time.monotonic()
    with pytest.raises(DataError, match=r"000000\.tar"):
        driver.train(wanted("ae", damaged, tmp_path / "run", run__workers="2"), io.StringIO())
    assert time.monotonic() - began < 60


def test_a_source_is_the_same_by_its_relative_and_its_whole_path(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    for saved, asked in ((source, source.name), (source.name, source), (source.name, source.name)):
        first = wanted("ae", Path(saved), tmp_path, train__total_images="24")
        finished(first)
        RunFolder(tmp_path).finish({"images": 24, "figures": {}})
        (tmp_path / "experiment.toml").write_text(first.to_toml())
        ended = driver.train(
            wanted("ae", Path(asked), tmp_path, train__total_images="24"), io.StringIO()
        )
        assert ended.complete


def test_a_folder_that_holds_another_experiment_is_left_alone(source: Path, tmp_path: Path) -> None:
    first = wanted("ae", source, tmp_path, train__total_images="24")
    finished(first)
    (tmp_path / "experiment.toml").write_text(first.to_toml())
    before = {
        path: path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file() and path.name != "lock"
    }
    with pytest.raises(
        UsageError,
        match=r"holds another experiment: method.latent_dim was 4, now 5: choose another",
    ):
        driver.train(wanted("ae", source, tmp_path, method__latent_dim="5"), io.StringIO())
    with pytest.raises(UsageError, match=r"holds another experiment: method.* and \d+ more"):
        driver.train(wanted("vae", source, tmp_path), io.StringIO())
    assert before == {
        path: path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file() and path.name != "lock"
    }


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_a_signal_ends_a_run_with_a_checkpoint_and_the_same_command_goes_on(
    source: Path, tmp_path: Path
) -> None:
    """The whole command, its own Ray: Ctrl-C, exit 130, nothing left alive; then on to the same
    weights.
    """
    flags = {"run__workers": "2", "train__total_images": "4800", "evaluate__every_images": "1200"}
    whole = wanted("ae", source, tmp_path / "whole", **flags)
    finished(whole)
    job = tmp_path / "job.toml"
    job.write_text(
        wanted("ae", source, tmp_path / "run", **(flags | {"run__workers": "1"})).to_toml()
    )
    command = [sys.executable, "-m", "udl_dist", "train", str(job)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    folder = RunFolder(tmp_path / "run")
    deadline = time.monotonic() + 180
    while not folder.points():
        assert time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole foreground group
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopping: a checkpoint is written first" in err
    assert "stopped; the same command goes on" in out
    deadline = time.monotonic() + 10
    while descendants(process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not descendants(process.pid)
    assert checkpoint.complete(folder.checkpoints)
    assert driver.train(experiments.load(job, {}), io.StringIO()).images == 4800
    assert manifest(tmp_path / "run", 4800) == manifest(tmp_path / "whole", 4800)


def descendants(session_id: int) -> list[str]:
    """Command lines of processes that still live and belong to a session (a dead one that no one
    reaped has none).
    """
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if os.getsid(int(entry.name)) == session_id and (
                    command := (entry / "cmdline").read_text()
                ):
                    found.append(command)
            except (OSError, ProcessLookupError):
                continue
    return found
