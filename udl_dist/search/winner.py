"""The winner of a search, and its final runs on the full budget with several seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from udl_dist import experiment as experiments
from udl_dist.errors import TrainingError
from udl_dist.experiment import Experiment
from udl_dist.runs.run_folder import RunFolder
from udl_dist.search.axes import with_values
from udl_dist.search.config import Search
from udl_dist.search.controller import Controller
from udl_dist.search.objective import Objective
from udl_dist.search.planning import SearchPlan
from udl_dist.search.samplers import mean_values
from udl_dist.search.trial import TrialOutcome, TrialTask, held_out
from udl_dist.search.trial_log import TrialLog, TrialResult


@dataclass(frozen=True)
class Winner:
    """The best setting: the first trial that had it, its values, its mean metric over seeds."""

    trial: int
    values: dict[str, Any]
    metric: float | list[float]


@dataclass(frozen=True)
class Spread:
    """A metric over runs; `sd` is that of a sample, 0 of one run."""

    mean: float
    sd: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        sd = statistics.stdev(values) if len(values) > 1 else 0.0
        return cls(statistics.fmean(values), sd, len(values))


def find_winner(search: Search, results: Sequence[TrialResult]) -> Winner | None:
    """The setting of the best mean over its seeds.

    While no setting is complete on all seeds, the best of those with the most images.
    """
    seeds, objective = search.settings.seeds, Objective(search)
    by_setting: dict[int, list[TrialResult]] = {}
    for result in results:
        if result.metric is not None:
            # A failed seed is missing here, so its setting counts as unfinished below.
            by_setting.setdefault(result.trial // seeds, []).append(result)
    if not by_setting:
        return None

    def rank(setting: int) -> tuple[bool, int, float, int]:
        own = by_setting[setting]
        unfinished = [result.state for result in own] != ["complete"] * seeds
        # A stopped trial's metric is of fewer images: only those of equal images compare.
        images = min(result.images for result in own) if unfinished else 0
        return unfinished, -images, objective.loss(mean_values(own)), setting

    best = by_setting[min(by_setting, key=rank)]
    return Winner(best[0].trial, best[0].settings, objective.as_metric(mean_values(best)))


def final_runs(search: Search, planned: SearchPlan, log: TrialLog) -> FinalRuns | None:
    """The winner's runs, once all trials have ended and one of them won."""
    results = log.first(planned.trials)
    # Computed again at each start from the log: nothing records that the final runs have begun.
    if len(results) < planned.trials or not (best := find_winner(search, results)):
        return None
    return FinalRuns(search, best.values, planned.whole_images)


class FinalRuns(Controller):
    """Controls the final runs, by their seeds; each has a folder below `winner`."""

    def __init__(self, search: Search, values: Mapping[str, Any], total_images: int) -> None:
        self.total_images = total_images
        self.failed: dict[int, str] = {}
        self.seeds = range(search.settings.final_seeds)
        self._values = values
        super().__init__(search, ())
        # After the base class: `finished` needs the search to know the folder.
        self._waiting = [seed for seed in self.seeds if self.finished(seed) is None]

    def folder(self, number: int) -> Path:
        return self.search.folder / "winner" / f"seed-{number}"

    def experiment(self, seed: int) -> Experiment:
        """The winner as an experiment of a whole run."""
        made = with_values(self.search.base, self._values)
        return made.replace(
            train=replace(made.train, seed=made.train.seed + seed),
            # fresh would throw away a final run that a killed search has half done.
            run=replace(made.run, folder=str(self.folder(seed)), fresh=False),
        )

    def finished(self, seed: int) -> dict[str, Any] | None:
        """The result of a final run; None without one, or if its folder is of another winner."""
        return RunFolder(self.folder(seed)).finished() if self._same(seed) else None

    def _same(self, seed: int) -> bool:
        path = RunFolder(self.folder(seed)).experiment
        # Nothing was started: any winner may use the folder.
        if not path.exists():
            return True
        before, now = experiments.load(path, {}), self.experiment(seed)
        # `differences` ignores lengths, since a run may be made longer; here another budget counts.
        lengths = [(each.train.epochs, each.train.total_images) for each in (before, now)]
        return lengths[0] == lengths[1] and not experiments.differences(before, now)

    def next(self) -> TrialTask | None:
        if self.over:
            return None
        seed = self._waiting.pop(0)
        self.running[seed] = 0  # images up to now
        if not self._same(seed):  # the winner changed when more trials were requested
            # Moved, not deleted: it may be a full run of many hours.
            RunFolder(self.folder(seed)).set_aside()
        return TrialTask(seed, self.experiment(seed)).saved()

    def arrived(self, number: int, images: int, metrics: Mapping[str, float]) -> None:
        self.running[number] = images  # for `progress` alone: a final run never stops early

    def ended(self, number: int, outcome: TrialOutcome) -> None:
        self.running.pop(number)
        if outcome.state == "failed":
            self.failed[number] = outcome.why

    def progress(self) -> str:
        done = sum(self.finished(seed) is not None for seed in self.seeds)
        moving = [
            f"seed-{seed} {images:,} of {self.total_images:,} images"
            for seed, images in sorted(self.running.items())
        ]
        head = f"training the winner on the full budget: {done} of {len(self.seeds)} runs complete"
        return " · ".join([head, *moving])

    def metrics(self) -> dict[str, Spread]:
        """Each held-out metric over the runs that are complete."""
        found = [result["figures"] for seed in self.seeds if (result := self.finished(seed))]
        # All runs have the same settings but the seed, so the same metrics.
        names = held_out(found[0]) if found else ()
        return {name: Spread.of([figures[name] for figures in found]) for name in names}

    def refuse_failures(self) -> None:
        # With one run complete there is a model; the others are named in what is published.
        if self.failed and not self.metrics():
            raise TrainingError(f"no final run of the winner ended: {json.dumps(self.failed)}")
