"""python -m tests.bench.overhead: the share of a run that checkpoints, reports, validations and
pictures take.

Goal: 1 % for checkpoints and reports together.

A whole run of a rank on the embedded digits, 20 checkpoints in it, with W&B offline. What the loop
spent between reports is in the curves; the rest of the wall clock is what was spent on them.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path

from tests.bench.step import FLAGS
from udl_dist import experiment
from udl_dist.data.packing.prepare import prepare
from udl_dist.launch.worker import work
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training.distributed import Ranks
from udl_dist.training.loop import Report

IMAGES = 1_200_000


def share(**flags: str) -> tuple[float, float, int]:
    """Share of the wall clock outside the steps, seconds of the run, checkpoints written."""
    with tempfile.TemporaryDirectory() as folder:
        length = {
            "train.total_images": str(IMAGES),
            "evaluate.every_images": str(IMAGES // 20),
            "run.folder": folder,
        }
        wanted = experiment.load(
            None, FLAGS | length | {name.replace("__", "."): value for name, value in flags.items()}
        )
        heard: list[tuple[float, int]] = []

        def hear(report: Report) -> None:
            heard.append((time.perf_counter(), report.images))

        work(wanted, prepare(wanted.data), Ranks(), hear)
        (first, after), (last, _) = heard[0], heard[-1]
        points = RunFolder(Path(folder)).points()
        spans = itertools.pairwise(points)
        inside = sum(
            (point["images"] - before["images"]) / point["perf/images_per_second"]
            for before, point in spans
            if before["images"] >= after
        )
        return 1 - inside / (last - first), last - first, len(heard)


def main() -> None:
    everything, seconds, written = share()
    print(
        f"all, with validations and pictures: {100 * everything:.2f} % of {seconds:.1f} s"
        f" ({written} checkpoints)"
    )
    bare, seconds, written = share(
        evaluate__pictures="false",
        evaluate__every_images=str(IMAGES),
        run__checkpoint_images=str(IMAGES // 20),
    )
    print(
        f"checkpoints and reports alone: {100 * bare:.2f} % of {seconds:.1f} s ({written}"
        " checkpoints)"
    )


if __name__ == "__main__":
    main()
