"""What there is at the end of a search, or at any moment of it: its winner, and files for
people.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TextIO

from udl_dist.core import files
from udl_dist.runs.terminal import Screen
from udl_dist.search import publishing as handing
from udl_dist.search import results
from udl_dist.search.axes import LATENT
from udl_dist.search.config import Search
from udl_dist.search.planning import SearchPlan
from udl_dist.search.publishing import Handed
from udl_dist.search.results import Ended, Winner
from udl_dist.search.trial_log import Journal, Line
from udl_dist.search.winner import Finals

FLOOR = "floor.json"  # what PCA reaches, by number of components


def seen(wanted: Search, planned: SearchPlan, journal: Journal, signal: int = 0) -> Ended:
    """What the folder holds; nothing is written."""
    lines = ended_of(journal, planned.trials)
    final = finals(wanted, planned, journal)
    handed = handing.kept(wanted.folder) if final else Handed()
    return Ended(
        wanted,
        lines,
        planned.trials,
        planned.budget,
        results.winner(wanted, lines),
        final.figures() if final else {},
        signal,
        handed,
    )


def end(wanted: Search, planned: SearchPlan, journal: Journal, out: TextIO, signal: int) -> Ended:
    """Write what can be written of what there is, hand over the winner once it is trained, and say
    what there is.
    """
    lines = ended_of(journal, planned.trials)
    if best := results.winner(wanted, lines):
        made = _finals_of(wanted, best, planned).experiment(0)
        text = (
            f"# udl train {wanted.folder}/winner.toml\n# Trial {best.trial} of the search beside"
            " it.\n\n"
        )
        files.write_whole(wanted.folder / "winner.toml", text + made.to_toml())
    results.write_csv(wanted, lines)
    final = finals(wanted, planned, journal)
    if final and wanted.settings.plots:
        Screen(out).say("drawing the plots of the search")
        _plot(wanted, planned, lines)
    if final and wanted.settings.final_seeds and not signal:
        handing.hand_over(wanted, final, out)
    return seen(wanted, planned, journal, signal)


def finals(wanted: Search, planned: SearchPlan, journal: Journal) -> Finals | None:
    """The winner's runs, once all trials have ended and one of them won."""
    lines = ended_of(journal, planned.trials)
    best = results.winner(wanted, lines) if len(lines) == planned.trials else None
    return _finals_of(wanted, best, planned) if best else None


def ended_of(journal: Journal, trials: int) -> list[Line]:
    """The first so many trials, as far as they have ended, in their order."""
    return [line for _, line in sorted(journal.lines.items()) if line.trial < trials]


def _finals_of(wanted: Search, best: Winner, planned: SearchPlan) -> Finals:
    return Finals(wanted, best.values, planned.whole_images)


def _plot(wanted: Search, planned: SearchPlan, lines: Sequence[Line]) -> None:
    from udl_dist.search import floor, plots

    sizes = sorted({line.settings[LATENT] for line in lines if LATENT in line.settings})
    reached = {}
    if sizes and wanted.settings.metric[0] == "val/mse":
        reached = floor.pca_floor(wanted.base, sizes)
        files.write_whole(wanted.folder / FLOOR, json.dumps(reached))
    plots.draw(wanted, lines, planned.rungs, reached)
