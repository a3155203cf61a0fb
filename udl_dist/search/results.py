"""The results of a search: a table for people, values for machines, search.csv."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from udl_dist.core import files
from udl_dist.evaluation import io as written
from udl_dist.runs.run_folder import RunFolder
from udl_dist.runs.terminal import Screen
from udl_dist.search import findings, publishing
from udl_dist.search.config import Search
from udl_dist.search.final_runs import FinalRuns, final_runs
from udl_dist.search.objective import Objective, Spread, Winner, find_winner
from udl_dist.search.planning import SearchPlan
from udl_dist.search.publishing import MODEL, Published
from udl_dist.search.trial_log import CSV, LOG, TrialLog, TrialResult, short, write_csv

SHOWN = 30  # trials in the table; all are in search.csv
WINNER = "winner.toml"


@dataclass(frozen=True)
class SearchResult:
    """A search, finished or not; `final` has the held-out metrics of the winner's runs."""

    search: Search
    results: list[TrialResult]
    trials: int
    budget: int
    winner: Winner | None
    final: dict[str, Spread] = field(default_factory=dict)
    signal: int = 0
    published: Published = field(default_factory=Published)
    lead: str = ""

    @property
    def complete(self) -> bool:
        return len(self.results) == self.trials

    @property
    def exit_code(self) -> int:
        if self.signal:
            # As a shell reports a process that a signal ended.
            return 128 + self.signal
        # 4, as of a failed training: no trial has a metric, or the winner could not be exported.
        # A search with trials left is no failure: the same command resumes it.
        unpublished = self.final and self.search.settings.export and not self.published.model
        return 4 if self.complete and (self.winner is None or unpublished) else 0

    def as_dict(self) -> dict[str, Any]:
        best, folder = self.winner, self.search.folder
        return {
            "folder": str(folder),
            "complete": self.complete,
            "trials": self.trials,
            "ended": len(self.results),
            "states": count_states(self.results),
            "images": total_images(self.results),
            "budget_images": self.budget,
            "metric": list(self.search.settings.metric),
            "best": best and {"trial": best.trial, "metric": best.metric, "settings": best.values},
            "final": {name: vars(spread) for name, spread in self.final.items()},
            "rungs": [check.as_dict() for check in findings.rung_checks(self.search, self.results)],
            "front": [result.trial for result in Objective(self.search).front(self.results)],
            **self.published.as_dict(folder),
        }

    def lines(self) -> list[str]:
        found = [*table_lines(self.search, self.results), *self._summary()]
        found += [f"  {line}" for line in self.findings()]
        if self.winner:
            return [*found, *self._about_winner(self.winner)]
        if self.complete:
            log = self.search.folder / LOG
            found.append(f"no trial has a valid metric: why each failed is in {log}")
        return found

    def findings(self) -> list[str]:
        """Which rungs ranked well, once all trials have ended; the best of each latent size."""
        if not self.complete:
            return []
        spread = self.final.get(self.search.settings.metric[0])
        deviation = spread.sd if spread else 0.0
        return [
            *findings.rung_lines(findings.rung_checks(self.search, self.results)),
            *findings.size_lines(self.search, self.results, deviation),
        ]

    def status_lines(self) -> list[str]:
        """`lines` with those of running trials, for a search that may still run."""
        return [*self.lines(), *_running_trials(self.search.folder, self.results)]

    def _summary(self) -> list[str]:
        # Of ended trials only, so the share means the same in the middle of a search.
        used, most = total_images(self.results), self.budget * max(1, len(self.results))
        states = in_words(self.results)
        state = "" if self.complete else "; the same command resumes it"
        count = f"{len(self.results)} of {self.trials} trials ended ({states})"
        return [
            f"{self.search.folder}: {count}{state}",
            f"  {used:,} images, {100 * used / most:.0f} % of what they would be without stopping",
        ]

    def _about_winner(self, winner: Winner) -> list[str]:
        folder, metrics = self.search.folder, self.search.settings.metric
        values = ", ".join(f"{name} {short(value)}" for name, value in winner.values.items())
        lines = [f"  best: trial {winner.trial} ({values})"]
        for name, spread in self.final.items():
            if name in metrics or len(self.final) == 1:
                value = f"{spread.mean:.5g} ± {spread.sd:.2g} ({spread.runs} runs)"
                lines.append(f"  trained on the full budget: {name} {value}")
        if self.lead:
            lines.append(f"  it {self.lead}")
        if len(metrics) > 1:
            front = Objective(self.search).front(self.results)
            trials = ", ".join(str(result.trial) for result in front)
            lines.append(f"  no trial beats {trials}")
        if self.published.figures:
            lines += [f"  {line}" for line in written.table(self.published.figures)]
        lines += [f"  {line}" for line in self.published.left_out]
        if self.published.model:
            model, run = folder / MODEL, self.published.model
            lines.append(f'  its model: udl_dist.load("{model}"), from {run}')
        names = (WINNER, CSV, LOG, "trials", "winner", "plots", written.NAME, MODEL)
        there = [name for name in names if (folder / name).exists()]
        return [*lines, f"  in it: {', '.join(there)}"]


