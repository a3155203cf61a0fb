"""python -m tests.bench.tracking: what a W&B that is not well costs: steps (goal 1 %), start and
end (10 and 30 s).

Whole runs of one rank on the embedded digits with a point every 64 steps, by turns with W&B off and
with each illness. The time of a step is read from the curves; what a run takes besides its steps is
its start and its end.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tests.bench.step import BATCH, FLAGS
from tests.runs.tracked import unwell

TURNS, POINTS = 5, 60
EVERY = 64 * BATCH
ILLNESSES: dict[str, dict[str, float]] = {
    "401": {"status": 401},
    "429": {"status": 429},
    "500": {"status": 500},
    "stalls": {"status": 200, "stall_seconds": 120},
    "500 once begun": {"status": 500, "starts": True},
    "stalls once begun": {"status": 200, "stall_seconds": 120, "starts": True},
}
RUN = """
import json, sys
from pathlib import Path
from typing import Any, Any
from udl_dist import experiment
from udl_dist.data.packing.prepare import prepare
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training.distributed import Ranks
from udl_dist.launch.worker import work
wanted = experiment.load(None, json.loads(sys.argv[1]))
work(wanted, prepare(wanted.data), Ranks())
points = RunFolder(Path(wanted.run.folder)).points()
print(json.dumps([point["perf/images_per_second"] for point in points]))
"""


def server(kind: str) -> AbstractContextManager[tuple[str, list[str]]]:
    """Its address; nobody listens there where no illness is asked for."""
    if kind not in ILLNESSES:
        return nullcontext(("http://127.0.0.1:9", []))
    illness: Any = ILLNESSES[kind]
    return unwell(**illness)


def run(kind: str) -> tuple[float, float]:
    """Milliseconds of a step (median of the intervals), seconds that the process takes besides its
    steps.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    with tempfile.TemporaryDirectory() as folder, server(kind) as (url, _):
        flags = FLAGS | {
            "train.total_images": str(POINTS * EVERY),
            "train.report_images": str(EVERY),
            "run.folder": f"{folder}/run",
            "track.mode": "off" if kind == "off" else "auto",
        }
        own = {
            "HOME": folder,
            "NETRC": f"{folder}/none",
            "WANDB_API_KEY": "x" * 40,
            "WANDB_BASE_URL": url,
            "OMP_NUM_THREADS": "1",
        }  # a core is left for others: two threads on two cores are slowed by anybody
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", RUN, json.dumps(flags)],
            env=clean | own,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        took = time.perf_counter() - began
    rates = json.loads(done.stdout.splitlines()[-1])
    return 1000 * BATCH / statistics.median(rates[1:]), took - sum(EVERY / rate for rate in rates)


def main() -> None:
    run("off")  # warms the caches
    for kind in ("nobody there", *ILLNESSES):
        steps, rests = [], []
        for turn in range(TURNS):
            order = ("off", kind) if turn % 2 else (kind, "off")
            seen = {name: run(name) for name in order}
            steps.append(seen[kind][0] / seen["off"][0])
            rests.append(seen[kind][1] - seen["off"][1])
        middle, least, most = (100 * (which(steps) - 1) for which in (statistics.median, min, max))
        print(
            f"{kind:18} a step {middle:+.1f} % ({least:+.1f} to {most:+.1f}), "
            f"start and end {statistics.median(rests):+.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
