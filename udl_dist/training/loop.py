"""The loop, one for every method: a generator of reports. How one step is taken is `step`.

Chance is drawn from (seed, epoch, record) or (seed, step, rank), so nothing but the position has to
be remembered.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udl_dist.data.loader.reader import Stream
from udl_dist.data.loader.records import Records
from udl_dist.errors import TrainingError
from udl_dist.methods import Batch, Method, pixels
from udl_dist.training.distributed import Ranks
from udl_dist.training.finite_guard import SKIPS, Diverged, Guard, Kept, Rejected
from udl_dist.training.meter import Meter
from udl_dist.training.settings import TrainSettings
from udl_dist.training.step import black, cut, edges_of_parts, take, warm_up
from udl_dist.training.train_state import Learning

SECONDS = "perf/validation_seconds"


@dataclass(frozen=True)
class Report:
    """What the loop says after `images`: figures equal on every rank, and what is due now.

    A checkpoint between two points of the curves has no figures, nor has a step that was rejected.
    """

    images: int
    figures: dict[str, float]
    validated: bool = False
    checkpoint: bool = False
    stopped: bool = False  # because it was asked for, before the end
    kept: Kept = field(default_factory=Kept)
    rejected: Rejected | None = None


@dataclass(frozen=True)
class Intervals:
    """Images between reports, validations and checkpoints; `places`: images after which there is a
    validation too.
    """

    report: int
    validate: int
    checkpoint: int
    places: tuple[int, ...] = ()


def train(
    learning: Learning,
    stream: Stream,
    held_out: Stream | None,
    settings: TrainSettings,
    intervals: Intervals,
    ranks: Ranks,
    start_images: int = 0,
    stop_asked: Callable[[], bool] = lambda: False,
    save_asked: Callable[[], bool] = lambda: False,
    kept: Kept = Kept(),  # noqa: B008
    beat: Callable[[int, str], None] = lambda images, place: None,
) -> Iterator[Report]:
    """Train from `start_images` to the end, yielding at the same images on every rank; the state is
    in `learning`.

    Rank 0 alone is asked for a stop or a checkpoint; `kept` came with the checkpoint that is gone
    on from. `beat` hears of each progress: the images done, and the place: data, phase or
    validation.
    """
    total = settings.length(stream.records)
    batch_size = settings.batch_size
    meter = Meter(ranks, start_images, kept.sums)
    guard, skips = Guard(learning, ranks), kept.skips
    batches = stream.batches(start_images, batch_size, ranks.rank, ranks.world)
    edges = edges_of_parts(batch_size, learning.shares, settings.accumulate, ranks)
    warm_up(learning, edges, settings, ranks)
    images = start_images
    while images < total:
        # ── data
        beat(images, "data")
        asked = time.perf_counter()
        records = next(batches)
        meter.waited(time.perf_counter() - asked, len(records.damaged))
        whole = to_batch(records, images, ranks.device, settings.channels_last)
        parts = cut(whole, edges)

        # ── one step: every phase whose turn it is
        step = images // batch_size
        rate = settings.rate_at(images, total)
        guard.begin(images, records)
        for number, turn in enumerate(learning.turns):
            if step % turn.phase.every == 0:
                beat(images, "phase")
                take(
                    turn,
                    learning,
                    parts,
                    (settings.seed, step, number),
                    rate,
                    settings,
                    ranks,
                    guard,
                )
        guard.end()
        images += batch_size
        if settings.average_half_life:
            learning.follow(1 - 0.5 ** (batch_size / settings.average_half_life))

        # ── report
        stop, save = ranks.announce(stop_asked(), save_asked())
        last = images >= total
        stop = stop and not last
        validate = (
            last
            or _crossed(images, batch_size, intervals.validate)
            or _passed(images, batch_size, intervals)
        )
        checkpoint = validate or _crossed(images, batch_size, intervals.checkpoint)
        point = checkpoint or _crossed(images, batch_size, intervals.report)
        for done, rejected in guard.read(point or save or stop):
            if rejected:
                skips += 1
                yield Report(
                    done.images + batch_size, {}, kept=Kept(skips=skips), rejected=rejected
                )
                _refuse(rejected, skips, settings, kept.rollbacks)
            else:
                skips = 0
                meter.add_all(done.plots)
        if point:
            figures = meter.figures(images, rate)
            stream.refuse_damage(int(figures.get("data/damaged", 0)), images - start_images)
            if validate and held_out is not None:
                began = time.perf_counter()
                figures |= measure(
                    learning, held_out, batch_size, ranks, partial(beat, images, "validation")
                )
                figures |= ranks.total({SECONDS: time.perf_counter() - began}, maximum=True)
            _refuse_nonsense(figures, images)
            yield Report(
                images,
                figures,
                validate,
                checkpoint or save or stop,
                stop,
                Kept({}, skips, kept.rollbacks),
            )
            meter.resume(images)
        elif save or stop:
            yield Report(images, {}, False, True, stop, Kept(meter.sums(), skips, kept.rollbacks))
        if stop:
            break
    ranks.await_announced()


def measure(
    learning: Learning,
    held_out: Stream,
    batch_size: int,
    ranks: Ranks,
    beat: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """The method's figures of every held-out image, each counted once over all ranks: `val/…`."""
    method = learning.in_use
    if not method.can("measure"):
        return {}
    for each in (method, learning.method):
        ranks.agree_on_buffers(each.networks)
    sums: dict[str, Tensor] = {}
    with evaluating(method):
        for records in held_out.once(batch_size, ranks.rank, ranks.world):
            beat()
            for name, values in method.measure(to_batch(records, 0, ranks.device)).items():
                here = values.sum(0, dtype=torch.float64)
                sums[name] = sums[name] + here if name in sums else here
        # more ranks than held-out images: this one has nothing to add, but the others must know to
        # what
        if not sums:
            shapes = method.measure(black(method, 1, ranks.device))
            sums = {
                name: torch.zeros_like(value[0], dtype=torch.float64)
                for name, value in shapes.items()
            }
    means = {name: value / held_out.records for name, value in ranks.totals(sums).items()}
    return {f"val/{name}": value for name, value in method.figures(means).items()}


