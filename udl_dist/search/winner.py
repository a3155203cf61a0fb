"""The winner of a search, trained anew on the full budget with several seeds: runs like any other,
side by side.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from udl_dist import experiment as experiments
from udl_dist.errors import TrainingError
from udl_dist.experiment import Experiment
from udl_dist.runs.run_folder import RunFolder
from udl_dist.search.axes import with_values
from udl_dist.search.config import Search
from udl_dist.search.controller import LOST
from udl_dist.search.trial import Outcome, Turn


class Finals:
    """Conducts the final runs; each has a folder of its own below `winner`."""

    def __init__(self, search: Search, values: Mapping[str, Any], total: int) -> None:
        self.search, self.running, self.stopping = search, set[int](), False
        self.failed: dict[int, str] = {}
        self.total_images = total
        self.images = dict[int, int]()  # that each run was trained on, as far as it has told
        self._deaths = 0
        self._values = values
        self._waiting = [
            seed for seed in range(search.settings.final_seeds) if self.finished(seed) is None
        ]

    def folder(self, seed: int) -> Path:
        return self.search.folder / "winner" / f"seed-{seed}"

    def experiment(self, seed: int) -> Experiment:
        """The winner as an experiment of a whole run."""
        made = with_values(self.search.base, self._values)
        return made.replace(
            train=replace(made.train, seed=made.train.seed + seed),
            run=replace(made.run, folder=str(self.folder(seed)), fresh=False),
        )

    def finished(self, seed: int) -> dict[str, Any] | None:
        """How a final run ended; None if it has not, or if its folder is of another winner."""
        return RunFolder(self.folder(seed)).finished() if self._same(seed) else None

    def _same(self, seed: int) -> bool:
        kept = RunFolder(self.folder(seed)).experiment
        if not kept.exists():
            return True
        before, now = experiments.load(kept, {}), self.experiment(seed)
        return _length(before) == _length(now) and not experiments.differences(before, now)

    @property
    def over(self) -> bool:
        return self.stopping or not (self._waiting or self.running)

    def next(self) -> Turn | None:
        if self.stopping or not self._waiting:
            return None
        seed = self._waiting.pop(0)
        self.running.add(seed)
        self.folder(seed).mkdir(parents=True, exist_ok=True)
        if not self._same(seed):  # of another winner, before there were more trials
            RunFolder(self.folder(seed)).set_aside()
        return Turn(seed, self.experiment(seed).to_dict())

    def arrived(self, number: int, images: int, figures: Mapping[str, float]) -> None:
        """Nothing is decided about a final run."""
        self.images[number] = images

    def ended(self, number: int, outcome: Outcome) -> None:
        self.running.discard(number)
        if outcome.state == "failed":
            self.failed[number] = outcome.why

    def died(self, number: int) -> None:
        self.running.discard(number)
        self._deaths += 1
        if self._deaths > self.search.base.run.max_failures:
            self.failed[number] = LOST
        else:
            self._waiting = sorted([*self._waiting, number])

    def stop(self) -> None:
        self.stopping = True
        for seed in list(self.running):
            RunFolder(self.folder(seed)).ask_stop()

    def progress(self) -> str:
        """How far the runs are, in words."""
        runs = range(self.search.settings.final_seeds)
        done = sum(self.finished(seed) is not None for seed in runs)
        moving = [
            f"seed-{seed} {self.images.get(seed, 0):,} of {self.total_images:,} images"
            for seed in self.running
        ]
        return " · ".join(
            [f"training the winner anew: {done} of {len(runs)} runs complete", *sorted(moving)]
        )

    def figures(self) -> dict[str, tuple[float, float, int]]:
        """Mean, deviation and number of runs of each held-out figure over the runs that are
        complete.
        """
        ended = [
            found
            for seed in range(self.search.settings.final_seeds)
            if (found := self.finished(seed))
        ]
        names = [name for name in (ended[0]["figures"] if ended else ()) if name.startswith("val/")]
        return {name: spread([run["figures"][name] for run in ended]) for name in names}

    def refuse_failures(self) -> None:
        if self.failed and not self.figures():
            raise TrainingError(f"the winner could not be trained anew: {json.dumps(self.failed)}")


def _length(experiment: Experiment) -> tuple[float, int]:
    return experiment.train.epochs, experiment.train.total_images


def spread(values: list[float]) -> tuple[float, float, int]:
    """Mean, deviation (of a sample; 0 of one) and number."""
    return (
        statistics.fmean(values),
        statistics.stdev(values) if len(values) > 1 else 0.0,
        len(values),
    )
