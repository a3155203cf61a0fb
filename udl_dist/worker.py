"""What each rank does with a run: open the data, make the method, take up the newest checkpoint, act on every report.

It stands between a launcher and the loop and knows no launcher: `work` runs in one process, under plain
torch.distributed or in a Ray worker alike. Rank 0 alone writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from udl_dist import methods
from udl_dist.errors import DataError, TrainingError
from udl_dist.evaluation import pictures
from udl_dist.experiment import Experiment
from udl_dist.methods import chance
from udl_dist.runs import RunFolder, write_whole
from udl_dist.settings import flatten
from udl_dist.stream.advice import advice
from udl_dist.stream.opening import Prepared, open_streams
from udl_dist.stream.reader import Stream
from udl_dist.tracking import Tracker
from udl_dist.training import checkpoint
from udl_dist.training.learner import Learning
from udl_dist.training.loop import Intervals, Report, batch_memory, evaluating, to_batch, train
from udl_dist.training.ranks import Ranks

MISSES = 3  # checkpoints in a row that may fail to be written before the run gives up


def work(
    experiment: Experiment, prepared: Prepared, ranks: Ranks, hand_over: Callable[[Report], None] = lambda report: None
) -> dict[str, Any]:
    """Train to the end or to a stop; return `{"images", "stopped", "figures"}`, the same on every rank.

    `hand_over` hears of each report that comes with a checkpoint, on every rank at the same images.
    """
    folder = RunFolder(experiment.run.folder)
    stream, held_out = open_streams(prepared, experiment.train.seed, batch_memory(ranks.device))
    learning = _learning(experiment, stream, ranks)
    start = _resume(folder, learning, stream, ranks)
    total = experiment.train.length(stream.records)
    if start >= total:  # ended between its last checkpoint and its result
        facts = checkpoint.facts(checkpoint.path_of(folder.checkpoints, start))
        return {"images": start, "stopped": False, "figures": facts["figures"]}
    scribe = Scribe(experiment, folder, learning, stream, held_out, start) if ranks.leads else None
    figures: dict[str, float] = {}
    images, stopped = start, False
    try:
        for report in train(learning, stream, held_out, experiment.train, intervals(experiment, total), ranks, start,
                            folder.stop_asked if ranks.leads else lambda: False):  # fmt: skip
            figures |= report.figures
            images, stopped = report.images, report.stopped
            folder.add_damaged([*stream.damage, *(held_out.damage if held_out else ())])
            if scribe:
                scribe.take(report)
            if report.checkpoint:
                hand_over(report)
    finally:
        if scribe:
            scribe.close()
    return {"images": images, "stopped": stopped, "figures": figures}


def intervals(experiment: Experiment, total: int) -> Intervals:
    """The intervals asked for, or a hundred reports and ten validations a run."""
    validate = experiment.evaluate.every_images or max(1, total // 10)
    return Intervals(experiment.train.report_images or max(1, total // 100), validate,
                     experiment.run.checkpoint_images or validate)  # fmt: skip


def _learning(experiment: Experiment, stream: Stream, ranks: Ranks) -> Learning:
    method = methods.find(experiment.method_name)(experiment.method, stream.shape)
    torch.manual_seed(experiment.train.seed)  # the same first weights on every rank
    method.build()
    return Learning(method, experiment.train, ranks)


def _resume(folder: RunFolder, learning: Learning, stream: Stream, ranks: Ranks) -> int:
    """Take up the newest whole checkpoint, the same on every rank; return the images it had seen."""
    found = -1
    if ranks.leads:
        checkpoint.sweep(folder.checkpoints)
        newest = checkpoint.newest(folder.checkpoints, folder.say)
        found = int(newest.name) if newest else -1
    images = ranks.from_leader(found)
    if images < 0:
        return 0
    files, facts = checkpoint.load(checkpoint.path_of(folder.checkpoints, images))
    if facts["data"] != stream.fingerprint:
        raise DataError(f"the first {images:,} images of this run were others ({_difference(folder, stream)}): "
                        "give back the shards it was started with, or choose another --run.folder")  # fmt: skip
    learning.restore(files)
    return images


def _shards(stream: Stream) -> dict[str, str]:
    """What is known of each shard, to be compared with on a resume."""
    return {dataset.index.shard_path(number): f"{shard.records} records in {shard.shard_bytes} bytes, {shard.rows_hash}"
            for dataset in stream.datasets for number, shard in enumerate(dataset.index.shards)}  # fmt: skip


def _difference(folder: RunFolder, stream: Stream) -> str:
    """The first shard that is not what it was when the run began."""
    if not folder.data.exists():
        return "their list is gone"
    before, now = json.loads(folder.data.read_text(encoding="utf-8")), _shards(stream)
    for path in sorted(before | now):
        if before.get(path) != now.get(path):
            return f"shard {path!r} was: {before.get(path, 'not there')}; is: {now.get(path, 'not there')}"
    return "the shards are the same: another selection, size or order of them is asked for"


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
            write_whole(folder.data, json.dumps(_shards(stream)))
        if start:
            folder.say(f"resumed after {start} images")
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
