"""The plan of a search before it starts: trials, rungs, the cost in images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from udl_dist.errors import UsageError
from udl_dist.launch.plan import plan_here as plan_run
from udl_dist.search.axes import with_values
from udl_dist.search.config import Search, SearchSettings
from udl_dist.search.samplers import Sampler, settings_asked
from udl_dist.search.scheduler import brackets, rungs, sizes
from udl_dist.search.trial import experiment_of, in_steps

# A setting that is invalid later fails its trial alone.
CHECKED = 200  # trials whose experiments are built before the first one starts


@dataclass(frozen=True)
class SearchPlan:
    """The numbers of `--dry-run`: `images` without stopping, `expected_images` with it."""

    folder: str
    method: str
    metric: tuple[str, ...]
    axes: tuple[str, ...]
    sampler: str
    scheduler: str
    trials: int
    settings: int
    budget: int
    capped: int  # search.budget_images where a whole run is shorter; else 0
    rungs: tuple[int, ...]
    step: int  # images
    brackets: tuple[int, ...]  # of halving
    images: int
    expected_images: int
    whole_images: int
    records: int  # of one pass over the training images
    final_images: int
    workers: int
    at_once: int

    def lines(self) -> list[str]:
        cost = f"{self.images:,} images if none is stopped"
        if self.expected_images < self.images:
            cost += f" (about {self.expected_images:,} with {self.scheduler})"
        # Each trial reaches a rung at the end of a step of its own.
        stopped = ", ".join(f"{in_steps(images, self.step):,}" for images in self.rungs)
        capped = (
            f"budget        search.budget_images = {self.capped:,} is more than a whole run"
            f" ({self.whole_images:,} images by train.epochs or train.total_images): trials end"
            " there"
        )
        short = (
            f"budget        {self.budget:,} images are less than one pass over the"
            f" {self.records:,} training images: trials are compared early"
        )
        return [
            f"search folder {self.folder}",
            f"metric        {' and '.join(self.metric)}",
            *(f"axis          {axis}" for axis in self.axes),
            f"trials        {self.trials} ({self.settings} settings by {self.sampler}), "
            f"{self.budget:,} images each at most"
            + (f", decided at {stopped} images" if stopped else ""),
            *([capped] if self.capped else []),
            *([short] if self.budget < self.records else []),
            *self._about_rungs(),
            f"cost          {cost}, then {self.final_images:,} for the finalists",
            f"workers       {self.workers} a trial; on this machine {self.at_once} trials at once",
        ]

    def _about_rungs(self) -> list[str]:
        if self.scheduler != "none" and not self.rungs:
            return [
                f"rungs         none lies between a step of {self.step:,} images and the budget"
                ": no trial is stopped"
            ]
        if self.rungs and self.rungs[0] < self.step:
            return [
                f"rungs         {self.rungs[0]:,} images are less than one step of {self.step:,}: "
                "trials are compared after their first step"
            ]
        return []

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan(search: Search, had: tuple[int, ...] = ()) -> SearchPlan:
    """The plan; raise UsageError or DataError for what can be refused before Ray starts.

    `had` are the brackets that a resumed search was started with.
    """
    found, base = search.settings, search.base
    # As of a single run: everything that `udl train` refuses is refused here, before any trial.
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
            f"run.workers = {base.run.workers!r}: the trials of a search have a fixed number of "
            "workers"
        )
    # Longer than a whole run would compare what the winner is never trained to.
    images = min(found.budget_images or whole.total_images, whole.total_images)
    # A trial ends with a whole step, as every run does.
    budget = in_steps(images, base.train.batch_size)
    at_rungs = rungs(found, budget, search.batches)
    sampler, settings = Sampler(search), settings_asked(search)
    trials = settings * found.seeds
    finalists = min(found.finalists, settings) if len(found.metric) == 1 else 1
    in_brackets = brackets(found, trials, had) if found.scheduler == "halving" else ()
    _check_trials(search, sampler, settings, budget, at_rungs)
    return SearchPlan(
        folder=str(search.folder),
        method=base.method_name,
        metric=found.metric,
        axes=tuple(axis.in_words() for axis in search.axes),
        sampler=sampler.name,
        scheduler=found.scheduler,
        trials=trials,
        settings=settings,
        budget=budget,
        capped=found.budget_images if found.budget_images > whole.total_images else 0,
        rungs=at_rungs,
        step=base.train.batch_size,
        brackets=in_brackets,
        images=trials * budget,
        expected_images=_expected(in_brackets or (trials,), budget, at_rungs, found),
        whole_images=whole.total_images,
        records=whole.records,
        final_images=whole.total_images * found.final_seeds * finalists,
        workers=base.run.most_workers,
        # Of this machine; the cluster of a search may be another one.
        at_once=(os.cpu_count() or 1) // (base.run.cpus_per_worker * base.run.most_workers),
    )


def _check_trials(
    search: Search, sampler: Sampler, settings: int, budget: int, at_rungs: tuple[int, ...]
) -> None:
    """Plan the first trials, so that an invalid setting is refused before any of them starts."""
    if sampler.needed(settings - 1):  # later settings depend on results
        for axis in search.axes:
            # One axis at a time, from the base: which combinations will be drawn is not known yet.
            for value in axis.ends():
                plan_run(with_values(search.base, {axis.name: value}))
    for setting in range(min(settings, CHECKED)):
        if sampler.needed(setting):
            break
        trial, values = setting * search.settings.seeds, sampler.values(setting, {})
        try:
            plan_run(experiment_of(search, trial, values, budget, at_rungs))
        except UsageError as error:
            listed = ", ".join(f"{name} = {value}" for name, value in values.items())
            raise UsageError(f"trial {trial} ({listed}): {error}") from None


def _expected(
    in_brackets: Sequence[int], budget: int, at_rungs: tuple[int, ...], settings: SearchSettings
) -> int:
    """The images of all trials; exact by halving, if none fails."""
    trials = sum(in_brackets)
    if settings.scheduler == "halving":
        rule = (len(at_rungs), settings.reduction, settings.seeds)
        # Of each bracket the trials that start towards each rung, and towards the end.
        counts = map(sum, zip(*(sizes(size, *rule) for size in in_brackets), strict=True))
        parts = [end - start for start, end in pairwise((0, *at_rungs, budget))]
        return sum(count * images for count, images in zip(counts, parts, strict=True))
    # By the median half of the trials stop midway.
    if settings.scheduler == "median":
        # Half go all the way, half to the middle rung.
        middle = at_rungs[len(at_rungs) // 2] if at_rungs else budget
        return round(trials * (budget + middle) / 2)
    reduction = settings.reduction if settings.scheduler == "asha" else 1
    total, before, left = 0.0, 0, float(trials)
    for images in (*at_rungs, budget):
        total += left * (images - before)
        # At least one trial reaches the end: the first ones have nothing to be compared with.
        before, left = images, max(1.0, left / reduction)
    return round(total)
