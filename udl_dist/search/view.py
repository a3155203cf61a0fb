"""What a person sees of a search while it runs, and of any search folder at any time: trials
running, stopped, best.
"""

from __future__ import annotations

import time
from typing import TextIO

from udl_dist.runs.terminal import LOG_SECONDS, Screen, clock
from udl_dist.search.config import Search
from udl_dist.search.objective import Objective
from udl_dist.search.results import short, states
from udl_dist.search.trial_log import Journal, Line
from udl_dist.search.winner import Finals


class View:
    """One line that redraws on a terminal, a plain line every ten seconds in a log."""

    def __init__(self, search: Search, trials: int, out: TextIO) -> None:
        self._search, self._trials = search, trials
        self._screen = Screen(out)
        self.say, self.draw = self._screen.say, self._screen.draw
        self._shown_at, self._began, self._before = float("-inf"), time.monotonic(), -1
        self._told: set[int] = set()
        self._trials_over = False

    def refresh(self, journal: Journal, running: int, last: bool = False) -> None:
        lines = list(journal.lines.values())
        if self._before < 0:
            self._before, self._told = len(lines), {line.trial for line in lines}
        for line in lines:
            if line.trial not in self._told and line.state == "failed":
                self.say(f"trial {line.trial} failed after {line.images:,} images: {line.why}")
            self._told.add(line.trial)
        if last or time.monotonic() - self._shown_at >= (
            0.5 if self._screen.redraws else LOG_SECONDS
        ):
            self._shown_at = time.monotonic()
            (self.say if last else self._screen.draw)(self._line(lines, running))

    def refresh_finals(self, finals: Finals) -> None:
        """How far the winner's runs are."""
        quiet = 0.5 if self._screen.redraws else LOG_SECONDS
        if not self._trials_over or time.monotonic() - self._shown_at >= quiet:
            self._trials_over, self._shown_at = True, time.monotonic()
            self._screen.draw(finals.progress())

    def _line(self, lines: list[Line], running: int) -> str:
        done = len(lines) - self._before
        seconds = time.monotonic() - self._began
        left = seconds / done * (self._trials - len(lines)) if done else 0.0
        parts = [
            f"{len(lines)} of {self._trials} trials",
            f"{running} running",
            *(f"{number} {state}" for state, number in states(lines).items()),
            best_in_words(self._search, lines),
            f"ETA {clock(left)}" if left else "",
        ]
        return " · ".join(part for part in parts if part)


def best_in_words(search: Search, lines: list[Line]) -> str:
    """The best so far, with its settings."""
    ranked = Objective(search).ranked(lines)
    if not ranked:
        return ""
    told = ", ".join(
        f"{name.rsplit('.', 1)[-1]} {short(value)}" for name, value in ranked[0].settings.items()
    )
    metric = " ".join(short(value) for value in ranked[0].values)
    return f"best {metric} (trial {ranked[0].trial}: {told})"
