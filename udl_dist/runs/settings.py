"""The settings of a run: its folder, workers and checkpoints, and its tracking."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from udl_dist.core.config_schema import setting
from udl_dist.errors import UsageError


@dataclass(frozen=True)
class RunSettings:
    folder: str = setting(
        "",
        "the folder of the run, a path or s3://…; empty: runs/ and the job file's name",
    )
    workers: int | str = setting(  # as text a range; `_range` reads all
        "auto",
        "DDP workers, each with a GPU, or with a CPU core without GPUs; auto: one for every GPU of"
        " the machine or cluster, one without GPUs and in a trial; '2..8': as many as fit, more or"
        " fewer as nodes come and go",
        low=1,
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto: GPUs if the cluster has any")
    cpus_per_worker: int = setting(1, "CPU cores that each worker takes", low=1)
    address: str = setting(
        "", "a Ray cluster to join; empty: a private Ray on this machine, ended with the run"
    )
    place_seconds: float = setting(
        0.0,
        "seconds that the start waits for nodes, which an autoscaler may start; "
        "with GPUs say run.device = 'cuda' too",
        low=0,
    )
    max_failures: int = setting(3, "times that Ray starts the workers again after one dies", low=0)
    # Must be longer than the slowest step; the first one may take ten times as long.
    hang_seconds: float = setting(
        60.0,
        "seconds without a step after which a worker hangs, and all start again; 0: never",
        low=0,
    )
    checkpoint_images: int = setting(
        0,
        "images between checkpoints, besides those of validations; 0: ten times a run, "
        "or evaluate.every_images",
        low=0,
    )
    # However slow a step is, a kill costs no more work than this.
    checkpoint_seconds: float = setting(
        600.0, "seconds between checkpoints at most; 0: by images alone", low=0
    )
    keep_checkpoints: int = setting(2, "newest checkpoints that stay, besides the best one", low=1)
    best: str = setting(
        "", "held-out metric whose least value marks the best checkpoint; empty: the method's own"
    )
    determinism: Literal["none", "world", "elastic"] = setting(
        "world",
        "weights are the same to the bit with the same workers; elastic: with 1, 2, 3, 4, 6 or 12,"
        " slower; none: a GPU takes its fastest algorithms, which differ in their last bits each"
        " time",
    )
    fresh: bool = setting(False, "move what the folder has into before-N, and start again")

    def __post_init__(self) -> None:
        # Here, as the bounds of a setting know no text.
        if not 1 <= self.least_workers <= self.most_workers:
            raise UsageError(
                f"run.workers = {self.workers!r}: say a number, a range such as '2..8', or auto"
            )

    @property
    def least_workers(self) -> int:
        return self._range()[0]

    @property
    def most_workers(self) -> int:
        return self._range()[1]

    def _range(self) -> tuple[int, int]:
        if isinstance(self.workers, int):
            return self.workers, self.workers
        if self.workers == "auto":  # until `capacity` has counted the GPUs
            return 1, 1
        found = re.fullmatch(r"(\d{1,6})\.\.(\d{1,6})", self.workers.replace(" ", ""))
        return (int(found[1]), int(found[2])) if found else (0, 0)  # refused by __post_init__


@dataclass(frozen=True)
class TrackSettings:
    mode: Literal["auto", "online", "offline", "off"] = setting(
        "auto",
        "Weights & Biases: auto is what WANDB_MODE or `wandb offline` says, else online where there"
        " is a key and the server answers, else offline",
    )
    project: str = setting("udl-dist", "the W&B project")
    group: str = setting("", "the W&B group; empty: none")
    # The path and not the key: settings are written into the run folder and sent to W&B.
    key_file: str = setting(
        "", "a file that holds the W&B key; empty: W&B's own ways (environment, netrc)"
    )
    pictures: bool = setting(False, "also send the picture grids")
