"""Whole searches under a real Ray: what they leave, what a trial that fails costs, and a head that
is killed.
"""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests import faults
from tests.launch.test_driver import descendants
from tests.launch.test_worker import finished, manifest
from tests.search.asked import wanted
from tests.search.simulated import controller, logged, trained
from tests.test_cli import refused
from tests.test_cli import udl_subprocess as udl
from udl_dist import experiment as experiments
from udl_dist.errors import UsageError
from udl_dist.runs.run_folder import RunFolder
from udl_dist.search import session
from udl_dist.search.config import Search
from udl_dist.search.results import SearchResult
from udl_dist.search.trial import folder_of
from udl_dist.search.trial_log import TrialLog

pytestmark = pytest.mark.filterwarnings(
    "default"
)  # Ray and its threads warn at will; they are not ours to mend


def searched(search: Search) -> tuple[SearchResult, str]:
    out = io.StringIO()
    return session.search(search, out), out.getvalue()


@pytest.mark.usefixtures("cluster")
def test_a_search_is_what_its_trials_are_one_after_the_other_and_leaves_all_of_it(
    source: Path, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {
        "trials": 6,
        "keep": 2,
        "parallel": 2,
        "finalists": 2,
        "final_seeds": 2,
        "least_images": 72,
        "reduction": 2,
    }
    search = wanted(source, tmp_path / "ray", **asked)
    ended, said = searched(search)
    assert (ended.complete, ended.exit_code) == (True, 0)
    alone = controller(wanted(source, tmp_path / "alone", **asked), simulated=False)
    trained(alone)
    assert logged(tmp_path / "ray") == logged(tmp_path / "alone")
    states = [line.state for line in ended.results]
    assert {*states} == {"complete", "stopped"}
    assert "6 of 6 trials · 0 running" in said

    # A trial is a run: its experiment, trained by itself, has the same weights to the bit.
    assert ended.winner
    folder = folder_of(search, ended.winner.trial)
    again = experiments.load(folder / "experiment.toml", {"run.folder": str(tmp_path / "again")})
    finished(again)
    assert manifest(folder) == manifest(tmp_path / "again")
    with_checkpoints = [
        number for number in range(6) if RunFolder(folder_of(search, number)).checkpoints.exists()
    ]
    assert len(with_checkpoints) == 2
    assert ended.winner.trial in with_checkpoints

    final = ended.final["val/mse"]
    assert final.runs == 2
    assert final.sd > 0
    assert experiments.load(tmp_path / "ray" / "winner.toml", {}).method.latent_dim in (2, 3, 4)
    assert len((tmp_path / "ray" / "search.csv").read_text().splitlines()) == 7
    drawn = {path.stem for path in (tmp_path / "ray" / "plots").iterdir()}
    assert drawn == {"curves", "settings"}
    assert not (tmp_path / "ray" / ".tune").exists()

    def written() -> dict[Path, int]:
        """When each checkpoint and the record of trials were written."""
        files = [*(tmp_path / "ray").rglob("*.safetensors"), tmp_path / "ray" / "trials.jsonl"]
        return {path: path.stat().st_mtime_ns for path in files}

    before = written()
    assert len(before) > 1
    assert searched(search)[0].final == ended.final
    assert written() == before  # nothing was trained again
    assert session.status(tmp_path / "ray").as_dict() == ended.as_dict()


@pytest.mark.usefixtures("cluster")
def test_trials_that_die_diverge_raise_or_fill_the_disk_cost_themselves_only(
    source: Path, tmp_path: Path
) -> None:
    flags = {"run__max_failures": "0", "run__checkpoint_images": "24"}
    search = wanted(
        source,
        tmp_path,
        {"train.learning_rate": {"log": [1e-4, 1e-2]}},
        flags=flags,
        trials=6,
        parallel=2,
        scheduler="none",
        plots=False,
        final_seeds=0,
    )
    faults.arm(folder_of(search, 1), "kill rank 0 at image 60")
    faults.arm(folder_of(search, 3), "raise rank 0 at image 60")
    faults.arm(folder_of(search, 4), "; ".join(f"enospc at save {save}" for save in range(1, 15)))
    ended, said = searched(search)
    states = {line.trial: line.state for line in ended.results}
    assert states == {
        0: "complete",
        1: "failed",
        2: "complete",
        3: "failed",
        4: "failed",
        5: "complete",
    }
    why = {line.trial: line.why for line in ended.results}
    assert "its process died without an error" in why[1]
    assert "raised on purpose" in why[3]
    assert "could not be written" in why[4]
    assert ended.winner
    assert ended.winner.trial in (0, 2, 5)
    assert "trial 3 failed after" in said
    undisturbed = controller(
        wanted(
            source,
            tmp_path / "well",
            {"train.learning_rate": {"log": [1e-4, 1e-2]}},
            flags=flags,
            trials=6,
            scheduler="none",
        )
    )
    trained(undisturbed)
    for number in (0, 2, 5):
        assert undisturbed.log.results[number].metric == ended.results[number].metric


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_more_trials_may_be_asked_for_later_and_another_winner_is_trained_again(
    source: Path, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"plots": False, "scheduler": "none"}
    first, _ = searched(wanted(source, tmp_path, trials=1, **asked))
    before = (tmp_path / "trials.jsonl").read_bytes()
    more, _ = searched(wanted(source, tmp_path, trials=6, **asked))
    assert (tmp_path / "trials.jsonl").read_bytes().startswith(before)
    assert [line.trial for line in more.results] == list(range(6))
    assert first.winner
    assert more.winner
    assert more.winner.trial != first.winner.trial
    assert more.final != first.final


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_a_trial_that_hangs_is_ended_and_goes_on_in_another_process(
    source: Path, tmp_path: Path
) -> None:
    search = wanted(
        source,
        tmp_path,
        flags={"run__hang_seconds": "2"},
        trials=3,
        parallel=2,
        scheduler="none",
        plots=False,
        final_seeds=0,
    )
    faults.arm(folder_of(search, 1), "loop rank 0 at image 60")
    ended, _ = searched(search)
    assert [line.state for line in ended.results] == ["complete"] * 3
    assert "made no step for 2 s" in RunFolder(folder_of(search, 1)).messages.read_text()


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_trials_of_two_workers_are_decided_as_those_of_one_and_six_end_where_one_has_place(
    source: Path, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"trials": 6, "reduction": 2, "final_seeds": 0, "plots": False}
    two = wanted(source, tmp_path / "two", flags={"run__workers": "2"}, parallel=1, **asked)
    ended, _ = searched(two)
    one, _ = searched(wanted(source, tmp_path / "one", **asked))
    assert [line.state for line in ended.results] == [line.state for line in one.results]
    assert [line.images for line in ended.results] == [line.images for line in one.results]
    assert [line.metric for line in ended.results] == pytest.approx(
        [line.metric for line in one.results], rel=1e-3
    )


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_the_cores_of_a_stopped_group_are_back_within_five_seconds(
    source: Path, tmp_path: Path
) -> None:
    import ray

    samples: list[tuple[float, float]] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            samples.append((time.time(), ray.available_resources().get("CPU", 0)))

    watcher = threading.Thread(target=look)
    watcher.start()
    search = wanted(
        source,
        tmp_path,
        flags={"run__workers": "2"},
        parallel=1,
        trials=4,
        reduction=4,
        final_seeds=0,
        plots=False,
    )
    lines = searched(search)[0].results
    ended.set()
    watcher.join()
    stopped = [line.trial for line in lines if line.state == "stopped"]
    assert stopped
    for number in stopped:
        decided_at = (folder_of(search, number) / "decisions.jsonl").stat().st_mtime
        assert (
            min(moment for moment, free in samples if moment > decided_at and free == 4)
            - decided_at
            < 5
        )


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_a_search_whose_time_is_over_is_gone_on_with_by_the_same_command(
    source: Path, tmp_path: Path
) -> None:
    search = wanted(
        source,
        tmp_path,
        flags={"train__total_images": "12000"},
        budget_images=12000,
        trials=4,
        scheduler="none",
        plots=False,
        final_seeds=0,
    )
    cut, said = searched(search.replace(seconds=8.0, parallel=1))
    assert "search.seconds = 8 are over" in said
    assert (cut.complete, cut.exit_code) == (False, 0)
    assert searched(search)[0].complete


@pytest.mark.usefixtures("cluster")
def test_more_workers_a_trial_than_the_cluster_has_are_refused(
    source: Path, tmp_path: Path
) -> None:
    from udl_dist.errors import ClusterError

    with pytest.raises(
        ClusterError,
        match=r"a trial of run.workers = 9 needs 9 CPU cores, the cluster has 4 CPU cores: set"
        " run.workers to 4 or fewer",
    ):
        searched(wanted(source, tmp_path, flags={"run__workers": "9"}))


def test_a_folder_that_holds_another_search_or_a_run_is_left_alone(
    source: Path, tmp_path: Path
) -> None:
    search = wanted(source, tmp_path)
    (tmp_path / "search.toml").write_text(search.to_toml())
    with pytest.raises(
        UsageError, match=r"holds another search: search.seed was 0, now 1: choose another"
    ):
        searched(search.replace(seed=1))
    with pytest.raises(UsageError, match=r"holds another search: .*method.latent_dim"):
        searched(wanted(source, tmp_path, {"method.latent_dim": {"choice": [2, 3]}}))
    with RunFolder(tmp_path).held(), pytest.raises(UsageError, match=r"is in use by process \d+"):
        searched(search)
    (tmp_path / "search.toml").rename(tmp_path / "experiment.toml")
    with pytest.raises(UsageError, match="holds a run: choose another"):
        searched(search)
    refused(udl("search", "--status", str(tmp_path)), 2, "is not a search")


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_head_that_is_killed_or_stopped_goes_on_and_comes_to_the_same(
    number: signal.Signals, source: Path, tmp_path: Path
) -> None:
    """The whole command with a Ray of its own, cut off and resumed: here, or by the command too."""
    asked: dict[str, Any] = {"trials": 4, "final_seeds": 0, "plots": False, "parallel": 2}
    asked |= {"budget_images": 2400, "least_images": 0}
    flags = {"train__total_images": "2400"}
    whole = wanted(source, tmp_path / "whole", flags=flags, **asked)
    trained(controller(whole, simulated=False))
    job = tmp_path / "job.toml"
    cut = wanted(source, tmp_path / "cut", flags=flags, **asked)
    job.write_text(cut.to_toml())
    log = tmp_path / "cut" / "trials.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "udl_dist", "search", str(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 180
    while not log.exists() or not TrialLog(log).results:
        assert time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), err
    if number == signal.SIGINT:
        assert "the same command resumes it" in out
        deadline = time.monotonic() + 10
        while descendants(process.pid) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not descendants(process.pid)
        done = udl("search", str(job), "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["ended"] == 4
    assert searched(cut)[0].complete
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
    assert len(log.read_text().splitlines()) == 4
