"""The progress of a search on the terminal: a line that redraws, in a log one every ten seconds."""

from __future__ import annotations

import time

from udl_dist.runs.terminal import LOG_SECONDS, Screen, clock
from udl_dist.search.config import Search
from udl_dist.search.objective import Objective
from udl_dist.search.results import count_states, in_words, short
from udl_dist.search.trial_log import TrialLog, TrialResult
from udl_dist.search.winner import FinalRuns


class SearchProgress:
    """Shows trials running, ended and best, then the winner's runs."""

    def __init__(self, search: Search, trials: int, screen: Screen) -> None:
        self._search, self._trials, self._screen = search, trials, screen
        self._every_seconds = 0.5 if screen.redraws else LOG_SECONDS
        self._shown_at, self._began = float("-inf"), time.monotonic()
        self._known: set[int] | None = None  # trials that ended before this start, or were reported
        self._before = 0
        self._final = False

    def show_trials(self, log: TrialLog, running: int, last: bool = False) -> None:
        results = list(log.results.values())
        if self._known is None:
            self._known, self._before = {*log.results}, len(results)
        for result in results:
            if result.trial not in self._known and result.state == "failed":
                self._screen.say(
                    f"trial {result.trial} failed after {result.images:,} images: {result.why}"
                )
            self._known.add(result.trial)
        if last:
            self._screen.say(self._line(results, running))
        elif self._due():
            self._screen.draw(self._line(results, running))

    def show_final_runs(self, final: FinalRuns) -> None:
        if self._due() or not self._final:
            self._final = True
            self._screen.draw(final.progress())

    def _due(self) -> bool:
        due = time.monotonic() - self._shown_at >= self._every_seconds
        if due:
            self._shown_at = time.monotonic()
        return due

    def _line(self, results: list[TrialResult], running: int) -> str:
        done, seconds = len(results) - self._before, time.monotonic() - self._began
        left = seconds / done * (self._trials - len(results)) if done else 0.0
        parts = [
            f"{len(results)} of {self._trials} trials · {running} running",
            in_words(count_states(results)),
            best_in_words(self._search, results),
            f"ETA {clock(left)}" if left else "",
        ]
        return " · ".join(part for part in parts if part)


def best_in_words(search: Search, results: list[TrialResult]) -> str:
    """The best so far, with its settings."""
    ranked = Objective(search).ranked(results)
    if not ranked:
        return ""
    settings = ranked[0].settings.items()
    values = ", ".join(f"{name.rsplit('.', 1)[-1]} {short(value)}" for name, value in settings)
    metric = " ".join(short(value) for value in ranked[0].values)
    return f"best {metric} (trial {ranked[0].trial}: {values})"
