"""The training loop, one for every method: a generator of reports.

Random numbers come from (seed, epoch, record) or (seed, step, rank), so that the position in the
run is their only state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from udl_dist.data.loader.reader import Stream
from udl_dist.errors import TrainingError
from udl_dist.training.batches import Sender
from udl_dist.training.distributed import Ranks
from udl_dist.training.finite_guard import MAX_SKIPS, Diverged, FiniteGuard, RejectedStep
from udl_dist.training.meter import Meter, Sums
from udl_dist.training.requests import Requests
from udl_dist.training.settings import TrainSettings
from udl_dist.training.step import Stepper
from udl_dist.training.train_state import TrainState
from udl_dist.training.validation import validate

VALIDATION_SECONDS = "perf/validation_seconds"


@dataclass(frozen=True)
class LoopState:
    """The state of the loop besides tensors: sums of the next point, skips, rollbacks."""

    sums: Sums = field(default_factory=dict)  # so that a resumed run plots the same curve
    skips: int = 0
    rollbacks: int = 0


@dataclass(frozen=True)
class Report:
    """The state of the run after `images`: metrics equal on every rank, and what is due now.

    A checkpoint between two points of the curves has no metrics, nor has a rejected step.
    """

    images: int
    metrics: dict[str, float]
    validated: bool = False
    checkpoint: bool = False
    stopped: bool = False  # by request, before the end
    state: LoopState = field(default_factory=LoopState)
    rejected: RejectedStep | None = None


@dataclass(frozen=True)
class Intervals:
    """Images between reports, validations and checkpoints; more validations at `validate_at`."""

    report: int
    validate: int
    checkpoint: int
    validate_at: tuple[int, ...] = ()


@dataclass(frozen=True)
class Hooks:
    """Calls of the loop: rank 0's requests for a stop or a checkpoint, and a sign of progress.

    `on_progress` gets the images done and the place: data, phase or validation.
    """

    stop_requested: Callable[[], bool] = lambda: False
    save_requested: Callable[[], bool] = lambda: False
    on_progress: Callable[[int, str], None] = lambda images, place: None

    def asked(self) -> tuple[bool, bool]:
        """Whether rank 0 asks for a stop, and for a checkpoint."""
        return self.stop_requested(), self.save_requested()


@dataclass(frozen=True)
class Due:
    """What is due after a step."""

    point: bool
    validation: bool
    checkpoint: bool  # after a point of the curves, or without one
    stop: bool


@dataclass(frozen=True)
class TrainingLoop:
    """Trains `state` on the images of `stream`; all ranks run one each, step by step."""

    state: TrainState
    stream: Stream
    held_out: Stream | None
    settings: TrainSettings
    intervals: Intervals
    ranks: Ranks
    hooks: Hooks = Hooks()

    def reports(self, start: int = 0, resumed: LoopState = LoopState()) -> Iterator[Report]:
        """Train from `start` images to the end, yielding at the same images on every rank.

        `resumed` came with the checkpoint that the run goes on from.
        """
        settings, ranks = self.settings, self.ranks
        total, batch_size = settings.length(self.stream.records), settings.batch_size
        meter = Meter(ranks, start, resumed.sums)
        guard, skips = FiniteGuard(self.state, ranks), resumed.skips
        sender = Sender(self.stream, ranks.device, self.state.channels_last)
        requests = Requests(self.hooks.asked, ranks)
        images = start

        def on_phase() -> None:
            self.hooks.on_progress(images, "phase")

        stepper = Stepper(self.state, settings, ranks, guard, meter.forward, on_phase)
        batches = self.stream.batches(start, batch_size, ranks.rank, ranks.world)
        stepper.warm_up()
        while images < total:
            # ── data
            self.hooks.on_progress(images, "data")
            asked = time.perf_counter()
            records = next(batches)
            meter.add_wait(time.perf_counter() - asked, len(records.damaged))

            # ── one step
            rates = settings.rates_at(images, total)
            guard.begin(images, records)
            stepper.step(sender.send(records, images), images // batch_size, rates)
            guard.end()
            images += batch_size
            if settings.average_half_life:
                self.state.update_average(settings.average_weight(images))

            # ── report
            # On a GPU flags are read one step late; before a point or checkpoint all are read.
            due = self._due(images, total, *requests.heard())
            for step, rejected in guard.finished(due.point or due.checkpoint):
                if rejected is None:
                    skips = 0
                    meter.add_all(step.plots)
                    continue
                skips += 1
                state = LoopState(skips=skips)
                # The worker logs it before this loop raises.
                yield Report(step.images + batch_size, {}, state=state, rejected=rejected)
                self._refuse_rejected(rejected, skips, resumed.rollbacks)
            if due.point:
                metrics = meter.metrics(images, rates.learning_rate)
                self.stream.refuse_damage(int(metrics.get("data/damaged", 0)), images - start)
                if due.validation:
                    metrics |= self._validate(images)
                _refuse_not_finite(metrics, images)
                state = LoopState({}, skips, resumed.rollbacks)
                yield Report(images, metrics, due.validation, due.checkpoint, due.stop, state)
                meter.restart(images)  # after the report, whose time is not training
            elif due.checkpoint:
                # Between two points: the sums go into the checkpoint, so that a resumed run plots
                # the same next point.
                state = LoopState(meter.sums(), skips, resumed.rollbacks)
                yield Report(images, {}, False, True, due.stop, state)
            if due.stop:
                break
        ranks.await_announced()

    def _due(self, images: int, total: int, stop: bool, save: bool) -> Due:
        """What is due after the step that ended at `images`, the same on every rank."""
        last, every = images >= total, self.intervals

        # Intervals need not be multiples of the batch: due is the step that passes a multiple.
        def crossed(interval: int) -> bool:
            return images // interval > (images - self.settings.batch_size) // interval

        passed = [images - self.settings.batch_size < at <= images for at in every.validate_at]
        validation = last or crossed(every.validate) or any(passed)
        checkpoint = validation or crossed(every.checkpoint)
        stop = stop and not last  # a run that is complete is not stopped
        return Due(
            point=checkpoint or crossed(every.report),
            validation=validation,
            checkpoint=checkpoint or save or stop,
            stop=stop,
        )

    def _validate(self, images: int) -> dict[str, float]:
        if self.held_out is None:
            return {}
        began = time.perf_counter()
        on_batch = partial(self.hooks.on_progress, images, "validation")
        metrics = validate(self.state, self.held_out, self.settings, self.ranks, on_batch)
        seconds = {VALIDATION_SECONDS: time.perf_counter() - began}
        return metrics | self.ranks.total(seconds, maximum=True)  # the slowest rank's

    def _refuse_rejected(self, rejected: RejectedStep, skips: int, rollbacks: int) -> None:
        """Raise for a rejected step, or for one too many in a row; all ranks decide alike."""
        why = f"{rejected.why()} after {rejected.images} images"
        if self.settings.non_finite == "stop":
            wider = "train with train.precision = float32, "
            raise TrainingError(
                f"{why}: {wider * (self.settings.precision == 'bfloat16')}lower"
                " train.learning_rate, set train.clip_norm, or train.non_finite ="
                " skip; its records are in non_finite.jsonl, the last checkpoint remains"
            )
        if skips > MAX_SKIPS:
            raise Diverged(f"{why}, step {skips} in a row that is not finite", rollbacks)


def _refuse_not_finite(metrics: dict[str, float], images: int) -> None:
    """Raise for a metric that is not finite: equal on every rank, so every rank stops."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"{name} is {value} after {images} images: lower train.learning_rate, or set "
                "train.clip_norm; the last checkpoint remains"
            )
