"""python -m tests.bench.kills [--runs 200] [--ray] [--only NAME]: kill -9 at random, and the
same networks in the end, to the bit.

Method, rank, image, place within the step and seed are drawn at random; a run that was never
disturbed has the same seed. Compared by one sha256: networks, moving averages, optimisers and
curves. Without Ray the ranks are gloo processes that are started again all together; with it they
are Ray's workers.
"""

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import faults
from tests.bench import relaunch
from tests.plugins import install
from tests.trained import corners
from tests.training.learn import packed
from udl_dist.experiment import Experiment
from udl_dist.runs.run_folder import RunFolder

# Each with its method, its settings, and whether its images have labels.
METHODS: dict[str, tuple[str, dict[str, str], bool]] = {
    "ae": ("ae", {}, False),
    "vae": ("vae", {}, False),
    "gan": ("gan", {}, False),
    "conditional vae": ("vae", {"method__conditional": "true"}, True),
    # Their discriminator learns after 60 images and acts after 120.
    "kl": ("kl", {}, False),
    "vq": ("vq", {}, False),
    "codebook": ("codebook_vae", {}, False),  # of another package; its latent is a map
}
BATCH, STEPS, VALIDATE = 12, 40, 120
FLAGS = {
    "run__workers": "2",
    "train__total_images": str(BATCH * STEPS),
    "train__average_half_life": "100",
    "train__report_images": "24",
    "evaluate__every_images": str(VALIDATE),
    "run__max_failures": "3",
}


def drawn(chance: random.Random, names: list[str]) -> tuple[str, dict[str, str], str]:
    """A method, the flags of its run and a kill."""
    place = chance.choice(faults.PLACES)
    images = chance.randrange(0, BATCH * STEPS - VALIDATE, 1)
    kill = f"kill rank {chance.randrange(2)} at image {images} in {place}"
    return chance.choice(names), {"train__seed": str(chance.randrange(4))}, kill


def disturbed(experiment: Experiment, fault: str, under_ray: bool) -> int:
    """Run with a fault; how often the ranks were started."""
    if not under_ray:
        return relaunch.run(experiment, fault)
    return relaunch.command(experiment, fault) + relaunch.restarts(experiment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=METHODS, help="kill runs of this alone")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = asked.runs or (20 if asked.ray else 200)
        names = [asked.only] if asked.only else None
        suite(Path(folder), runs, asked.ray, asked.seed, names)


def suite(
    folder: Path,
    runs: int,
    under_ray: bool = False,
    seed: int = 0,
    names: list[str] | None = None,
) -> None:
    """Kill `runs` times runs of the named methods, or of all; print and hold the outcome."""
    with installed(folder / "site"):
        _suite(folder, runs, under_ray, seed, names or list(METHODS))


@contextmanager
def installed(site: Path) -> Iterator[None]:
    """With the methods of tests/plugins, for processes that inherit our path and for Ray's."""
    path, before = list(sys.path), os.environ.get("PYTHONPATH", "")
    sys.path.insert(0, str(install(site)))
    parts = [str(site), str(Path(__file__).parents[2]), before]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, parts))
    try:
        yield
    finally:
        sys.path[:] = path
        os.environ["PYTHONPATH"] = before


def _suite(folder: Path, runs: int, under_ray: bool, seed: int, names: list[str]) -> None:
    plain, labelled = packed(folder / "data"), folder / "labelled.npz"
    corners(labelled)
    chance = random.Random(seed)
    whole: dict[tuple[str, str], str] = {}
    equal, killed, times = 0, 0, []
    for number in range(runs):
        name, flags, fault = drawn(chance, names)
        method, own, has_labels = METHODS[name]
        source = labelled if has_labels else plain
        flags |= own | {"data__cache": str(folder / "cache")}
        key = name, flags["train__seed"]
        if key not in whole:
            place = folder / f"whole-{'-'.join(key)}"
            relaunch.run(relaunch.wanted(method, source, place, **FLAGS, **flags))
            whole[key] = relaunch.fingerprint(place)
        place = folder / "killed"
        began = time.perf_counter()
        starts = disturbed(
            relaunch.wanted(method, source, place, **FLAGS, **flags), fault, under_ray
        )
        times.append(time.perf_counter() - began)
        same = relaunch.fingerprint(place) == whole[key]
        equal, killed = equal + same, killed + (starts > 1)
        if not same or starts < 2:
            print(
                f"run {number}: {name}, seed {key[1]}, {fault}: starts {starts},"
                f" {'equal' if same else 'DIFFERS'}"
            )
            print(RunFolder(place).messages.read_text())
        shutil.rmtree(place)
        if number % 20 == 19:
            print(f"{number + 1} of {runs}: {equal} equal", flush=True)
    print(
        f"kill -9: {equal}/{runs} equal sha256, {killed}/{runs} killed and started again, "
        f"{statistics.median(times):.1f} s a run (median)"
    )
    assert equal == killed == runs


if __name__ == "__main__":
    main()
