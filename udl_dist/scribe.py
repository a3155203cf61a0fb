"""Rank 0's pen: whatever a report says is kept in the run folder, checkpoint first; knows no launcher and no loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from udl_dist.errors import TrainingError
from udl_dist.evaluation import pictures
from udl_dist.experiment import Experiment
from udl_dist.methods import chance
from udl_dist.runs import RunFolder, write_whole
from udl_dist.settings import flatten
from udl_dist.stream.advice import advice
from udl_dist.stream.feed import Feed
from udl_dist.tracking import Tracker
from udl_dist.training import checkpoint
from udl_dist.training.learner import Learning
from udl_dist.training.loop import Report, evaluating, to_batch

MISSES = 3  # checkpoints in a row that may fail to be written before the run gives up


class Scribe:
    """Rank 0's pen: curves, checkpoints, pictures, tracking."""

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        learning: Learning,
        stream: Feed,
        held_out: Feed | None,
        start: int,
    ) -> None:
        self._experiment = experiment
        self._folder = folder
        self._learning = learning
        self._shown = held_out or stream
        self._fingerprint = stream.fingerprint
        self._best = experiment.run.best or f"val/{learning.method.best}"
        self._misses = 0
        self._stream, self._advised = stream, ""
        last = folder.rewind(start)
        if not start:
            write_whole(folder.data, json.dumps(stream.shards()))
        if start:
            anew = ", in an order drawn anew" if stream.lost else ""
            folder.say(f"resumed after {start} images{anew}")
        if stream.lost:
            folder.say(stream.lost)
        config = flatten(experiment.to_dict())
        self._tracker = Tracker(experiment.track, folder.path, config, last, folder.say)

    def take(self, report: Report) -> None:
        """Keep what a report says; a checkpoint first, so that what is said is also kept."""
        if report.checkpoint:
            self._save(report)
        self._attempt(f"the curves miss {report.images} images", self._folder.add_point, report.images, report.figures)
        self._tracker.point(report.images, report.figures)
        advised = advice(self._stream, report.figures["perf/data_wait_share"])
        if advised and not self._advised:
            self._folder.say(advised)
        self._advised = self._advised or advised
        if report.validated and self._experiment.evaluate.pictures:
            self._attempt(f"no pictures after {report.images} images", self._draw, report.images)

    def close(self) -> None:
        self._tracker.close()

    def _save(self, report: Report) -> None:
        failed = self._attempt(f"no checkpoint after {report.images} images", self._write_checkpoint, report)
        self._misses = self._misses + 1 if failed else 0
        if self._misses >= MISSES:
            raise TrainingError(f"{MISSES} checkpoints in a row could not be written to {self._folder.checkpoints} "
                                f"({failed}): free space, then run again")  # fmt: skip

    def _write_checkpoint(self, report: Report) -> None:
        held_out = {name: value for name, value in report.figures.items() if name.startswith("val/")}
        facts = {"figures": held_out, "data": self._fingerprint}
        checkpoint.save(self._folder.checkpoints, report.images, self._learning.tensors(), facts)
        checkpoint.prune(self._folder.checkpoints, self._experiment.run.keep_checkpoints, self._best)

    def _attempt(self, lost: str, act: Callable[..., None], *arguments: Any) -> str:
        """Write something; a disk that refuses is told, with what is lost, and never ends a training."""
        try:
            act(*arguments)
            return ""
        except OSError as error:
            why = error.strerror or str(error)
            self._folder.say(f"ALARM: {lost}: {why}; training goes on, the last good checkpoint is kept")
            return why

    def _draw(self, images: int) -> None:
        """Write the grids of now: always the same first held-out images, always the same keys."""
        columns = self._experiment.evaluate.columns
        method = self._learning.in_use
        device = next(method.networks.parameters()).device
        batch = to_batch(next(self._shown.once(columns * columns, 0, 1)), 0, device)
        keys = chance.keys(self._experiment.train.seed, columns * columns).to(device)
        self._folder.pictures.mkdir(exist_ok=True)
        with evaluating(method):
            drawn = pictures.draw(method, batch, keys, columns)
        for name, picture in drawn.items():
            path: Path = self._folder.pictures / f"{name}-{images:012d}.png"
            picture.save(path)
            self._tracker.picture(images, name, path)
