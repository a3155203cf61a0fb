"""The progress of a search on the terminal: a line that redraws, in a log one every ten seconds."""

from __future__ import annotations

import time

from udl_dist.runs.terminal import LOG_SECONDS, Screen, clock
from udl_dist.search.config import Search
from udl_dist.search.objective import Objective
from udl_dist.search.results import count_states, in_words, short
from udl_dist.search.trial_log import TrialLog, TrialResult


class SearchProgress:
    """Shows trials running, ended and best, then the winner's runs."""

    def __init__(self, search: Search, trials: int, log: TrialLog, screen: Screen) -> None:
        self._search, self._trials, self._log, self._screen = search, trials, log, screen
        self._before = self._reported = len(log.results)
        self._began, self._shown_at = time.monotonic(), float("-inf")

    def show(self, now: str, last: bool = False) -> None:
        """Draw a line, unless there was one a moment ago; failed trials are reported at once."""
        for result in list(self._log.results.values())[self._reported :]:
            self._reported += 1
            if result.state == "failed":
                images = f"{result.images:,} images"
                self._screen.say(f"trial {result.trial} failed after {images}: {result.why}")
        if last:
            self._screen.say(now)
        elif time.monotonic() - self._shown_at >= (0.5 if self._screen.redraws else LOG_SECONDS):
            self._shown_at = time.monotonic()
            self._screen.draw(now)

    def line(self, running: int) -> str:
        results = list(self._log.results.values())
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
    """The best trial up to now, with its settings."""
    ranked = Objective(search).ranked(results)
    if not ranked:
        return ""
    settings = ranked[0].settings.items()
    values = ", ".join(f"{name.rsplit('.', 1)[-1]} {short(value)}" for name, value in settings)
    metric = " ".join(short(value) for value in ranked[0].values)
    return f"best {metric} (trial {ranked[0].trial}: {values})"
