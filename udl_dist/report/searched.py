"""The page about a search, finished or not: trials, plots, winner, figures; of a broken one it
tells what is left.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from udl_dist import account
from udl_dist.account import Figure
from udl_dist.core import config_schema
from udl_dist.errors import UdlError
from udl_dist.evaluation import written as evaluations
from udl_dist.report import curves
from udl_dist.report.page import clean, page
from udl_dist.report.parts import (
    MOST_BYTES,
    NAME,
    Reported,
    evaluated,
    in_words,
    shared,
    tables,
    written,
)
from udl_dist.report.pictures import films
from udl_dist.runs import environment
from udl_dist.search import ending, handing, results
from udl_dist.search import settings as asked
from udl_dist.search.handing import MODEL, Handed
from udl_dist.search.journal import Journal, Line
from udl_dist.search.objective import Objective
from udl_dist.search.planning import SearchPlan, plan
from udl_dist.search.results import Winner
from udl_dist.search.settings import Search
from udl_dist.storage.uris import public

SOURCE, JOURNAL = "search.toml", "trials.jsonl"
MOST_ALARMS = 20
MOST_ROWS = 300  # of the table; all are in search.csv
PLOTS = {
    "curves": (
        "Trials",
        (
            "the metric of each trial over the images it was trained on; the best one is red,"
            " dotted lines are the rungs at which it is decided who goes on"
        ),
    ),
    "settings": ("Settings", "each trial at its settings, coloured by its metric: red is better"),
    "latent": (
        "Latent size",
        "the metric of each trial over the latent size; a line is what PCA reaches",
    ),
    "front": (
        "Front",
        "two objectives against each other; nothing beats the trials on the red line",
    ),
    "parallel": (
        "All settings",
        "each trial a line through its settings to its metric; the best 15 % are red",
    ),
    "importance": ("Importance", "how much of who is better each setting explains by itself"),
}


@dataclass
class Found:
    """What can be read of a search folder; what cannot is named in `faults`."""

    folder: Path
    lines: list[Line]
    search: Search | None = None
    planned: SearchPlan | None = None
    winner: Winner | None = None
    final: Mapping[str, tuple[float, float, int]] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    handed: Handed = field(default_factory=Handed)
    faults: list[str] = field(default_factory=list)

    @property
    def trials(self) -> int:
        """How many there are to be; as many as have ended where nobody knows."""
        return self.planned.trials if self.planned else len(self.lines)


def is_search(folder: Path) -> bool:
    """Whether a folder means to be one of a search."""
    return any((folder / name).is_file() for name in (SOURCE, JOURNAL))


def report(folder: Path, out: Path | None, refresh: int = 0) -> Reported:
    """Write the page, into the search folder unless told where."""
    found = read(folder)
    text = page(_values(found, _panels(found)) | {"refresh": refresh}, "search.html.jinja")
    if len(text.encode()) > MOST_BYTES:
        found.faults.append(
            "the plots were left out, they are in the folder plots: the page would have been too"
            " large"
        )
        text = page(_values(found, []) | {"refresh": refresh}, "search.html.jinja")
    return written(text, out or folder / NAME, found.faults)


def read(folder: Path) -> Found:
    """Everything that can be read."""
    journal = Journal(folder / JOURNAL, strict=False)
    found = Found(folder, [line for _, line in sorted(journal.lines.items())])
    if journal.odd:
        found.faults.append(
            f"{JOURNAL}: {len(journal.odd)} lines make no sense (the first is line"
            f" {journal.odd[0]})"
        )
    try:
        found.search = asked.load(folder / SOURCE, {"run.folder": str(folder.absolute())})
        found.winner = results.winner(found.search, found.lines)
        found.planned = plan(found.search)
        ended = ending.seen(found.search, found.planned, journal)
        found.lines, found.winner, found.final = ended.lines, ended.winner, ended.final
    except (UdlError, OSError, ValueError, TypeError, KeyError) as error:
        what = "the search cannot be planned again" if found.search else f"{SOURCE} cannot be read"
        found.faults.append(f"{what} ({' '.join(str(error).split())[:300]})")
    found.figures = account.figures_in(folder / evaluations.NAME, found.faults)
    found.handed = handing.kept(folder)
    found.faults += [f"of the winner: {line}" for line in found.handed.failed]
    if found.search and len(found.lines) < found.trials:
        found.faults.append(
            f"{len(found.lines)} of {found.trials} trials have ended: the same command goes on"
        )
    return found


def _values(found: Found, panels: list[dict[str, str]]) -> dict[str, Any]:
    """What the template asks for."""
    sections = ["Result", "Plots", "Trials", "Settings", "Reproduce"]
    shown, odd = films(_pictures(found.folder))
    head, rows = _table(found)
    method = found.search.base.method_name if found.search else ""
    return {
        "title": found.folder.absolute().name,
        "facts": _facts(found),
        "sections": [(name.lower(), name) for name in sections],
        "alarms": _alarms(found.folder),
        "faults": found.faults + odd,
        "winner": (
            [(name, in_words(value)) for name, value in found.winner.values.items()]
            if found.winner
            else []
        ),
        "best_trial": found.winner.trial if found.winner else "",
        "final": _final(found),
        "evaluation": evaluated(found.figures),
        "shared": shared(found.figures),
        "left_out": list(found.handed.lacking),
        "pictures": shown,
        "panels": panels,
        "head": head,
        "rows": rows[:MOST_ROWS],
        "more": len(rows[MOST_ROWS:]),
        "search_settings": _search_settings(found),
        "settings": (
            tables(method, public(config_schema.flatten(found.search.base.to_dict())))
            if found.search
            else []
        ),
        "commands": _commands(found),
        "made_with": environment.in_words(environment.releases()),
    }


def _alarms(folder: Path) -> list[str]:
    """The alarms of the winner's runs."""
    found = []
    for log in sorted(folder.glob("winner/*/messages.log")):
        with contextlib.suppress(OSError):
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            found += [f"{log.parent.name}: {line}" for line in lines if "ALARM" in line]
    return found[:MOST_ALARMS]


