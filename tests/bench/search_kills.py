"""python -m tests.bench.search_kills [--kills 20] [--trials 32]: kill -9 to the head of a search at
random.

The kills are spread over the search: each comes within a second after a random number of trials
have ended. Each start is the whole command with a Ray of its own. In the end all trials have ended,
none twice, and every line of the journal is that of a search that was never disturbed (trained in
this process, one trial after the other).
"""

import argparse
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
from udl_dist.search.trial_log import TrialLog

IMAGES = 38_400  # of a trial: so many that few end between two kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)  # it was imported before
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        suite(Path(folder), asked.kills, asked.trials, random.Random(asked.seed))


def suite(folder: Path, kills: int, trials: int, chance: random.Random) -> None:
    """Kill so often; print and hold the outcome."""
    source = packed(folder / "data")
    plain: dict[str, Any] = {
        "trials": trials,
        "budget_images": IMAGES,
        "least_images": 0,
        "final_seeds": 0,
        "plots": False,
    }
    flags = {
        "train__total_images": str(IMAGES),
        "train__report_images": "1200",
        "run__checkpoint_images": "2400",
    }
    trained(
        whole := controller(wanted(source, folder / "whole", flags=flags, **plain), simulated=False)
    )
    job, journal = folder / "job.toml", folder / "cut" / "trials.jsonl"
    job.write_text(wanted(source, folder / "cut", flags=flags, **plain).to_toml())
    moments, killed, starts = sorted(chance.randrange(trials - 4) for _ in range(kills)), 0, 0
    while True:
        starts += 1
        process = subprocess.Popen(
            [sys.executable, "-m", "udl_dist", "search", str(job)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        if killed < kills:
            at_work(process, folder / "cut", moments[killed])
        try:
            out, _ = process.communicate(timeout=chance.uniform(0, 1) if killed < kills else 900)
            break
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            killed += 1
            print(
                f"kill {killed}: {len(TrialLog(journal).results)} of {trials} trials had ended",
                flush=True,
            )
            time.sleep(1)
    assert process.returncode == 0, out.decode()
    lines = journal.read_text().splitlines()
    same = logged(folder / "cut") == logged(folder / "whole")
    print(
        f"{killed} kills, {starts} starts: {len(lines)} lines, {len(TrialLog(journal).results)}"
        f" trials, {'all as undisturbed' if same else 'DIFFERENT'}"
    )
    assert same
    assert killed == kills, "the search ended before the last kill"
    assert len(lines) == len(whole.log.results) == trials


def at_work(process: subprocess.Popen[bytes], search: Path, ended: int) -> None:
    """Wait until so many trials have ended and one gets somewhere in this start, or the search is
    over.
    """
    began, journal = time.time(), search / "trials.jsonl"
    while process.poll() is None:
        if (not ended or (journal.exists() and journal.read_bytes().count(b"\n") >= ended)) and any(
            path.stat().st_mtime > began for path in (search / "trials").glob("*/curves.jsonl")
        ):
            return
        time.sleep(0.1)


if __name__ == "__main__":
    main()
