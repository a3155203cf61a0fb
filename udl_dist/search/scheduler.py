"""Which trials are stopped at which rung, as if one trial had run after the other, whatever the
order they come in.

A trial's decision depends on the results of trials with smaller numbers at the same rung, and on
nothing else: one that comes early waits for those that are still on their way to the rung. Knows no
Ray and no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from udl_dist.errors import UsageError
from udl_dist.search.config import SearchSettings

ASHA_RUNGS = 3  # unless the first one is asked for
MEDIAN_RUNGS = 9


class Rule(Protocol):
    """Told the results of each rung in the order of trials, it says which of them is stopped
    there.
    """

    def stops(self, trial: int, images: int, metric: float) -> bool: ...


@dataclass(frozen=True)
class Decision:
    trial: int
    rung: int
    goes_on: bool


def rungs(settings: SearchSettings, budget: int, batches: Sequence[int] = ()) -> tuple[int, ...]:
    """The images at which it is decided whether a trial goes on; none without a scheduler.

    No two lie within one step of any of the `batches` that trials may have, and none within their
    last one.
    """
    if settings.scheduler not in ("asha", "median"):
        return ()
    asha, least = settings.scheduler == "asha", settings.least_images
    if least >= budget:
        raise UsageError(
            f"search.least_images = {least} leaves no rung below the budget of {budget} images:"
            " lower it"
        )
    if not least:
        parts = (
            [settings.reduction**-power for power in range(ASHA_RUNGS, 0, -1)]
            if asha
            else [part / (MEDIAN_RUNGS + 1) for part in range(1, MEDIAN_RUNGS + 1)]
        )
        return _apart(dict.fromkeys(max(1, int(budget * part)) for part in parts), budget, batches)
    found = [least]
    while (images := found[-1] * settings.reduction if asha else found[-1] + least) < budget:
        found.append(images)
    return _apart(found, budget, batches)


def _apart(places: Iterable[int], budget: int, batches: Sequence[int]) -> tuple[int, ...]:
    for batch in batches:
        by_step: dict[int, int] = {}
        for images in places:
            by_step.setdefault(-(-images // batch), images)
        places = [images for step, images in by_step.items() if step < -(-budget // batch)]
    return tuple(places)


@dataclass
class Rung:
    """What came to one rung, and the first trial whose decision is open."""

    images: int
    metrics: dict[int, float] = field(default_factory=dict)
    next_trial: int = 0


class Board:
    """Hears of results and ends in any order; gives decisions in the order of trials at each
    rung.
    """

    def __init__(self, places: tuple[int, ...], rule: Rule) -> None:
        self._rungs = [Rung(images) for images in places]
        self._rule = rule
        self._gone: set[int] = set()  # nothing more will come of them
        self.decided: dict[tuple[int, int], bool] = {}

    def arrive(self, trial: int, rung: int, metric: float) -> list[Decision]:
        """A result; what can be decided now. Said again, as a resumed trial does, it changes
        nothing.
        """
        self._rungs[rung].metrics.setdefault(trial, metric)
        again = self.decided.get((trial, rung))
        return [Decision(trial, rung, again)] if again is not None else list(self._decide())

    def end(self, trial: int) -> list[Decision]:
        """A trial has ended in whatever way; what can be decided now."""
        self._gone.add(trial)
        return list(self._decide())

    def waiting(self) -> list[int]:
        """The trials whose result is there and whose decision is open."""
        return sorted(
            {
                trial
                for number, rung in enumerate(self._rungs)
                for trial in rung.metrics
                if (trial, number) not in self.decided and trial not in self._gone
            }
        )

    def _decide(self) -> Iterator[Decision]:
        # Rungs in order: who is stopped at one is not waited for at those above it.
        for number, rung in enumerate(self._rungs):
            while True:
                trial = rung.next_trial
                if trial in rung.metrics:
                    goes_on = not self._rule.stops(trial, rung.images, rung.metrics[trial])
                    self.decided[trial, number] = goes_on
                    if not goes_on:
                        self._gone.add(trial)
                    yield Decision(trial, number, goes_on)
                elif trial not in self._gone:
                    break
                rung.next_trial += 1
