"""python -m tests.bench.kinds [--ray]: each kind of fault, and the same networks, optimisers and
curves in the end.

Without Ray the ranks are gloo processes; with it they are Ray's workers, and the driver is killed
too and run again.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench import relaunch
from tests.training.learn import packed
from udl_dist.experiment import Experiment
from udl_dist.runs.run_folder import RunFolder

BATCH, STEPS = 12, 200
FLAGS = {
    "run__workers": "2",
    "train__total_images": str(BATCH * STEPS),
    "train__average_half_life": "100",
    "train__report_images": "60",
    "evaluate__every_images": "240",
    "run__max_failures": "12",
    "run__hang_seconds": "3",
    "data__readers": "2",
}
KINDS = {
    "SIGKILL": "kill rank 1 at image 900 in phase",
    "SIGSEGV": "segfault rank 0 at image 900 in phase",
    "os._exit": "exit rank 1 at image 900 in data",
    "exception": "raise rank 0 at image 900 in phase",
    "SIGSTOP": "freeze rank 1 at image 900 in phase",
    "endless loop": "loop rank 0 at image 900 in data",
    "ENOSPC, EIO": "enospc at save 2; eio at save 4; stall writer 1 s at save 5",
    "driver lost": "kill driver at image 900",
    "reader death": "",
    "ten faults": "; ".join(
        f"{act} rank {number % 2} at image {240 * number + 130} in {place}"
        for number, (act, place) in enumerate(
            [
                ("kill", "phase"),
                ("raise", "data"),
                ("exit", "save"),
                ("segfault", "phase"),
                ("kill", "validation"),
                ("exit", "phase"),
                ("loop", "data"),
                ("kill", "save"),
                ("raise", "phase"),
                ("kill", "data"),
            ]
        )
    ),
}


def reader_dies(rank: int, start: int) -> None:
    """On the first start, rank 1's reading threads run out of memory at their thirtieth batch."""
    from udl_dist.data.loader.loading import Loader

    real, calls = Loader.load, iter(range(10**9))

    def load(self: Loader, *arguments: Any) -> Any:
        if next(calls) == 30:
            raise MemoryError("a reader has no memory")
        return real(self, *arguments)

    if (rank, start) == (1, 1):
        Loader.load = load  # type: ignore[method-assign, assignment]


def disturbed(kind: str, experiment: Experiment, under_ray: bool) -> str:
    """Run with one kind of fault; what happened, in short."""
    if under_ray:
        drivers = relaunch.command(experiment, KINDS[kind])
        return f"{drivers} drivers, {drivers + relaunch.restarts(experiment)} groups"
    hook = reader_dies if kind == "reader death" else None
    return f"{relaunch.run(experiment, KINDS[kind], starts=12, hook=hook)} groups"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--kinds", default="", help="some of them, by semicolons")
    asked = parser.parse_args()
    kinds = [kind for kind in KINDS if not asked.kinds or kind in asked.kinds.split(";")]
    kinds = [kind for kind in kinds if kind != ("reader death" if asked.ray else "driver lost")]
    with tempfile.TemporaryDirectory() as folder:
        assert suite(Path(folder), kinds, asked.ray) == len(kinds)


def suite(folder: Path, kinds: list[str], under_ray: bool = False, method: str = "ae") -> int:
    """How many kinds of fault left everything equal."""
    source, equal = packed(folder / "data"), 0
    whole, place = folder / "whole", folder / "broken"
    relaunch.run(relaunch.wanted(method, source, whole, **FLAGS))
    for kind in kinds:
        began = time.perf_counter()
        what = disturbed(kind, relaunch.wanted(method, source, place, **FLAGS), under_ray)
        same = relaunch.fingerprint(place) == relaunch.fingerprint(whole)
        equal += same
        print(
            f"{kind:14} {'equal' if same else 'DIFFERS'}, {what},"
            f" {time.perf_counter() - began:.0f} s",
            flush=True,
        )
        if not same:
            print(RunFolder(place).messages.read_text())
        shutil.rmtree(place)
    print(
        f"kinds of fault: {equal}/{len(kinds)} equal sha256"
        f" {'under Ray' if under_ray else 'on gloo processes'}"
    )
    return equal


if __name__ == "__main__":
    main()
