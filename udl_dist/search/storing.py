"""What of a search stays on the disk: every curve, and the checkpoints of the best trials alone."""

from __future__ import annotations

import shutil

from udl_dist.runs.run_folder import RunFolder
from udl_dist.search.config import Search
from udl_dist.search.objective import Objective
from udl_dist.search.trial import folder_of
from udl_dist.search.trial_log import Journal


def drop_checkpoints(search: Search, journal: Journal, ended: int) -> None:
    """Delete the checkpoints of ended trials that are not among the best `search.keep`."""
    lines = [line for line in journal.lines.values() if line.state == "complete"]
    ranked = Objective(search).ranked(lines)
    for number in {ended, *(line.trial for line in ranked)} - {
        line.trial for line in ranked[: search.settings.keep]
    }:
        checkpoints = RunFolder(folder_of(search, number)).checkpoints
        if checkpoints.exists():
            shutil.rmtree(checkpoints, ignore_errors=True)
