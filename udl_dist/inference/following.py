"""`udl evaluate --follow`: metrics of each checkpoint of a run as it is written.

It runs wherever the run folder is visible; the training neither waits for it nor knows of it. Each
checkpoint is copied into `followed/` first, so that the run may delete its own meanwhile; the copy
of the best one stays.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from udl_dist.core import files
from udl_dist.core.config_schema import as_path, nearest
from udl_dist.errors import TrainingError, UsageError
from udl_dist.evaluation import groups, io
from udl_dist.evaluation.settings import MetricSettings
from udl_dist.inference.evaluating import evaluate
from udl_dist.inference.model import load
from udl_dist.inference.outcome import Outcome, Progress, writing
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training import checkpoint

POLL_SECONDS = 2.0
IGNORED = ("workers", "readers", "address")  # settings that change no metric
COLUMNS = 6  # of the table, where no best is asked for


def follow(
    folder: str,
    device: str,
    asked: MetricSettings,
    best: str,
    progress: Progress,
    say: Callable[[str], None],
) -> Outcome:
    """Measure until the run has ended and each of its checkpoints was measured; resumable.

    `best` names a metric: a copy of its best checkpoint stays in `followed/`.
    """
    run = RunFolder(as_path(folder))
    if not run.experiment.is_file():
        raise UsageError(f"{run.path} is not a run folder: it has no experiment.toml")
    follower = Follower(run, device, asked, best, progress, say)
    with writing(run.followed):
        run.followed.mkdir(exist_ok=True)
        # Two followers would delete each other's copies.
        lock = files.lock(run.followed)
        if lock is None:
            raise UsageError(
                f"{run.followed} is written by another udl evaluate --follow: wait for it, or"
                " stop it"
            )
        try:
            follower.refuse_other_settings()
            follower.until_the_end()
        finally:
            os.close(lock)
    return follower.outcome()


@dataclass(frozen=True)
class Follower:
    """A run that is followed, and what is measured of it."""

    run: RunFolder
    device: str
    asked: MetricSettings
    best: str
    progress: Progress
    say: Callable[[str], None]

    def until_the_end(self) -> None:
        # Those that could not be measured. Not written down: the next start tries them again.
        passed: set[Path] = set()
        while True:
            ended = not self.run.in_use()  # before checkpoints are listed: none follows it
            # A run deletes old checkpoints, so one may be gone before it is measured.
            every = checkpoint.complete(self.run.checkpoints)
            fresh = [path for path in every if path not in passed and self._is_new(path)]
            for path in fresh:
                if not self._measured(path):
                    passed.add(path)
                self._discard_all_but_best()
            if ended and not fresh:
                return
            # Without a pause while there is more to measure: the run goes on writing.
            if not fresh:
                time.sleep(POLL_SECONDS)

    def metrics(self) -> dict[int, dict[str, float]]:
        """The metrics that were measured, by images trained on; damaged files are ignored."""
        return {
            images: {name: metric.value for name, metric in metrics.items()}
            for images, metrics in io.followed_in(self.run.followed, []).items()
        }

    def refuse_other_settings(self) -> None:
        """Raise UsageError if the folder holds metrics of other settings: curves would mix them."""
        # Curves over images make sense only under one protocol.
        settings = {name: one for name, one in asdict(self.asked).items() if name not in IGNORED}
        text, path = json.dumps(settings, indent=1), self.run.followed / "asked.json"
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise UsageError(
                f"{self.run.followed} holds metrics of other settings ({path.name}): give those, or"
                " remove it"
            )
        files.write_whole(path, text)

    def _is_new(self, path: Path) -> bool:
        """Whether these weights were not measured: a run that went back writes others."""
        try:
            # By the hash of the weights: after a restart the same number of images may stand for
            # others.
            return not io.of_weights(self._file(path), checkpoint.weights(path))
        except OSError:  # deleted meanwhile
            return False
        except (ValueError, KeyError, TypeError):  # damaged: reported when it is copied
            return True

    def _file(self, path: Path) -> Path:
        return self.run.followed / f"{path.name}.json"

    def _measured(self, path: Path) -> bool:
        """Measure one checkpoint; report and return False if it is damaged, NaN or deleted."""
        run = self.run
        try:
            # Copied and verified first: from here on the run may delete its own.
            checkpoint.adopt(path, run.followed)
            # By number: `load` finds the copy in followed/ too.
            model = load(run.path, self.device, int(path.name))
            done = evaluate(model, self.asked, self._file(path), self.progress)
        except (TrainingError, OSError) as error:
            # What is left of a copy that failed halfway.
            checkpoint.sweep(run.followed)
            if isinstance(error, OSError) and path.exists():  # the disk refuses the copy
                raise
            self.say(f"passed over: {path.name}: {' '.join(str(error).split())}")
            return False
        # As many as fit in a line; all of them are in the file.
        entries = list(done.as_dict()["figures"].items())[:COLUMNS]
        some = ", ".join(f"{name} {entry['value']:.5g}" for name, entry in entries)
        self.say(f"after {int(path.name):,} images: {some}")
        return True

    def _discard_all_but_best(self) -> None:
        best = self._best(self.metrics())
        for path in checkpoint.complete(self.run.followed):
            if int(path.name) != best:
                checkpoint.discard(path)

    def _best(self, metrics: dict[int, dict[str, float]]) -> int | None:
        """After how many images the metric was best; None if none was asked for."""
        if not self.best or not metrics:
            return None
        names = sorted(set().union(*metrics.values()))
        if self.best not in names:
            # Only after the first checkpoint: what can be measured is known from it.
            raise UsageError(f"there is no metric {self.best!r}: {nearest(self.best, names)}")
        # Ties go to the checkpoint with fewer images.
        sign = groups.sign(self.best)
        measured = [(sign * of[self.best], n) for n, of in metrics.items() if self.best in of]
        return min(measured)[1]

    def outcome(self) -> Outcome:
        metrics, best = self.metrics(), self.best
        # No checkpoint at all, or none that could be measured: not a success.
        if not metrics:
            raise TrainingError(
                f"{self.run.path} has no complete checkpoint and no process trains it: train it"
                " first"
            )
        best_images = self._best(metrics)
        names = [best] if best else list(next(iter(metrics.values())))[:COLUMNS]
        cells = [["images", *names]]
        for images, values in metrics.items():
            numbers = (f"{values[name]:.5g}" if name in values else "–" for name in names)
            cells.append([f"{images:,}", *numbers])
        rows = io.aligned(cells)
        if best_images is not None:
            copied = f"a copy stays (--checkpoint {best_images})"
            rows.append(f"best {best}: after {best_images:,} images, {copied}")
        facts: dict[str, Any] = {
            "model": str(self.run.path),
            "figures": metrics,
            "best": best,
            "best_images": best_images,
        }
        return Outcome([*rows, f"each with its protocol: {self.run.followed}"], facts)
