"""python -m tests.bench.evaluation [--mnist FOLDER] [--images 10000] [--only WHAT]: what figures
cost.

    forward    an evaluation (MSE, PSNR, SSIM; ELBO; Fréchet distance by a classifier's features)
    over the passes of
               networks that it needs, on as many images in memory, what real images say known; goal
               2. And the same
               with pairs of all images (kernel distance, precision, recall), and over
               reconstructions alone
    ranks      the bound of so many latents that the networks have most of the work, one worker
    against two; goal 1.7
    memory     most memory of a process that takes the bound of 5,000 latents of 256 images; goal 1
    GB
    frechet    our Fréchet distance of features against torchmetrics': value and time; goals 1e-6, 1

A dense VAE of 28 px, trained for a few steps; of random blocks of grey unless --mnist names the
four IDX files. Times are medians of turns; each process has one thread.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import udl_dist
from tests.trained import run
from udl_dist.evaluation.extractor import Classifier
from udl_dist.evaluation.extractor import load_classifier as load_extractor
from udl_dist.evaluation.settings import MetricSettings
from udl_dist.evaluation.similarity import RealSet
from udl_dist.inference.evaluating import evaluate
from udl_dist.inference.model import BATCH_IMAGES, Model
from udl_dist.launch import ray_runtime
from udl_dist.methods.method import Batch

TURNS = 3
FAMILIES = ("reconstruction", "likelihood", "distribution")
MEMORY = """
import sys
from pathlib import Path
import torch, udl_dist
from udl_dist.evaluation.settings import MetricSettings
from udl_dist.inference.evaluating import evaluate
torch.set_num_threads(1)
own = [0]
def look(done, total):
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    own.append(int(fields["VmHWM"].split()[0]) / 1024)
asked = MetricSettings(families=("likelihood",), bound_samples=5000, images=int(sys.argv[2]))
evaluate(udl_dist.load(sys.argv[1]), asked, Path(sys.argv[3]), look)
print(max(own))
"""


def model_of(folder: Path, mnist: str, images: int) -> Model:
    """A VAE of 28 px that holds so many images out, and a classifier next to it."""
    source = mnist
    if not mnist:
        random = np.random.default_rng(0)
        coarse = random.integers(0, 256, (2 * images, 7, 7), dtype=np.uint8)
        source = str(folder / "made.npy")
        np.save(source, coarse.repeat(4, axis=1).repeat(4, axis=2))
    torch.manual_seed(0)
    Classifier((1, 28, 28), 10).save(folder / "extractor.safetensors")
    held_out = "0" if mnist else "0.5"
    return udl_dist.load(
        run(
            "vae",
            Path(source),
            folder / "vae",
            data__size="28",
            method__network__widths="512,256",
            method__latent_dim="32",
            data__held_out_fraction=held_out,
            data__cache=str(folder),
            data__readers="1",
        )
    )


def figures(model: Model, folder: Path, images: int, **more: Any) -> None:
    asked = MetricSettings(
        **{
            "families": FAMILIES,
            "images": images,
            "seeds": 1,
            "noise": (),
            "bound_samples": 0,
            "extractor": str(folder / "extractor.safetensors"),
            **more,
        }
    )
    evaluate(model, asked, folder / "evaluation.json", lambda *_: None)


def medians(*works: Callable[[], object], turns: int = TURNS) -> list[float]:
    """Seconds of each, in turns, after one of each that is not counted."""
    times: list[list[float]] = [[] for _ in works]
    for turn in range(turns + 1):
        for work, found in zip(works, times, strict=True):
            began = time.perf_counter()
            work()
            if turn:
                found.append(time.perf_counter() - began)
    return [statistics.median(found) for found in times]


def forward(model: Model, folder: Path, images: int) -> str:
    ready = torch.rand(images, *model.shape) * 2 - 1
    keys = torch.arange(images)
    extractor, method = load_extractor(folder / "extractor.safetensors", model.shape), model.method

    def reconstructed() -> None:
        with torch.no_grad():
            for part in torch.split(ready, BATCH_IMAGES):
                method.reconstruct(part)

    def passes() -> None:
        with torch.no_grad():
            for part, own in zip(
                torch.split(ready, BATCH_IMAGES), torch.split(keys, BATCH_IMAGES), strict=True
            ):
                method.reconstruct(part)
                method.measure(Batch(part, own, own, 0))
                extractor.features(method.sample(own))

    lean = partial(figures, model, folder, images, pairs=0)
    whole = partial(figures, model, folder, images)
    a_lean, a_whole, of_all, of_one = medians(lean, whole, passes, reconstructed)
    return (
        f"{images:,} images: {a_lean:.2f} s, with pairs {a_whole:.2f} s; passes of networks"
        f" {of_all:.2f} s, reconstructions alone {of_one:.2f} s: {a_lean / of_all:.2f} and"
        f" {a_whole / of_all:.2f} times all passes (goal 2), {a_lean / of_one:.1f} and"
        f" {a_whole / of_one:.1f} times reconstructions"
    )


def ranks(model: Model, folder: Path, images: int) -> str:
    ray_runtime.start("", verbose=False)
    try:
        works = [
            partial(
                figures,
                model,
                folder,
                images,
                families=("likelihood",),
                bound_samples=100,
                workers=count,
            )
            for count in (1, 2)
        ]
        one, two = medians(*works)
    finally:
        ray_runtime.end()
    return (
        f"bound of 100 latents of {images:,} images: a worker {one:.1f} s, two {two:.1f} s:"
        f" {one / two:.2f} times (goal 1.7)"
    )


def memory(model: Model, folder: Path, images: int) -> str:
    words = [str(model.origin.folder), str(min(images, 256)), str(folder / "bound.json")]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *words], check=True, capture_output=True, text=True
    )
    return f"bound of 5,000 latents: {float(done.stdout):,.0f} MiB at most (goal 954)"


def frechet(model: Model, folder: Path, images: int) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.image.fid import _compute_fid
    real, fake = torch.randn(images, 64), torch.randn(images, 64) * 1.2 + 0.1
    values: dict[str, float] = {}

    def ours() -> None:
        values["ours"] = RealSet.of(real, real[:0]).frechet(fake)

    def theirs() -> None:
        sets = [rows.double() for rows in (real, fake)]
        values["theirs"] = float(
            _compute_fid(*(of for rows in sets for of in (rows.mean(0), torch.cov(rows.T))))
        )

    own, others = medians(ours, theirs)
    away = abs(values["ours"] / values["theirs"] - 1)
    return (
        f"Fréchet distance of {images:,} × 64: {away:.1e} away, {others / own:.2f} times"
        " torchmetrics (goal 1)"
    )


def wanted(only: str) -> Iterator[Callable[[Model, Path, int], str]]:
    for work in (forward, ranks, memory, frechet):
        if not only or work.__name__ == only:
            yield work


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--mnist", default="")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--only", choices=("forward", "ranks", "memory", "frechet"), default="")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        model = model_of(Path(place), asked.mnist, asked.images)
        for work in wanted(asked.only):
            print(work(model, Path(place), asked.images), flush=True)


if __name__ == "__main__":
    main()
