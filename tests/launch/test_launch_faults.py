"""Faults under real Ray: a stopped worker is ended and all start again; a fault that repeats ends
the run by name.
"""

import io
from pathlib import Path

import pytest

from tests import faults
from tests.launch.test_worker import finished, manifest, wanted
from tests.training import gloo
from udl_dist.errors import ClusterError, TrainingError
from udl_dist.launch import driver

# Ray and its threads warn at will; they are not ours to mend.
pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("default")]
FLAGS = {"run__workers": "2", "train__total_images": "2400", "evaluate__every_images": "600"}


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("act", "expected"),
    [
        ("freeze", "rank 1 had no heartbeat after 708 images"),
        ("kill", "rank 1 failed after 708 images: its process died"),
    ],
)
def test_a_stopped_or_killed_worker_changes_nothing_in_the_end(
    act: str, expected: str, source: Path, tmp_path: Path
) -> None:
    gloo.run(2, finished, wanted("ae", source, tmp_path / "whole", **FLAGS))
    experiment = wanted("ae", source, tmp_path / "stopped", run__hang_seconds="4", **FLAGS)
    faults.arm(tmp_path / "stopped", f"{act} rank 1 at image 700 in phase")
    ended = driver.train(experiment, io.StringIO())
    assert ended.complete
    said = (tmp_path / "stopped" / "messages.log").read_text()
    assert expected in said
    assert "all workers start again from the newest checkpoint (1 of 3)" in said
    assert "resumed after 600 images" in said
    stacks = tmp_path / "stopped" / "stacks-0.txt"
    assert act == "kill" or "backward" in stacks.read_text()
    assert manifest(tmp_path / "stopped", 2400) == manifest(tmp_path / "whole", 2400)


@pytest.mark.usefixtures("cluster")
def test_a_fault_that_repeats_ends_the_run_by_its_first_error(source: Path, tmp_path: Path) -> None:
    experiment = wanted("ae", source, tmp_path, **FLAGS)
    faults.arm(tmp_path, "raise rank 1 at image 700 in phase always")
    with pytest.raises(TrainingError) as caught:
        driver.train(experiment, io.StringIO())
    assert str(caught.value).startswith(
        "rank 1 failed after 708 images: raised on purpose; it did so twice"
    )
    assert (tmp_path / "messages.log").read_text().count("all workers start again") == 1


@pytest.mark.usefixtures("cluster")
def test_workers_that_find_no_place_end_the_run_with_asked_and_available(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    class Busy:
        def ready(self) -> bool:
            return True

    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "3")
    busy = ray.remote(num_cpus=3)(Busy).remote()
    assert ray.get(busy.ready.remote())
    with pytest.raises(
        ClusterError, match=r"run.workers = 2 could not be placed in 3 tries; free now: 1 CPU core"
    ):
        driver.train(wanted("ae", source, tmp_path, **FLAGS), io.StringIO())
    ray.kill(busy)