@contextmanager
def evaluating(method: Method) -> Iterator[None]:
    """For the while, the method's networks are in evaluation mode: no dropout, running statistics,
    no gradients.
    """
    method.networks.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        method.networks.train()


def to_batch(
    records: Records, seen: int, device: torch.device, channels_last: bool = False
) -> Batch:
    """Records of the stream as what a method sees: uint8 travels to the device, floats in [-1, 1]
    are made there.
    """
    images = pixels.floats(_to_device(records.images, device))
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return Batch(
        images, _to_device(records.keys, device), _to_device(records.record_keys, device), seen
    )


def batch_memory(device: torch.device) -> Callable[[tuple[int, ...]], NDArray[np.uint8]]:
    """How the stream is to make the memory of a batch: pinned where it travels to a GPU, so that
    the copy overlaps.
    """
    if device.type != "cuda":
        return lambda shape: np.empty(shape, np.uint8)

    def pinned(shape: tuple[int, ...]) -> NDArray[np.uint8]:
        # of this thread: pinning makes a context on its current device
        torch.cuda.set_device(device)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()

    return pinned


def _to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.to(device, non_blocking=True) if device.type == "cuda" else tensor


def _crossed(images: int, batch_size: int, every: int) -> bool:
    return images // every > (images - batch_size) // every


def _passed(images: int, batch_size: int, intervals: Intervals) -> bool:
    return any(images - batch_size < place <= images for place in intervals.places)


def _refuse(rejected: Rejected, skips: int, settings: TrainSettings, rollbacks: int) -> None:
    """Stop at a step that was not taken, or at one too many in a row; the same on every rank."""
    why = f"{rejected.why()} after {rejected.images} images"
    if settings.non_finite == "stop":
        raise TrainingError(
            f"{why}: lower train.learning_rate, set train.clip_norm, or train.non_finite = skip;"
            " its records are in non_finite.jsonl, the last checkpoint is kept"
        )
    if skips > SKIPS:
        raise Diverged(f"{why}, the step number {skips} in a row that is no number", rollbacks)


def _refuse_nonsense(figures: dict[str, float], images: int) -> None:
    """Stop on a loss that is no number. Figures are equal on every rank, so every rank stops
    here.
    """
    for name, value in figures.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"{name} is {value} after {images} images: lower train.learning_rate, or set "
                "train.clip_norm; the last checkpoint is kept"
            )
