"""Rank 0 records the run: curves, checkpoints, pictures and tracking."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from udl_dist.core import rng
from udl_dist.core.config_schema import flatten
from udl_dist.core.files import write_whole
from udl_dist.data.loader.reader import Stream
from udl_dist.errors import TrainingError
from udl_dist.evaluation import pictures
from udl_dist.experiment import Experiment
from udl_dist.launch.notices import DataWaitAdvice, Pace, Straggler, ValidationTime
from udl_dist.runs.remote import push_checkpoint
from udl_dist.runs.remote_node import Node
from udl_dist.runs.run_folder import RunFolder, held_out
from udl_dist.runs.tracking import Tracker
from udl_dist.storage.uris import public
from udl_dist.training import checkpoint
from udl_dist.training.async_writer import WAIT_SECONDS, AsyncWriter
from udl_dist.training.batches import Sender
from udl_dist.training.finite_guard import RejectedStep
from udl_dist.training.loop import VALIDATION_SECONDS, Report
from udl_dist.training.train_state import TrainState
from udl_dist.training.validation import evaluating

MAX_FAILED_SAVES = 3  # checkpoints in a row that may fail to be written before the run gives up


class RunRecorder:
    """Records the reports of one run; a full disk costs records, never the training itself."""

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        node: Node | None,
        state: TrainState,
        streams: tuple[Stream, Stream | None],
        start: int,
    ) -> None:
        self._experiment, self._folder, self._node = experiment, folder, node
        self._state = state
        self._stream, validation = streams
        self._shown = validation or self._stream
        self._held_out = validation.records if validation else 0
        self._best = experiment.best_metric
        self._failed_saves, self._failure = 0, ""
        # Images of the last checkpoint that was due, and of the last that was written.
        self._due = self._saved = start
        self._unwritten: list[tuple[int, dict[str, float]]] = []  # points a full disk refused
        self._writer = AsyncWriter(self._write, self._on_written)
        self._advice, self._straggler = DataWaitAdvice(self._stream), Straggler()
        self._validations = ValidationTime(experiment.evaluate.share)
        total = experiment.train.length(self._stream.records)
        self._pace = Pace(start, experiment.train.batch_size, total)
        # All that may refuse the run comes before the first change of its folder.
        self._refuse_small_disk()
        last = folder.rewind(start)
        if start:
            folder.say(f"resumed after {start} images")
        else:
            write_whole(folder.data, json.dumps(self._stream.shards()))
        config = public(flatten(experiment.to_dict()))
        self._tracker = Tracker(experiment.track, folder.path, config, last, folder.say)
        for point in folder.points():  # after a kill the tracker may lack the last ones
            self._tracker.point(int(point.pop("images")), point)

    def record(self, report: Report) -> None:
        """Write the point of a report, then its checkpoint, copied now and written by a thread."""
        # In this order: a resume drops the points after its checkpoint, so that a point may be on
        # disk too early, but never too late. 1 of 200 kills lost a point the other way round.
        self._give_up_after_failed_saves()
        if report.metrics:
            self._unwritten.append((report.images, report.metrics))
        if self._unwritten:
            first, *_ = self._unwritten[0]
            self._attempt(f"the curves wait at the point after {first} images", self._write_points)
        if report.checkpoint:
            self._save(report)
        if report.rejected:
            self._record_rejected(report.rejected, report.state.skips)
        if not report.metrics:  # a checkpoint between two points of the curves
            return
        self._tracker.point(report.images, report.metrics)
        lines = [
            self._advice.add(report.metrics["perf/data_wait_share"]),
            self._pace.add(report.images, report.metrics),
            self._straggler.add(report.metrics),
        ]
        if report.validated:
            # Pictures are made while the other ranks wait: they count as validation.
            began = time.monotonic()
            if self._experiment.evaluate.pictures:
                lost = f"no pictures after {report.images} images"
                self._attempt(lost, self._draw, report.images)
            drawing = time.monotonic() - began
            seconds = report.metrics.get(VALIDATION_SECONDS, 0.0) + drawing
            lines.append(self._validations.add(seconds))
        for line in filter(None, lines):
            self._folder.say(line)

    def _write_points(self) -> None:
        while self._unwritten:
            self._folder.add_point(*self._unwritten[0])
            del self._unwritten[0]

    def finish(self) -> None:
        """Wait until the last checkpoint is written; raise TrainingError if it could not be."""
        self._attempt("the last checkpoint is late", self._writer.wait)
        if self._saved < self._due:
            raise TrainingError(
                f"the last checkpoint could not be written to {self._folder.checkpoints} "
                f"({self._failure}): free space, then run again: it goes on from the one before"
            )

    def close(self) -> None:
        """Wait for the last writes, however the training ended."""
        self._attempt("the last checkpoint is late", self._writer.wait)
        self._tracker.close()

    def _record_rejected(self, rejected: RejectedStep, skips: int) -> None:
        """List the records of a rejected step, by rank."""
        both = zip(rejected.losses, rejected.records, strict=True)
        ranks = [
            {
                "rank": rank,
                "losses": [f"{loss:g}" for loss in losses],
                "records": records,
                "keys": [self._key_of(record) for record in records],
            }
            for rank, (losses, records) in enumerate(both)
        ]
        line = {"images": rejected.images, "why": rejected.why(), "ranks": ranks}
        self._attempt("non_finite.jsonl misses a step", self._folder.add_non_finite, line)
        self._folder.say(
            f"no step after {rejected.images} images ({skips} in a row): {rejected.why()}; "
            f"its records are in {self._folder.non_finite.name}"
        )

    def _key_of(self, record: int) -> str:
        # Records are numbered over all data sets, one after the other.
        for dataset in self._stream.datasets:
            if record < dataset.index.records:
                return dataset.index.key(record)
            record -= dataset.index.records
        raise IndexError(record)

    def _refuse_small_disk(self) -> None:
        """Raise TrainingError before the first step if the checkpoints will not fit on the disk."""
        there = len(checkpoint.complete(self._folder.checkpoints))
        # Besides the newest ones: the best, and the one that is being written.
        more = max(1, self._experiment.run.keep_checkpoints + 2 - there)
        needed = more * self._state.checkpoint_bytes()
        try:
            checkpoint.refuse_full(self._folder.path, needed)
        except OSError as error:
            raise TrainingError(
                f"{more} more checkpoints do not fit on the disk of {self._folder.path} "
                f"({error.strerror}): free space, or lower run.keep_checkpoints"
            ) from None

    def _save(self, report: Report) -> None:
        facts = {
            "method": self._experiment.method_name,
            "data": self._stream.fingerprint,
            "figures": held_out(report.metrics),
            "kept": asdict(report.state),
            "held_out": self._held_out,
            "classes": self._state.method.classes,
            "frozen": self._state.frozen_hashes,
        }
        self._due = report.images
        try:
            if self._unwritten:  # a resume from this checkpoint would lose these points for good
                # First the write in progress, which counts its own failure or success.
                self._writer.wait(WAIT_SECONDS)
                self._on_written(report.images, "points of the curves before it are not written")
                return
            self._writer.put(report.images, self._state.tensors(), facts)
        except TimeoutError as error:
            self._on_written(report.images, str(error))
            self._give_up_after_failed_saves()

    def _write(self, images: int, files: checkpoint.Files, facts: Mapping[str, object]) -> None:
        """On the writer's thread: points before their checkpoint, then old ones are deleted."""
        # Synced first: after a power cut no checkpoint may be ahead of its curves.
        self._folder.sync_curves()
        checkpoint.save(self._folder.checkpoints, images, files, facts)
        keep, sign = self._experiment.run.keep_checkpoints, self._experiment.sign_of(self._best)
        checkpoint.prune(self._folder.checkpoints, keep, self._best, images, sign)
        # After the disk: a failing network leaves at least the checkpoint here.
        if self._node:
            written = checkpoint.path_of(self._folder.checkpoints, images)
            push_checkpoint(self._node, written, checkpoint.complete(self._folder.checkpoints))

    def _on_written(self, images: int, failed: str) -> None:
        """On the writer's thread: `failed` is why a checkpoint was not written, or empty."""
        self._failed_saves = self._failed_saves + 1 if failed else 0
        if not failed:
            self._saved = images
        else:
            self._failure = failed
            self._alarm(f"no checkpoint after {images} images", failed)

    def _give_up_after_failed_saves(self) -> None:
        if self._failed_saves >= MAX_FAILED_SAVES:
            raise TrainingError(
                f"{MAX_FAILED_SAVES} checkpoints in a row could not be written to"
                f" {self._folder.checkpoints} ({self._failure}): free space, then run again"
            )

    def _attempt(self, lost: str, act: Callable[..., None], *arguments: Any) -> None:
        """Write something; an error of the disk is reported with what is lost, not raised."""
        try:
            act(*arguments)
        except OSError as error:
            self._alarm(lost, error.strerror or str(error))

    def _alarm(self, lost: str, why: str) -> None:
        self._folder.say(
            f"ALARM: {lost}: {why}; training goes on, the last good checkpoint remains"
        )

    def _draw(self, images: int) -> None:
        """Draw the grids: always the same first held-out images, always the same random keys."""
        columns = self._experiment.evaluate.columns
        method = self._state.in_use
        device = next(method.parameters()).device
        records = next(self._shown.once(columns * columns, 0, 1))
        batch = Sender(self._shown, device).send(records, 0)
        keys = rng.keys(self._experiment.train.seed, columns * columns).to(device)
        self._folder.pictures.mkdir(exist_ok=True)
        with evaluating(method):
            drawn = pictures.draw(method, batch, keys, columns)
        for name, picture in drawn.items():
            if name == "samples" and method.about_samples:
                picture = pictures.captioned(picture, method.about_samples)
            path: Path = self._folder.pictures / f"{name}-{images:012d}.png"
            picture.save(path)
            self._tracker.picture(images, name, path)