def _facts(found: Found) -> list[str]:
    told = [f"method {found.search.base.method_name}"] if found.search else []
    count = ", ".join(f"{number} {state}" for state, number in results.states(found.lines).items())
    used = results.images(found.lines)
    whole = found.planned.budget * len(found.lines) if found.planned else 0
    share = f" ({100 * used / whole:.0f} % of what they would be without stopping)" if whole else ""
    return [
        *told,
        f"{len(found.lines)} of {found.trials} trials ended ({count})",
        f"{used:,} images{share}",
    ]


def _final(found: Found) -> list[tuple[str, str, str]]:
    return [
        (name, f"{mean:.6g}" + (f" ± {deviation:.3g}" if runs > 1 else ""), str(runs))
        for name, (mean, deviation, runs) in found.final.items()
    ]


def _table(found: Found) -> tuple[list[str], list[list[str]]]:
    """The trials, the best first, those that failed last."""
    names = sorted({name for line in found.lines for name in line.settings})
    metrics = list(found.search.settings.metric) if found.search else ["metric"]
    lines = found.lines
    if found.search:
        ranked = Objective(found.search).ranked(lines)
        lines = [*ranked, *(line for line in lines if line.metric is None)]
    rows = []
    for line in lines:
        values = [results.short(value) for value in line.values] or ["–"]
        rows.append(
            [
                str(line.trial),
                str(line.state),
                f"{line.images:,}",
                *(values + ["–"] * len(metrics))[: len(metrics)],
                *(results.short(line.settings.get(name, "")) for name in names),
                str(line.why)[:300],
            ]
        )
    return ["trial", "state", "images", *metrics, *names, "why it failed"], rows


def _panels(found: Found) -> list[dict[str, str]]:
    """A panel for each plot that can be drawn; another is a fault."""
    if not found.search:
        return []
    from udl_dist.search import plots

    rungs = found.planned.rungs if found.planned else ()
    panels = []
    try:
        drawings = plots.drawings(found.search, found.lines, rungs, _floor(found.folder))
    except Exception as error:  # a journal that was written to may hold anything
        found.faults.append(f"there are no plots ({type(error).__name__}: {str(error)[:200]})")
        return []
    for number, (name, drawing) in enumerate(drawings.items()):
        title, said = PLOTS[name]
        try:
            with curves.drawing(number):
                svg = curves.svg_of(drawing())
        except Exception as error:  # the same
            found.faults.append(
                f"no plot of {title.lower()} ({type(error).__name__}: {str(error)[:200]})"
            )
            continue
        panels.append(
            {
                "name": title,
                "svg": svg,
                "said": f"{said[0].upper()}{said[1:]}.",
                "alt": f"Plot of {len(found.lines)} trials: {said}",
            }
        )
    return panels


def _floor(folder: Path) -> dict[int, float]:
    """What PCA reaches, as the search has kept it."""
    try:
        return {
            int(size): float(value)
            for size, value in json.loads((folder / ending.FLOOR).read_text()).items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _pictures(folder: Path) -> dict[str, list[tuple[int, Path]]]:
    """What the exported model draws, with the images it was trained on."""
    try:
        images = int(json.loads((folder / MODEL / "config.json").read_text())["images"])
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    return {path.stem: [(images, path)] for path in sorted((folder / MODEL).glob("*.png"))}


def _search_settings(found: Found) -> list[tuple[str, str]]:
    """What was searched, and how."""
    if not found.search:
        return []
    plain = config_schema.to_dict(found.search.settings).items()
    return [
        *((axis.name, axis.in_words().partition(": ")[2]) for axis in found.search.axes),
        *((f"search.{name}", in_words(value)) for name, value in plain),
    ]


def _commands(found: Found) -> str:
    def place(name: str = "") -> str:
        return shlex.quote(clean(str(found.folder / name)))

    lines = [
        f"udl search {place(SOURCE)} --run.folder runs/again    # the same search, from its start"
    ]
    if (found.folder / "winner.toml").exists():
        lines.append(
            f"udl train {place('winner.toml')} --run.folder runs/winner    # its winner, trained"
            " anew"
        )
    if (found.folder / MODEL).exists():
        lines.append(f"udl evaluate {place(MODEL)} --data SOURCE    # its model, on other images")
    return "\n".join([*lines, f"udl report {place()}    # this page"])
