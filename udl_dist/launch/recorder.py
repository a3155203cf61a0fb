"""Rank 0's pen: whatever a report says is kept in the run folder, checkpoint first; knows no
launcher and no loop.
"""

from __future__ import annotations

import json
import math
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
from udl_dist.runs import remote_checkpoints
from udl_dist.runs.remote_node import Node
from udl_dist.runs.run_folder import RunFolder
from udl_dist.runs.tracking import Tracker
from udl_dist.storage.uris import public
from udl_dist.training import checkpoint
from udl_dist.training.async_writer import WAIT_SECONDS, Writer
from udl_dist.training.finite_guard import Rejected
from udl_dist.training.loop import SECONDS, Report, evaluating, to_batch
from udl_dist.training.meter import Pace
from udl_dist.training.train_state import Learning

LONG_SECONDS = 60.0  # a run must have gone on for so long before its share of anything is spoken of
MISSES = 3  # checkpoints in a row that may fail to be written before the run gives up


class Scribe:
    """Rank 0's pen: curves, checkpoints, pictures, tracking."""

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        learning: Learning,
        stream: Stream,
        held_out: Stream | None,
        start: int,
        node: Node | None,
    ) -> None:
        self._experiment = experiment
        self._node = node
        self._folder = folder
        self._learning = learning
        self._shown, self._held_out = held_out or stream, held_out.records if held_out else 0
        self._validations = Validations(experiment.evaluate.share)
        self._fingerprint = stream.fingerprint
        self._best = experiment.run.best or f"val/{learning.method.best}"
        self._misses, self._missed = 0, ""
        # images of the last checkpoint that was due, and of the last written
        self._asked = self._saved = start
        # points that the disk did not take yet
        self._unwritten: list[tuple[int, dict[str, float]]] = []
        self._writer = Writer(self._write, self._told)
        self._stream, self._waits = stream, 0  # reports in a row whose time was waited away
        self._advised = False
        self._pace = Pace(
            start, experiment.train.batch_size, experiment.train.length(stream.records)
        )
        self._refuse_small_disk()
        last = folder.rewind(start)
        if not start:
            write_whole(folder.data, json.dumps(stream.shards()))
        else:
            folder.say(f"resumed after {start} images")
        config = public(flatten(experiment.to_dict()))
        self._tracker = Tracker(experiment.track, folder.path, config, last, folder.say)
        for point in folder.points():  # those of which a kill kept the tracker from hearing
            self._tracker.point(int(point.pop("images")), point)

    def take(self, report: Report) -> None:
        """Keep what a report says: its point before its checkpoint, which is copied now and written
        later.

        A resume forgets the points after its checkpoint, so a point may come too early and never
        too late.
        """
        self._give_up()
        if report.figures:
            self._unwritten.append((report.images, report.figures))
        if self._unwritten:
            first, *_ = self._unwritten[0]
            self._attempt(f"the curves wait at the point after {first} images", self._write_points)
        if report.checkpoint:
            self._save(report)
        if report.rejected:
            self._reject(report.rejected, report.kept.skips)
        if not report.figures:  # saved between two points of the curves
            return
        self._tracker.point(report.images, report.figures)
        self._advise(report.figures["perf/data_wait_share"])
        if said := self._pace.add(report.images, report.figures):
            self._folder.say(said)
        if report.validated:
            began = time.monotonic()
            if self._experiment.evaluate.pictures:
                self._attempt(
                    f"no pictures after {report.images} images", self._draw, report.images
                )
            took = report.figures.get(SECONDS, 0.0) + time.monotonic() - began
            if said := self._validations.add(took):
                self._folder.say(said)

    def _write_points(self) -> None:
        while self._unwritten:
            self._folder.add_point(*self._unwritten[0])
            del self._unwritten[0]

    def _advise(self, wait_share: float) -> None:
        """Say once what to do about waiting for data; the first report is no sign, for reading had
        no head start.
        """
        advised = self._stream.advice(wait_share)
        self._waits = self._waits + 1 if advised else 0
        if self._waits == 2 and not self._advised:
            self._advised = True
            self._folder.say(advised)

    def finish(self) -> None:
        """Wait until the last checkpoint is written; raise TrainingError if it could not be."""
        self._attempt("the last checkpoint is late", self._writer.wait)
        if self._saved < self._asked:
            raise TrainingError(
                f"the last checkpoint could not be written to {self._folder.checkpoints} "
                f"({self._missed}): free space, then run again: it goes on from the one before"
            )

    def close(self) -> None:
        """End what runs beside the training, however it ended."""
        self._attempt("the last checkpoint is late", self._writer.wait)
        self._tracker.close()

    def _reject(self, rejected: Rejected, skips: int) -> None:
        """Keep the records of a step that was not taken, by rank."""
        both = zip(rejected.losses, rejected.records, strict=True)
        ranks = [
            {
                "rank": rank,
                "losses": [f"{loss:g}" for loss in losses],
                "records": records,
                "keys": [_key_of(self._stream, record) for record in records],
            }
            for rank, (losses, records) in enumerate(both)
        ]
        line = {"images": rejected.images, "why": rejected.why(), "ranks": ranks}
        self._attempt("non_finite.jsonl misses a step", self._folder.add_non_finite, line)
        self._folder.say(
            f"no step after {rejected.images} images ({skips} in a row): {rejected.why()}; "
            f"its records are in {self._folder.non_finite.name}"
        )

    def _refuse_small_disk(self) -> None:
        """Raise TrainingError before the first step if the checkpoints that are to be kept have no
        room.
        """
        remote_checkpoints, keep = self._folder.checkpoints, self._experiment.run.keep_checkpoints
        # beside them the best, and the one in writing
        more = max(1, keep + 2 - len(checkpoint.complete(remote_checkpoints)))
        needed = more * self._learning.checkpoint_bytes()
        try:
            checkpoint.refuse_full(self._folder.path, needed)
        except OSError as error:
            raise TrainingError(
                f"{more} more checkpoints do not fit on the disk of {self._folder.path} "
                f"({error.strerror}): free space, or lower run.keep_checkpoints"
            ) from None

    def _save(self, report: Report) -> None:
        held_out = {
            name: value for name, value in report.figures.items() if name.startswith("val/")
        }
        facts = {
            "method": self._experiment.method_name,
            "data": self._fingerprint,
            "figures": held_out,
            "kept": asdict(report.kept),
            "held_out": self._held_out,
        }
        self._asked = report.images
        try:
            if self._unwritten:  # gone on from, it would lack these points for ever
                self._writer.wait(WAIT_SECONDS)
                self._told(report.images, "points of the curves before it are not written")
                return
            self._writer.put(report.images, self._learning.tensors(), facts)
        except TimeoutError as error:
            self._told(report.images, str(error))
            self._give_up()

    def _write(self, images: int, files: checkpoint.Files, facts: Mapping[str, object]) -> None:
        """On the writer's thread: points before their checkpoint, then delete what is no longer
        kept.
        """
        self._folder.sync_curves()
        checkpoint.save(self._folder.checkpoints, images, files, facts)
        checkpoint.prune(
            self._folder.checkpoints, self._experiment.run.keep_checkpoints, self._best, images
        )
        if self._node:
            written = checkpoint.path_of(self._folder.checkpoints, images)
            remote_checkpoints.push(
                self._node, written, checkpoint.complete(self._folder.checkpoints)
            )

    def _told(self, images: int, failed: str) -> None:
        """On the writer's thread: how a writing ended."""
        self._misses = self._misses + 1 if failed else 0
        if not failed:
            self._saved = images
        else:
            self._missed = failed
            self._alarm(f"no checkpoint after {images} images", failed)

    def _give_up(self) -> None:
        if self._misses >= MISSES:
            raise TrainingError(
                f"{MISSES} checkpoints in a row could not be written to {self._folder.checkpoints} "
                f"({self._missed}): free space, then run again"
            )

    def _attempt(self, lost: str, act: Callable[..., None], *arguments: Any) -> None:
        """Write something; a disk that refuses is told, with what is lost, and never ends a
        training.
        """
        try:
            act(*arguments)
        except OSError as error:
            self._alarm(lost, error.strerror or str(error))

    def _alarm(self, lost: str, why: str) -> None:
        self._folder.say(
            f"ALARM: {lost}: {why}; training goes on, the last good checkpoint is kept"
        )

    def _draw(self, images: int) -> None:
        """Write the grids of now: always the same first held-out images, always the same keys."""
        columns = self._experiment.evaluate.columns
        method = self._learning.in_use
        device = next(method.networks.parameters()).device
        batch = to_batch(next(self._shown.once(columns * columns, 0, 1)), 0, device)
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


class Validations:
    """What validations and pictures take of the clock: said once where it is too much, never acted
    upon.
    """

    def __init__(self, share: float) -> None:
        self._share, self._seconds, self._began = share, 0.0, time.monotonic()

    def add(self, seconds: float) -> str:
        """What is to be said after one that took so long; "" for nothing."""
        self._seconds += seconds
        share = self._seconds / max(time.monotonic() - self._began, LONG_SECONDS)
        if share <= self._share:
            return ""
        allowed, self._share = self._share, math.inf
        return (
            f"validations take {100 * share:.0f} % of the time (evaluate.share = {allowed:g}):"
            " raise evaluate.every_images, lower evaluate.images, or set evaluate.pictures = false"
        )


def _key_of(stream: Stream, number: int) -> str:
    """The key of a record by its number over all data sets."""
    for dataset in stream.datasets:
        if number < dataset.index.records:
            return dataset.index.key(number)
        number -= dataset.index.records
    raise IndexError(number)