def conclude(
    wanted: Search, planned: SearchPlan, log: TrialLog, out: TextIO, signal: int = 0
) -> SearchResult:
    """Write the results, publish the winner once it is trained, and return everything."""
    found = log.first(planned.trials)
    # Written after every session, also an interrupted one: the best so far can be trained at once.
    final = final_runs(wanted, planned, log)
    if final and not signal:
        final.crown()
    if best := final.winner if final else find_winner(wanted, found):
        made = FinalRuns(wanted, [best], planned.whole_images).experiment(0)
        # Seed 0: the file is that of the first final run.
        path = wanted.folder / WINNER
        head = f"# udl train {path}\n# Trial {best.trial} of the search in this folder.\n\n"
        files.write_whole(path, head + made.to_toml())
    write_csv(
        wanted.folder / CSV, wanted.settings.metric, [axis.name for axis in wanted.axes], found
    )
    # Only when every trial has ended: before that another setting may still win.
    if final:
        if wanted.settings.plots:
            # Here, so that --status and --dry-run do not import matplotlib.
            from udl_dist.search import plots

            Screen(out).say("drawing the plots of the search")
            plots.draw(wanted, found, planned.rungs)
        if wanted.settings.final_seeds and not signal:
            publishing.publish(final, out)
    return read_result(wanted, planned, log, signal)


def read_result(
    search: Search, planned: SearchPlan, log: TrialLog, signal: int = 0
) -> SearchResult:
    """The result that a search folder holds; nothing is written."""
    results = log.first(planned.trials)
    final = final_runs(search, planned, log)
    return SearchResult(
        search,
        results,
        planned.trials,
        planned.budget,
        final.winner if final else find_winner(search, results),
        final.metrics() if final else {},
        signal,
        publishing.read_published(search.folder) if final else Published(),
        final.lead() if final else "",
    )


def best_first(search: Search, results: Sequence[TrialResult]) -> list[TrialResult]:
    """Complete trials, the best first, then stopped ones, then failed ones."""
    failed = [result for result in results if result.metric is None]
    return [*Objective(search).ranked(results), *failed]


def table(
    metrics: Sequence[str], settings: Sequence[str], results: Sequence[TrialResult]
) -> list[list[str]]:
    """A header, and a row for each trial."""
    # The last column of the header is empty unless a trial failed.
    failed = "why it failed" if any(result.why for result in results) else ""
    rows = [["trial", "state", "images", *metrics, *settings, "seed", failed]]
    for result in results:
        row = [str(result.trial), str(result.state), f"{result.images:,}"]
        # A failed trial has no values, so dashes fill its columns.
        row += [*map(short, result.values), *["–"] * len(metrics)][: len(metrics)]
        row += [short(result.settings.get(name, "")) for name in settings]
        rows.append([*row, str(result.seed), str(result.why)])
    return rows


def table_lines(search: Search, results: Sequence[TrialResult]) -> list[str]:
    """The table as text, of the first `SHOWN` trials."""
    shown = best_first(search, results)[:SHOWN]
    rows = table(search.settings.metric, [axis.name for axis in search.axes], shown)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for *row, why in rows:
        # Not strict: the last column, why a trial failed, is not padded.
        padded = [text.rjust(width) for text, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*padded, why[:60]]).rstrip())
    more = len(results) - SHOWN
    return [*lines, f"… and {more} more in {CSV}"] if more > 0 else lines


def count_states(results: Sequence[TrialResult]) -> dict[str, int]:
    counts = {
        state: sum(result.state == state for result in results)
        for state in ("complete", "stopped", "failed")
    }
    return {state: count for state, count in counts.items() if count}


def total_images(results: Sequence[TrialResult]) -> int:
    return sum(result.images for result in results)


def in_words(results: Sequence[TrialResult]) -> str:
    """How many trials ended in which state."""
    return ", ".join(f"{count} {state}" for state, count in count_states(results).items())


def _running_trials(folder: Path, results: Sequence[TrialResult]) -> list[str]:
    """A line for each trial that has started and not ended."""
    ended = {result.trial for result in results}
    lines = []
    for path in sorted((folder / "trials").glob("*")):
        if path.name.isdecimal() and int(path.name) not in ended:
            points = RunFolder(path).points()
            images = int(points[-1]["images"]) if points else 0
            lines.append(f"  trial {int(path.name)}: {images:,} images up to now")
    return lines
