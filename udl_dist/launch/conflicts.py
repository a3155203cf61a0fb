"""Settings that cannot work together, refused before a run starts."""

from __future__ import annotations

from udl_dist.errors import UsageError
from udl_dist.experiment import Experiment


def refuse_best(best: str, held_out: int) -> None:
    """Refuse a metric that no validation will report, as can be known without torch."""
    if best and not best.startswith("val/"):
        raise UsageError(f"run.best = {best!r} is not a held-out metric: those begin with val/")
    # What begins with val/ is checked against the method's metrics later, which needs torch.
    if best and not held_out:
        raise UsageError(
            f"run.best = {best!r} needs held-out images: set data.held_out or"
            " data.held_out_fraction"
        )


def refuse_few_images(experiment: Experiment, held_out: int) -> None:
    """Refuse a batch or held-out images that leave a worker without an image."""
    train, run = experiment.train, experiment.run
    if train.batch_size < run.most_workers * train.accumulate:
        parts = f" x train.accumulate = {train.accumulate}" if train.accumulate > 1 else ""
        raise UsageError(
            f"train.batch_size = {train.batch_size} is less than run.workers ="
            f" {run.workers}{parts}: every worker needs an image in every step"
        )
    # Each rank validates its own part of them, which must not be empty.
    if 0 < held_out < run.most_workers:
        raise UsageError(
            f"{held_out} held-out images cannot be shared by run.workers = {run.workers}: raise"
            " data.held_out_fraction"
        )


def refuse_lone_images(experiment: Experiment, mixing: list[str]) -> None:
    """Batch normalisation of one image has no variance: torch would raise in the worker."""
    train, workers = experiment.train, experiment.run.most_workers
    # The fewest images that pass a network at once: one part of the share of the largest group.
    if mixing and train.batch_size // workers // train.accumulate < 2:
        raise UsageError(
            f"batch normalisation ({', '.join(mixing)}) needs two images or more at a time: raise"
            f" train.batch_size to {2 * workers * train.accumulate}, or choose networks without it,"
            " such as method.network.norm = group"
        )


def refuse_inelastic(experiment: Experiment, mixing: list[str]) -> None:
    """Refuse settings that cannot give the same bits at every world size.

    `mixing` names the networks with batch normalisation.
    """
    train, run = experiment.train, experiment.run
    asked = "run.determinism = elastic cuts a batch into 12 parts"
    # Groups larger than the least may be any divisor; see `capacity`.
    if train.VIRTUAL_RANKS % run.least_workers:
        raise UsageError(
            f"{asked}, which {run.least_workers} workers cannot divide: set run.workers to 1, 2, 3,"
            " 4, 6 or 12"
        )
    if train.batch_size < train.VIRTUAL_RANKS:
        raise UsageError(
            f"{asked}: set train.batch_size to {train.VIRTUAL_RANKS} or more, not"
            f" {train.batch_size}"
        )
    if train.accumulate > 1:
        raise UsageError(
            f"{asked}, one after the other: train.accumulate has no meaning there, leave it out"
        )
    if mixing:
        where = ", ".join(mixing)
        raise UsageError(
            f"{asked}, and batch normalisation ({where}) would see each alone: choose networks"
            " without it, such as method.network.norm = group, or leave run.determinism out"
        )
