"""Short real runs for tests of what comes after training: one of each method, made once for all of
them.
"""

from pathlib import Path

import numpy as np

from tests.training.learn import asked, packed
from udl_dist.data.packing.prepare import prepare
from udl_dist.experiment import Experiment
from udl_dist.launch.worker import work
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training.distributed import Ranks

METHODS = ("ae", "vae", "gan")


def run(method: str, source: Path, folder: Path, **flags: str) -> Path:
    """A finished run folder, as `udl train` leaves it."""
    quiet = {
        "track__mode": "off",
        "train__report_images": "24",
        "evaluate__every_images": "60",
        "run__keep_checkpoints": "9",
        "train__total_images": "480",
        "data__cache": str(folder.parent / "cache"),
    }
    return finished(asked(method, source, run__folder=str(folder), **(quiet | flags)))


def finished(experiment: Experiment) -> Path:
    """The same of any experiment, trained by one worker in this process."""
    stored = RunFolder(Path(experiment.run.folder))
    stored.path.mkdir(parents=True, exist_ok=True)
    stored.experiment.write_text(experiment.to_toml())
    ended = work(experiment, prepare(experiment.data), Ranks())
    stored.finish({"images": ended["images"], "figures": ended["figures"]})
    return stored.path


def runs(folder: Path) -> dict[str, Path]:
    """A run of each method, on the same 70 images of 8 px; the GAN keeps an average."""
    source = packed(folder / "data")
    average = {"gan": {"train__average_half_life": "100"}}
    return {
        method: run(method, source, folder / method, **average.get(method, {}))
        for method in METHODS
    }


def of_corners(folder: Path, method: str = "vae", **flags: str) -> Path:
    """A run on `corners`, which are in `made.npz` next to it; a quarter is held out."""
    corners(folder / "made.npz")
    wanted = {"data__held_out_fraction": "0.25", "data__cache": str(folder)} | flags
    return run(method, folder / "made.npz", folder / method, **wanted)


def images(count: int, size: int = 8, seed: int = 0) -> np.ndarray:
    """Random gray images, uint8 [N, H, W]."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size), dtype=np.uint8)


def corners(path: Path) -> None:
    """An `.npz` of 400 images of four classes, patches of light in four corners with noise."""
    random = np.random.default_rng(0)
    labels = np.arange(400) % 4
    images = random.integers(0, 120, (400, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 130
    np.savez(path, images=images, labels=labels)
