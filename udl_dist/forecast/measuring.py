"""Has the workers of a job measured on this machine, as many as it has place for, each in a process of its own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from udl_dist.errors import ClusterError
from udl_dist.experiment import Experiment
from udl_dist.forecast.parts import Parts, fingerprint
from udl_dist.ray_options import search_path
from udl_dist.recovery import as_error
from udl_dist.storage.places import is_remote
from udl_dist.stream.opening import Prepared

MOST_SECONDS = 600.0  # for all but the turns themselves
POLL_SECONDS = 0.05
DEVICES = ("nvidia[0-9]*", "dxg", "kfd")  # by which a GPU is reached


def measure(experiment: Experiment, prepared: Prepared, images: int, workers: int, seconds: float) -> Parts:
    """Measure a machine of so many workers with so many images each; fewer work where there is no place for them.

    Raise what a worker raised; ClusterError for one that dies or does not end.
    """
    gpus = gpus_here() if experiment.run.device != "cpu" else 0
    places = gpus or cores_here() // experiment.run.cpus_per_worker
    world = max(1, min(workers, places))
    with tempfile.TemporaryDirectory(prefix="udl-plan-") as name:
        task = {
            "experiment": _bare(experiment), "prepared": [prepared.train, prepared.held_out, prepared.fractions],
            "world": world, "gpu": gpus > 0, "images": images, "seconds": seconds,
            "meeting": f"{name}/meet", "folder": str(_beside(experiment.run.folder, name)),
        }  # fmt: skip
        found = _together(Path(name), task, world, experiment.run.cpus_per_worker, seconds + MOST_SECONDS)
    known: dict[str, Any] = found[0]  # storage and checkpoints; the rest is the middle of all workers
    for part in ("compute_seconds", "host_seconds", "decode_seconds"):
        known[part] = statistics.mean(each[part] for each in found)
    return Parts(fingerprint(experiment), images, processes=world, **known)


def _bare(experiment: Experiment) -> dict[str, Any]:
    """The experiment as it is measured: stopped by nothing."""
    bare = experiment.to_dict()
    bare["train"] |= {"non_finite": "skip", "schedule": "constant"}
    return bare


def _together(folder: Path, task: dict[str, Any], world: int, threads: int, seconds: float) -> list[dict[str, Any]]:
    """What each of `world` processes found."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(search_path())}
    command = [sys.executable, "-P", "-m", "udl_dist.forecast.measure"]  # -P: not from the current folder
    ends, processes = time.monotonic() + seconds, []
    try:
        for rank in range(world):
            with (folder / f"out-{rank}").open("w") as out, (folder / f"err-{rank}").open("w") as err:
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=out, stderr=err, text=True, env=environment
                )
            processes.append(process)
            assert process.stdin
            with process.stdin as stdin:
                json.dump(task | {"rank": rank}, stdin)
        while any(process.poll() is None for process in processes) and time.monotonic() < ends:
            _refuse(folder, processes)
            time.sleep(POLL_SECONDS)
        late = any(process.poll() is None for process in processes)
        _refuse(folder, processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if late:
        raise ClusterError(f"the measured steps did not end within {seconds:.0f} s: give a smaller train.batch_size, "
                           "or parts that were measured on another machine (--parts)")  # fmt: skip
    return [_said(folder, rank) for rank in range(world)]


def _refuse(folder: Path, processes: list[subprocess.Popen[str]]) -> None:
    """Raise what the first process that is not well has to say."""
    for rank, process in enumerate(processes):
        if process.poll() is None:
            continue
        if process.returncode:
            lines = [line for line in (folder / f"err-{rank}").read_text().splitlines() if line.strip()]
            why = lines[-1].strip()[:300] if lines else f"ended by signal {-process.returncode}"
            raise ClusterError(f"a measured worker died: {why}")
        if "exit_code" in (said := _said(folder, rank)):
            raise as_error(said["exit_code"], said["message"])


def _said(folder: Path, rank: int) -> dict[str, Any]:
    return dict(json.loads((folder / f"out-{rank}").read_text().splitlines()[-1]))


def _beside(run_folder: str, otherwise: str) -> Path:
    """A folder on the disk of the run, to write a checkpoint to and take it away again."""
    if not run_folder or is_remote(run_folder):
        return Path(otherwise)
    there = [path for path in Path(run_folder).absolute().parents if path.is_dir()]
    return there[0] if there and os.access(there[0], os.W_OK) else Path(otherwise)


def cores_here() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus_here() -> int:
    """GPUs of this machine, asked in another process: torch takes a second and a half, and more once it has a GPU."""
    if not any(list(Path("/dev").glob(pattern)) for pattern in DEVICES):
        return 0
    asked = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=MOST_SECONDS)
    return int(done.stdout) if done.returncode == 0 else 0
