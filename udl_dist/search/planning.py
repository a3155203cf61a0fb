"""What a search will do, known before it starts: trials, rungs, the cost in images. Needs no
Ray.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from udl_dist.errors import UsageError
from udl_dist.launch.plan import plan_here as plan_run
from udl_dist.search.axes import with_values
from udl_dist.search.config import Search, SearchSettings
from udl_dist.search.samplers import Grid, Random, Sampler, settings_asked
from udl_dist.search.scheduler import rungs
from udl_dist.search.trial import experiment_of, in_steps

CHECKED = 200  # trials whose experiments are built before the first one starts


@dataclass(frozen=True)
class SearchPlan:
    """The figures of a plan; `images` if no trial is stopped, `expected_images` with the
    scheduler.
    """

    folder: str
    method: str
    metric: tuple[str, ...]
    axes: tuple[str, ...]
    sampler: str
    scheduler: str
    trials: int
    settings: int
    budget: int
    capped: int  # the budget that was asked for, where a whole run is shorter; else 0
    rungs: tuple[int, ...]
    images: int
    expected_images: int
    whole_images: int
    final_images: int
    workers: int | str
    at_once: int

    def lines(self) -> list[str]:
        stopped = (
            f", decided at {', '.join(f'{images:,}' for images in self.rungs)} images"
            if self.rungs
            else ""
        )
        fewer = self.expected_images < self.images
        share = f" (about {self.expected_images:,} with {self.scheduler})" if fewer else ""
        cost = (
            f"{self.images:,} images if none is stopped{share}, then {self.final_images:,} for the"
            " winner"
        )
        longer = (
            f"search.budget_images = {self.capped:,} is more than a whole run"
            f" ({self.whole_images:,} images by "
        )
        return [
            f"search folder {self.folder}",
            f"metric        {' and '.join(self.metric)}",
            *(f"axis          {axis}" for axis in self.axes),
            (
                f"trials        {self.trials} ({self.settings} settings by {self.sampler}),"
                f" {self.budget:,} images each at most{stopped}"
            ),
            *(
                [f"budget        {longer}train.epochs or train.total_images): trials end there"]
                if self.capped
                else []
            ),
            f"cost          {cost}",
            f"workers       {self.workers} a trial; on this machine {self.at_once} trials at once",
        ]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan(search: Search) -> SearchPlan:
    """Work out the plan; raise UsageError or DataError for whatever can be refused before a machine
    is taken.
    """
    found, base = search.settings, search.base
    whole = plan_run(base)
    if base.train.init_from:
        from udl_dist.inference import warm_start

        warm_start.check(base)
    if not whole.held_out_records:
        raise UsageError(
            "a search needs held-out images: set data.held_out or data.held_out_fraction"
        )
    if base.run.least_workers != base.run.most_workers:
        raise UsageError(
            f"run.workers = {base.run.workers!r}: the trials of a search have a fixed number of"
            " workers"
        )
    budget = in_steps(
        min(found.budget_images or whole.total_images, whole.total_images), base.train.batch_size
    )
    capped = found.budget_images if found.budget_images > whole.total_images else 0
    sampler = make_sampler(search)
    settings = settings_asked(sampler, found.trials, found.seeds)
    trials, places = settings * found.seeds, rungs(found, budget, search.batches)
    _check_trials(search, sampler, settings, budget, places)
    return SearchPlan(
        folder=str(search.folder),
        method=base.method_name,
        metric=found.metric,
        axes=tuple(axis.in_words() for axis in search.axes),
        sampler=found.sampler,
        scheduler=found.scheduler,
        trials=trials,
        settings=settings,
        budget=budget,
        capped=capped,
        rungs=places,
        images=trials * budget,
        expected_images=_expected(trials, budget, places, found),
        whole_images=whole.total_images,
        final_images=whole.total_images * found.final_seeds,
        workers=base.run.workers,
        at_once=(os.cpu_count() or 1) // (base.run.cpus_per_worker * base.run.most_workers),
    )


def make_sampler(search: Search) -> Sampler:
    """Where the settings of trials come from."""
    if search.settings.sampler == "grid":
        return Grid(search.axes, search.settings.seed)
    if search.settings.sampler == "optuna":
        from udl_dist.search.tpe import Tpe

        return Tpe(search)
    return Random(search.axes, search.settings.seed)


def _check_trials(
    search: Search, sampler: Sampler, settings: int, budget: int, places: tuple[int, ...]
) -> None:
    """Build the experiment of each trial, and plan it: what would be refused is refused before the
    first one starts.
    """
    if sampler.ahead:
        ends = [{axis.name: value} for axis in search.axes for value in axis.ends()]
        for values in ends:
            plan_run(with_values(search.base, values))
        return
    for number in range(min(settings, CHECKED)):
        values = sampler.values(number, {})
        try:
            plan_run(experiment_of(search, number, values, 0, budget, places))
        except UsageError as error:
            told = ", ".join(f"{name} = {value}" for name, value in values.items())
            raise UsageError(f"trial {number} ({told}): {error}") from None


def _expected(trials: int, budget: int, places: tuple[int, ...], settings: SearchSettings) -> int:
    """Images if one of `reduction` trials goes on at each rung of asha, and half of those that
    began by the median.
    """
    if settings.scheduler == "median":
        return round(trials * (budget + places[len(places) // 2]) / 2)
    reduction = settings.reduction if settings.scheduler == "asha" else 1
    total, before, left = 0.0, 0, float(trials)
    for images in (*places, budget):
        total += left * (images - before)
        before, left = images, max(1.0, left / reduction)
    return round(total)
