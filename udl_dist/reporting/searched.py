"""The page about a search, finished or not: trials, plots, winner, metrics; of a broken one what is
left.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from udl_dist.core import config_schema
from udl_dist.errors import UdlError
from udl_dist.evaluation import io
from udl_dist.reporting import curves
from udl_dist.reporting.page import (
    MOST_ALARMS,
    NAME,
    Reported,
    films,
    shared,
    tables,
    write_page,
)
from udl_dist.runs import environment
from udl_dist.search import config, publishing, results
from udl_dist.search.config import Search
from udl_dist.search.objective import Spread, Winner, find_winner
from udl_dist.search.planning import SearchPlan, plan
from udl_dist.search.publishing import MODEL, Published
from udl_dist.search.session import SOURCE
from udl_dist.search.trial_log import LOG, TrialLog, TrialResult
from udl_dist.storage.uris import public

MOST_ROWS = 300  # of the table; all are in search.csv
MOST_WHY = 300  # letters of why a trial failed
PLOTS = {
    "curves": (
        "Trials",
        "the metric of each trial over the images it was trained on; the best one is red, dotted "
        "lines are the rungs at which trials stop; open marks are trials that stopped there",
    ),
    "settings": (
        "Settings",
        "each trial at its settings, coloured by its rank: red is better; open marks stopped early",
    ),
    "front": ("Front", "the trials at their first two metrics; no other trial beats those in red"),
}


@dataclass
class SearchFolder:
    """What can be read of a search folder; what cannot is named in `faults`."""

    folder: Path
    results: list[TrialResult]
    search: Search | None = None
    planned: SearchPlan | None = None
    winner: Winner | None = None
    final: Mapping[str, Spread] = field(default_factory=dict)
    metrics: Mapping[str, io.Metric] = field(default_factory=dict)
    published: Published = field(default_factory=Published)
    faults: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    @property
    def trials(self) -> int:
        """How many were planned; as many as have ended where that is unknown."""
        return self.planned.trials if self.planned else len(self.results)


def is_search(folder: Path) -> bool:
    """Whether a folder is meant to be one of a search."""
    return any((folder / name).is_file() for name in (SOURCE, LOG))


def report(folder: Path, out: Path | None, refresh: int = 0) -> Reported:
    """Write the page, into the search folder unless `out` names another place."""
    found = read(folder)
    values = _values(found) | {"refresh": refresh}
    fault = "the plots were left out, they are in the folder plots: the page would be too large"
    return write_page(values, "search.html.jinja", "panels", fault, out or folder / NAME)


def read(folder: Path) -> SearchFolder:
    """Everything that can be read."""
    # Not strict: a torn line must not hide the trials of all others.
    log = TrialLog(folder / LOG, strict=False)
    found = SearchFolder(folder, [log.results[trial] for trial in sorted(log.results)])
    if log.invalid:
        found.faults.append(
            f"{LOG}: {len(log.invalid)} lines are not valid (the first is line {log.invalid[0]})"
        )
    try:
        # Step by step: what succeeds before a failure is shown.
        found.search = config.load(folder / SOURCE, {"run.folder": str(folder.absolute())})
        found.winner = find_winner(found.search, found.results)
        # Needs the data, which may be gone; winner and results above need the log alone.
        found.planned = plan(found.search)
        result = results.read_result(found.search, found.planned, log)
        found.results, found.winner, found.final = result.results, result.winner, result.final
        found.findings = result.findings()
    except (UdlError, OSError, ValueError, TypeError, KeyError) as error:
        what = "the search cannot be planned again" if found.search else f"{SOURCE} cannot be read"
        found.faults.append(f"{what} ({' '.join(str(error).split())[:300]})")
    # From here on of the exported winner, which may be there even if the search cannot be read.
    found.metrics = io.metrics_in(folder / io.NAME, found.faults)
    found.published = publishing.read_published(folder)
    found.faults += [f"of the winner: {line}" for line in found.published.failed]
    if found.search and len(found.results) < found.trials:
        found.faults.append(
            f"{len(found.results)} of {found.trials} trials have ended: the same command resumes it"
        )
    return found


def _values(found: SearchFolder) -> dict[str, Any]:
    """What the template needs."""
    sections = ["Result", "Plots", "Trials", "Settings", "Reproduce"]
    panels = _panels(found)
    pictures, unreadable = films(_pictures(found.folder))
    found.faults += unreadable
    head, *rows = _table(found)
    winner, base = found.winner, found.search and found.search.base
    return {
        "title": found.folder.absolute().name,
        "facts": [*_facts(found), *found.findings],
        "sections": [(name.lower(), name) for name in sections],
        "alarms": _alarms(found.folder),
        "faults": found.faults,
        "winner": [(name, io.in_words(value)) for name, value in winner.values.items()]
        if winner
        else [],
        "best_trial": winner.trial if winner else "",
        "final": [(name, _in_words(spread), spread.runs) for name, spread in found.final.items()],
        "evaluation": io.metric_rows(found.metrics),
        "shared": shared(found.metrics),
        "left_out": list(found.published.lacking),
        "pictures": pictures,
        "panels": panels,
        "head": head,
        "rows": rows[:MOST_ROWS],
        "more": len(rows[MOST_ROWS:]),
        "search_settings": _search_settings(found.search) if found.search else [],
        "settings": (
            tables(base.method_name, public(config_schema.flatten(base.to_dict()))) if base else []
        ),
        "commands": _commands(found),
        "made_with": environment.in_words(environment.releases()),
    }


def _in_words(spread: Spread) -> str:
    return f"{spread.mean:.6g}" + (f" ± {spread.sd:.3g}" if spread.runs > 1 else "")


def _alarms(folder: Path) -> list[str]:
    """The alarms of the winner's runs."""
    found = []
    for log in sorted(folder.glob("winner/*/messages.log")):
        lines = io.read_text(log).splitlines()
        found += [f"{log.parent.name}: {line}" for line in lines if "ALARM" in line]
    return found[:MOST_ALARMS]


