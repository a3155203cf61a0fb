"""What a method's default settings make of a set of images: `udl train` with nothing but a length.

    python -m tests.bench.defaults gan hands.tar --size 32 --images 30000 --seeds 0,1,2

Prints, of the best checkpoint of each seed: the Fréchet distance of 8×8 pixels and of the detail
descriptor between 2,000 samples and all images, and the squared differences of neighbouring pixels
of samples over those of images; for a method that reconstructs, the held-out mean squared error
against PCA of as many numbers. Pictures are in the run folders.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

import udl_dist
from udl_dist.data.loader.opening import open_streams
from udl_dist.data.packing.prepare import prepare
from udl_dist.evaluation.similarity import gaussian
from udl_dist.inference.inputs import scaled
from udl_dist.methods.metrics import descriptor, frechet

SAMPLES, MOST = 2000, 10_000


def roughness(images: Tensor) -> float:
    """The mean squared difference of neighbouring pixels."""
    down, across = images.diff(dim=2).square().mean(), images.diff(dim=3).square().mean()
    return float(down + across)


def all_images(run: Path) -> Tensor:
    """The training images of a run, at most 10,000."""
    experiment = udl_dist.load(run).origin.experiment
    assert experiment
    stream, _ = open_streams(prepare(experiment.data), 0)
    parts, count = [], 0
    for records in stream.once(500):
        parts.append(scaled(records.images))
        count += len(parts[-1])
        if count >= MOST:
            break
    return torch.cat(parts)


def measured(run: Path) -> dict[str, float]:
    """The figures of a finished run."""
    model, real = udl_dist.load(run), all_images(run)
    found = {name: float(value) for name, value in model.origin.figures.items()}
    if not model.can("sample"):
        return found
    fake = model.sample(SAMPLES)
    for name, features in (("8x8", frechet.small), ("detail", descriptor.describe)):
        pair = gaussian(features(fake)), gaussian(features(real))
        found[f"frechet_{name}"] = frechet.between(*pair[0], *pair[1])
    return found | {"roughness": roughness(fake) / roughness(real)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("method")
    parser.add_argument("source")
    parser.add_argument("--size", default="")
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", type=Path, default=None)
    asked, flags = parser.parse_known_args()
    out = asked.out or Path(tempfile.mkdtemp())
    for seed in asked.seeds.split(","):
        run = out / f"{asked.method}-{asked.size}-{seed}"
        size = [f"--data.size={asked.size}"] if asked.size else []
        command = [sys.executable, "-m", "udl_dist", "train", f"--method.name={asked.method}"]
        command += [f"--data.source={asked.source}", *size, f"--train.total-images={asked.images}"]
        command += [f"--train.seed={seed}", f"--run.folder={run}", "--track.mode=off", *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        samples = run / "samples.png"
        subprocess.run(
            [sys.executable, "-m", "udl_dist", "sample", str(run), "--out", str(samples)],
            check=False,
            stdout=subprocess.DEVNULL,
        )
        print(json.dumps({"run": str(run), **measured(run)}), flush=True)


if __name__ == "__main__":
    main()
