"""python -m tests.bench.search_kills [--kills 10] [--trials 16]: kill -9 to the head of a search at
random.

The kills are spread over the search: each comes within a second after a random number of trials
have started or ended. Each start is the whole command with a Ray of its own, with one actor and two
by turns. In the end every decision, every line of the journal, the finalists and the winner are
those of a search that was never disturbed (trained in this process, one trial after the other).
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from tests.search.asked import wanted
from tests.search.simulated import controller, logged, trained
from tests.training.learn import packed
from udl_dist.search.config import Search
from udl_dist.search.final_runs import final_runs
from udl_dist.search.results import read_result
from udl_dist.search.trial_log import DECISIONS, LOG

UDL = (sys.executable, "-m", "udl_dist")
IMAGES = 38_400  # of a trial: so many that few end between two kills
FLAGS = {
    "train__total_images": str(IMAGES),
    "train__report_images": "1200",
    "run__checkpoint_images": "2400",
}
NO_ENDS: dict[str, Any] = {"plots": False, "evaluate": False, "export": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--scheduler", choices=("halving", "asha"), default="halving")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)  # it was imported before
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = packed(Path(folder) / "data")
        whole, cut = (
            wanted(
                source,
                Path(folder) / name,
                flags=FLAGS,
                trials=asked.trials,
                scheduler=asked.scheduler,
                budget_images=IMAGES,
                least_images=0,
                finalists=2,
                **NO_ENDS,
            )
            for name in ("whole", "cut")
        )
        expected = undisturbed(whole)
        said = killed(cut, asked.kills, random.Random(asked.seed))
        lines = (cut.folder / LOG).read_text().splitlines()
        same = {
            "trials": logged(cut.folder) == logged(whole.folder),
            "decisions": decisions(cut.folder) == decisions(whole.folder),
            "winner": said["best"] == expected["best"],
            "its runs": said["final"] == expected["final"],
        }
    parts = ", ".join(f"{name} {'same' if each else 'DIFFERENT'}" for name, each in same.items())
    print(f"{len(lines)} lines of {asked.trials} trials: {parts}; {said['states']}")
    assert all(same.values())
    assert len(lines) == asked.trials


def undisturbed(search: Search) -> dict[str, Any]:
    """Train all trials and finalists in this process; what the search found."""
    trained(trials := controller(search, simulated=False))
    final = final_runs(search, trials.planned, trials.log)
    assert final
    trained(final)
    return read_result(search, trials.planned, trials.log).as_dict()


def decisions(folder: Path) -> dict[str, str]:
    """The decisions of each trial, as its folder has them."""
    return {path.parent.name: path.read_text() for path in folder.glob(f"trials/*/{DECISIONS}")}


def killed(search: Search, kills: int, chance: random.Random) -> dict[str, Any]:
    """Kill the head of a search so often; what its last start said."""
    job, trials = search.folder.with_suffix(".toml"), search.settings.trials
    job.write_text(search.to_toml())
    # At most two trials of the last rung end before the last kill.
    moments = sorted(chance.randrange(2 * trials - 2) for _ in range(kills))
    for start in range(kills + 1):
        actors = str(1 + start % 2)
        process = subprocess.Popen(
            [*UDL, "search", str(job), "--json", "--search.parallel", actors],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        if start < kills:
            at_work(process, search.folder, moments[start])
            time.sleep(chance.uniform(0, 1))
            assert process.poll() is None, "the search ended before the last kill"
            os.kill(process.pid, signal.SIGKILL)
            print(f"kill {start + 1}: {progress(search.folder)} of {2 * trials}", flush=True)
        out, err = process.communicate()
        if start < kills:
            time.sleep(1)
    assert process.returncode == 0, err.decode()
    said: dict[str, Any] = json.loads(out)
    return said


def progress(folder: Path) -> int:
    """The trials that have started, and those that have ended."""
    journal = folder / LOG
    ended = journal.read_bytes().count(b"\n") if journal.exists() else 0
    return ended + sum(1 for _ in folder.glob("trials/*"))


def at_work(process: subprocess.Popen[bytes], folder: Path, moment: int) -> None:
    """Wait until the search is at this moment and a run gets somewhere in this start, or it is
    over.
    """
    began = time.time()
    while process.poll() is None:
        moving = any(path.stat().st_mtime > began for path in folder.glob("**/curves.jsonl"))
        if moving and progress(folder) >= moment:
            return
        time.sleep(0.1)


if __name__ == "__main__":
    main()
