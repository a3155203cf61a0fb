"""The finalists of a search trained on the full budget with several seeds: the best mean wins."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from udl_dist import experiment as experiments
from udl_dist.core import files
from udl_dist.errors import TrainingError
from udl_dist.experiment import Experiment
from udl_dist.runs.run_folder import RunFolder, held_out
from udl_dist.search.axes import with_values
from udl_dist.search.config import Search
from udl_dist.search.controller import Controller
from udl_dist.search.objective import Objective, Spread, Winner, best_settings
from udl_dist.search.planning import SearchPlan
from udl_dist.search.trial import TrialOutcome, TrialTask
from udl_dist.search.trial_log import TrialLog


def final_runs(search: Search, planned: SearchPlan, log: TrialLog) -> FinalRuns | None:
    """The finalists' runs, once all trials have ended and one of them has a metric."""
    results = log.first(planned.trials)
    # Computed again at each start from the log: nothing records that the final runs have begun.
    if len(results) < planned.trials:
        return None
    # The Pareto front has no second best.
    count = search.settings.finalists if len(search.settings.metric) == 1 else 1
    found = best_settings(search, results, count)
    return FinalRuns(search, found, planned.whole_images) if found else None


class FinalRuns(Controller):
    """Controls the runs of the finalists on the full budget; the best mean over seeds wins.

    Number n is seed n % final_seeds of a finalist, the best of the trials first. Its runs are in
    `finalists/TRIAL`; `crown` moves those of the winner to `winner`.
    """

    def __init__(self, search: Search, finalists: Sequence[Winner], total_images: int) -> None:
        self.total_images = total_images
        self.finalists = finalists
        self.failed: dict[int, str] = {}
        self._count = max(1, search.settings.final_seeds)
        super().__init__(search, ())
        # After the base class: `finished` needs the search to know the folder.
        self._waiting = [number for number in self._numbers if self.finished(number) is None]

    @property
    def _numbers(self) -> range:
        return range(len(self.finalists) * self.search.settings.final_seeds)

    def _numbers_of(self, place: int) -> range:
        return range(place * self._count, (place + 1) * self._count)

    @property
    def place(self) -> int:
        """Of the winner among the finalists: the best mean over the runs, once all ended."""
        metric, loss = self.search.settings.metric[0], Objective(self.search).loss
        means = [self.metrics(place).get(metric) for place in range(len(self.finalists))]
        # Fewer runs than others: a mean of another kind. Before that the trials decide.
        if any(spread is None or spread.runs < self._count for spread in means):
            return 0
        return min(range(len(means)), key=lambda place: loss([means[place].mean]))  # type: ignore[union-attr]

    @property
    def winner(self) -> Winner:
        return self.finalists[self.place]

    @property
    def seeds(self) -> range:
        """The numbers of the winner's runs."""
        return self._numbers_of(self.place)

    def folder(self, number: int) -> Path:
        crowned = self.search.folder / "winner" / f"seed-{number % self._count}"
        # A single finalist is the winner from the start.
        if len(self.finalists) == 1 or self._is_of(number, crowned):
            return crowned
        return self._apart(number)

    def experiment(self, number: int, folder: Path | None = None) -> Experiment:
        """A finalist as an experiment of a whole run."""
        place, seed = divmod(number, self._count)
        made = with_values(self.search.base, self.finalists[place].values)
        return made.replace(
            train=replace(made.train, seed=made.train.seed + seed),
            # fresh would throw away a final run that a killed search has half done.
            run=replace(made.run, folder=str(folder or self.folder(number)), fresh=False),
        )

    def crown(self) -> None:
        """Move the winner's runs to `winner`; a kill at any point costs nothing."""
        if len(self.finalists) == 1:
            return
        winner, numbers = self.search.folder / "winner", self._numbers_of(self.place)
        for number in self._numbers:
            if number not in numbers and (folder := self.folder(number)).parent == winner:
                self._move(number, self._apart(number))
        for number in numbers:
            folder, crowned = self.folder(number), winner / f"seed-{number % self._count}"
            if folder == crowned or not folder.exists():
                continue
            if crowned.exists():  # of an earlier winner, before more trials were requested
                crowned.rename(winner / f"before-{sum(1 for _ in winner.iterdir())}")
            self._move(number, crowned)

    def _move(self, number: int, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder(number).rename(folder)
        files.write_whole(RunFolder(folder).experiment, self.experiment(number, folder).to_toml())

    def _apart(self, number: int) -> Path:
        place, seed = divmod(number, self._count)
        trial = self.finalists[place].trial
        return self.search.folder / "finalists" / f"{trial:04d}" / f"seed-{seed}"

    def finished(self, number: int) -> dict[str, Any] | None:
        """The result of a final run; None without one, or if its folder is of other settings."""
        folder = self.folder(number)
        return RunFolder(folder).finished() if self._same(number, folder) else None

    def _same(self, number: int, folder: Path) -> bool:
        """Whether a run may use a folder: it is new, or of the same settings."""
        # Nothing was started: any finalist may use the folder.
        return not RunFolder(folder).experiment.exists() or self._is_of(number, folder)

    def _is_of(self, number: int, folder: Path) -> bool:
        path = RunFolder(folder).experiment
        if not path.exists():
            return False
        before, now = experiments.load(path, {}), self.experiment(number, folder)
        # `differences` ignores lengths, since a run may be made longer; here another budget counts.
        lengths = [(each.train.epochs, each.train.total_images) for each in (before, now)]
        return lengths[0] == lengths[1] and not experiments.differences(before, now)

    def next(self) -> TrialTask | None:
        if self.over:
            return None
        number = self._waiting.pop(0)
        folder = self.folder(number)
        self.running[number] = 0  # images up to now
        if not self._same(number, folder):  # the winner changed when more trials were requested
            # Moved, not deleted: it may be a full run of many hours.
            RunFolder(folder).set_aside()
        return TrialTask(number, self.experiment(number, folder)).saved()

    def arrived(self, number: int, images: int, metrics: Mapping[str, float]) -> None:
        self.running[number] = images  # for `progress` alone: a final run never stops early

    def ended(self, number: int, outcome: TrialOutcome) -> None:
        self.running.pop(number)
        if outcome.state == "failed":
            self.failed[number] = outcome.why

    def progress(self) -> str:
        left = len(self._waiting) + len(self.running) + len(self.failed)
        done = len(self._numbers) - left
        moving = [
            f"{self.folder(number).relative_to(self.search.folder)} {images:,} of "
            f"{self.total_images:,} images"
            for number, images in sorted(self.running.items())
        ]
        what = "the winner" if len(self.finalists) == 1 else f"{len(self.finalists)} finalists"
        head = f"training {what} on the full budget: {done} of {len(self._numbers)} runs complete"
        return " · ".join([head, *moving])

    def metrics(self, place: int | None = None) -> dict[str, Spread]:
        """Each held-out metric over the runs of a finalist, or of the winner, that are complete."""
        numbers = self._numbers_of(self.place if place is None else place)
        found = [result["figures"] for number in numbers if (result := self.finished(number))]
        # All runs have the same settings but the seed, so the same metrics.
        names = held_out(found[0]) if found else ()
        return {name: Spread.of([figures[name] for figures in found]) for name in names}

    def lead(self) -> str:
        """By how much the winner leads the next finalist, in deviations of their runs."""
        place, metric = self.place, self.search.settings.metric[0]
        others = [each for each in range(len(self.finalists)) if each != place]
        if not others or not all(self.metrics(each) for each in (place, *others)):
            return ""
        loss = Objective(self.search).loss
        best = self.metrics(place)[metric]
        trial, other = min(
            ((self.finalists[each].trial, self.metrics(each)[metric]) for each in others),
            key=lambda each: loss([each[1].mean]),
        )
        lead = loss([other.mean]) - loss([best.mean])
        deviation = math.sqrt((best.sd**2 + other.sd**2) / 2)
        in_deviations = f", {lead / deviation:.1f} deviations" if deviation else ""
        return (
            f"leads trial {trial} ({other.mean:.5g} ± {other.sd:.2g}) by {lead:.2g}{in_deviations}"
        )

    def refuse_failures(self) -> None:
        # With one run complete there is a model; the others are named in what is published.
        if self.failed and not self.metrics():
            raise TrainingError(f"no final run of the winner ended: {json.dumps(self.failed)}")
