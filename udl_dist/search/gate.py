"""Where a trial waits at a rung for what is decided about it: a file in its folder, read by its
rank 0.

The same in an actor and in the workers of a group: the folder is the one channel between who trains
and who watches.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from udl_dist.core import files
from udl_dist.runs.run_folder import RunFolder

POLL_SECONDS = 0.001
SLOW_POLL_SECONDS = 0.05  # after the first moments: it is others that are waited for
PATIENCE_SECONDS = 20.0
NAME = "decisions.jsonl"


@dataclass(frozen=True)
class Gate:
    """Asked by `work` after each validation; `rungs` are the images of the decisions, in the steps
    of this trial.
    """

    folder: str
    rungs: tuple[int, ...]

    def __call__(self, images: int) -> bool | None:
        """Whether to go on after so many images; no once a stop is asked for, None after a while of
        waiting.
        """
        passed = sum(rung <= images for rung in self.rungs)
        began = time.monotonic()
        while len(answers := decisions(Path(self.folder))) < passed and all(answers):
            if RunFolder(self.folder).stop_asked():
                return False
            if time.monotonic() - began > PATIENCE_SECONDS:
                return None
            time.sleep(POLL_SECONDS if time.monotonic() - began < 0.1 else SLOW_POLL_SECONDS)
        return all(answers[:passed])


def decisions(folder: Path) -> list[bool]:
    """What was decided about a trial so far, a rung after the other."""
    return [bool(json.loads(line)["goes_on"]) for line in files.whole_lines(folder / NAME)]


def decide(folder: Path, rung: int, images: int, goes_on: bool) -> None:
    """Tell a trial what was decided, once."""
    if len(decisions(folder)) == rung:
        files.append_line(folder / NAME, json.dumps({"images": images, "goes_on": goes_on}))