def _facts(found: SearchFolder) -> list[str]:
    facts = [f"method {found.search.base.method_name}"] if found.search else []
    states = results.in_words(found.results)
    facts.append(f"{len(found.results)} of {found.trials} trials ended ({states})")
    used = results.total_images(found.results)
    # Had each trial that has ended been trained in full.
    whole = found.planned.budget * len(found.results) if found.planned else 0
    share = f" ({100 * used / whole:.0f} % of what they would be without stopping)" if whole else ""
    return [*facts, f"{used:,} images{share}"]


def _table(found: SearchFolder) -> list[list[str]]:
    """A head and the trials, the best first, those that failed last."""
    names = sorted({name for result in found.results for name in result.settings})
    metrics: tuple[str, ...] = ("metric",)
    ordered = found.results
    if found.search:
        metrics = found.search.settings.metric
        ordered = results.best_first(found.search, found.results)
    # The last column says why a trial failed, at times with a whole traceback.
    return [[*row, why[:MOST_WHY]] for *row, why in results.table(metrics, names, ordered)]


def _panels(found: SearchFolder) -> list[dict[str, str]]:
    """A panel for each plot; one that cannot be drawn is a fault: a log may hold anything."""
    if not found.search:
        return []
    from udl_dist.search import plots

    rungs = found.planned.rungs if found.planned else ()
    drawings = plots.drawings(found.search, found.results, rungs)
    panels = []
    for number, (name, drawing) in enumerate(drawings.items()):
        title, text = PLOTS[name]
        try:
            with curves.drawing(number):
                svg = curves.svg_of(drawing())
        # A plot of what a log claims may fail anywhere in matplotlib; the rest of the page is
        # worth having.
        except Exception as error:
            why = f"{type(error).__name__}: {str(error)[:200]}"
            found.faults.append(f"no plot of {title.lower()} ({why})")
            continue
        alt = f"Plot of {len(found.results)} trials: {text}"
        panels.append({"name": title, "svg": svg, "said": f"{text.capitalize()}.", "alt": alt})
    return panels


def _pictures(folder: Path) -> dict[str, list[tuple[int, Path]]]:
    """The pictures of the exported model, with the images it was trained on."""
    images: Any = io.read_json(folder / MODEL / "config.json", []).get("images")
    if not io.is_number(images):
        return {}
    return {path.stem: [(int(images), path)] for path in sorted((folder / MODEL).glob("*.png"))}


def _search_settings(search: Search) -> list[tuple[str, str]]:
    """The axes and the settings of the search."""
    # in_words says "name: values"; the table has a column for each.
    axes = [(axis.name, axis.in_words().partition(": ")[2]) for axis in search.axes]
    plain = config_schema.to_dict(search.settings).items()
    return [*axes, *((f"search.{name}", io.in_words(value)) for name, value in plain)]


def _commands(found: SearchFolder) -> str:
    # Quoted: the commands are copied into a shell.
    def path(name: str = "") -> str:
        return shlex.quote(io.clean(str(found.folder / name)))

    lines = [f"udl search {path(SOURCE)} --run.folder runs/again    # the same search"]
    if (found.folder / results.WINNER).exists():
        lines.append(f"udl train {path(results.WINNER)} --run.folder runs/winner    # its winner")
    if (found.folder / MODEL).exists():
        lines.append(f"udl evaluate {path(MODEL)} --data SOURCE    # its model, on other images")
    return "\n".join([*lines, f"udl report {path()}    # this page"])
