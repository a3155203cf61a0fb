"""A launcher for tests that is not Ray: forked gloo ranks, started again all together while any of
them ends badly.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests import faults
from tests.training.gloo import context
from tests.training.learn import asked
from udl_dist import experiment as experiments
from udl_dist.data.packing.prepare import prepare
from udl_dist.experiment import Experiment
from udl_dist.runs import heartbeat
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training import checkpoint

QUIET = {"track__mode": "off", "evaluate__pictures": "false"}


def run(
    experiment: Experiment, wanted: str = "", starts: int = 5, seconds: float = 90, hook: Any = None
) -> int:
    """Train in `run.workers` ranks to the end, starting again up to `starts` times; return how
    often it started.

    `wanted` are faults; `hook(turn)` runs in each rank before its work.
    """
    folder = RunFolder(experiment.run.folder)
    faults.arm(folder.path, wanted)
    with folder.held():
        for start in range(1, starts + 1):
            heartbeat.clear(folder)
            if _group(experiment, start, seconds, hook):
                return start
    raise AssertionError(
        f"{wanted!r}: not done after {starts} starts: {folder.messages.read_text()}"
    )


def _group(experiment: Experiment, start: int, seconds: float, hook: Any) -> bool:
    """One start of all ranks; whether all of them ended well. When one has failed the others get no
    grace.
    """
    with tempfile.TemporaryDirectory() as meet:
        arguments = (meet, experiment.to_dict(), start, hook)
        ranks = [
            context.Process(target=_rank, args=(rank, *arguments))
            for rank in range(experiment.run.most_workers)
        ]
        for rank in ranks:
            rank.start()
        deadline = time.monotonic() + seconds
        while any(rank.exitcode is None for rank in ranks) and not any(
            rank.exitcode for rank in ranks
        ):
            if time.monotonic() > deadline:
                break
            time.sleep(0.005)
        well = all(rank.exitcode == 0 for rank in ranks)
        _end(ranks)
        return well


def _end(ranks: list[ForkServerProcess]) -> None:
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank.pid or 0, signal.SIGKILL) if rank.exitcode is None else None
        rank.join()
        rank.close()


def _rank(rank: int, meet: str, values: dict[str, Any], start: int, hook: Any) -> None:
    import torch
    import torch.distributed as dist

    from udl_dist.launch.worker import work
    from udl_dist.training.distributed import Ranks

    with (
        contextlib.suppress(FileNotFoundError),
        open(Path(values["run"]["folder"]) / "stderr.txt", "a") as file,
    ):
        os.dup2(file.fileno(), 2)  # of ranks that end badly on purpose
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Grad strides do not match", UserWarning)
    experiment = experiments.from_dict(values)
    if experiment.run.most_workers > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{meet}/meet",
            rank=rank,
            world_size=experiment.run.most_workers,
        )
    os.environ.update(faults.FIRE)
    if hook:
        hook(rank, start)
    work(experiment, prepare(experiment.data), Ranks())
    if experiment.run.most_workers > 1:
        dist.barrier()  # no one leaves while another still listens to it
    os._exit(0)  # nothing of the server is to be tidied up here


def wanted(method: str, source: Path, folder: Path, **flags: str) -> Experiment:
    """A small experiment whose run lies in `folder`."""
    return asked(method, source, run__folder=str(folder), **(QUIET | flags))


def command(experiment: Experiment, fault: str) -> int:
    """`udl train` as a person runs it, again after its driver was killed; how often it was
    started.
    """
    job = Path(experiment.run.folder).with_suffix(".toml")
    job.write_text(experiment.to_toml())
    faults.arm(Path(experiment.run.folder), fault)
    arguments = [sys.executable, "-m", "udl_dist", "train", str(job)]
    for turn in range(1, 4):
        done = subprocess.run(
            arguments,
            env=os.environ | faults.FIRE,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode == 0:
            return turn
        assert done.returncode == -9, done.stderr
    raise AssertionError("the driver does not come through")


def restarts(experiment: Experiment) -> int:
    """How often the launcher started all workers again."""
    return RunFolder(experiment.run.folder).messages.read_text().count("all workers start again")


def fingerprint(folder: Path) -> str:
    """One sha256 over the last checkpoint (networks, averages, optimisers) and the curves, times
    left out.
    """
    run = RunFolder(folder)
    last = checkpoint.complete(run.checkpoints)[-1]
    checkpoint.verify(last)
    digest = hashlib.sha256(last.name.encode())
    for path in sorted(last.glob("*.safetensors")):
        digest.update(path.name.encode() + path.read_bytes())
    digest.update(json.dumps(curves(folder)).encode())
    return digest.hexdigest()


def curves(folder: Path) -> list[dict[str, float]]:
    """The points of a run without what depends on time; each once and in order."""
    points = RunFolder(folder).points()
    images = [point["images"] for point in points]
    assert images == sorted(set(images)), f"points twice or out of order: {images}"
    return [
        {name: value for name, value in point.items() if not name.startswith("perf/")}
        for point in points
    ]
