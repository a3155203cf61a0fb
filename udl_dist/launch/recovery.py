"""After a group of workers failed: which error came first, and whether to start again.

When one rank is lost, all others report a lost connection: those errors are echoes of the first.
Imports no Ray: it gets what each rank raised, and reads heartbeats and stacks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from udl_dist.errors import TrainingError, UdlError
from udl_dist.launch.watchdog import stacks_path
from udl_dist.runs.heartbeat import Heartbeat, machine, read_all
from udl_dist.runs.run_folder import RunFolder

# What a rank raises when another one, with which it communicates, has gone.
ECHO = re.compile(
    r"gloo|nccl|ProcessGroup|[Cc]onnection (closed|reset|refused)|[Bb]roken pipe|DistBackendError"
)
# What Ray says of a process that has ended without an exception.
DEATH = re.compile(
    r"actor (is dead|died|is temporarily unavailable)|worker process has died|node .*(died|dead)",
    re.I,
)
# where a rank waits for another
WAITING = ("training/loop.py", "training/distributed.py")
LOST = "its process died without a message (killed, or out of memory?)"


@dataclass(frozen=True)
class Cause:
    """Why a rank failed; of all ranks, the least `weight` is the first error."""

    weight: int
    rank: int
    images: int
    why: str


def judge(
    folder: RunFolder, raised: Mapping[int, BaseException], max_failures: int, otherwise: str = ""
) -> None:
    """Record why the workers restart; fail the run if a restart would not help or is one too many.

    `otherwise` is what to say where no rank has a word to say of it.
    """
    if folder.failure():  # a refusal, which would be the same after a restart
        return
    cause = first_cause(folder, raised, otherwise)
    restarts = folder.add_restart(cause.images, cause.rank, cause.why)
    what = f"rank {cause.rank} failed after {cause.images:,} images: {cause.why}"
    # Rank, images and cause are equal: an accident would hardly hit the same step twice.
    if len(restarts) > 1 and restarts[-1] == restarts[-2]:
        folder.fail(
            TrainingError(
                f"{what}; it did so twice, after the same images, so it is no accident: mend the "
                f"cause, then run again; all of it is in {folder.messages}"
            )
        )
    elif len(restarts) > max_failures:
        folder.fail(
            TrainingError(
                f"{what}; the workers were started again {max_failures} times already "
                f"(run.max_failures); all of it is in {folder.messages}"
            )
        )
    else:
        folder.say(
            f"{what}; all workers start again from the newest checkpoint ({len(restarts)} of"
            f" {max_failures})"
        )


def first_cause(
    folder: RunFolder, raised: Mapping[int, BaseException], otherwise: str = ""
) -> Cause:
    """The first error among those of all ranks and of dead processes."""
    heartbeats = read_all(folder)
    causes = [
        _cause(folder, rank, raised.get(rank), heartbeats.get(rank))
        for rank in sorted({*raised, *heartbeats})
    ]
    # Only Ray's own process may have died: then this says how many images were done.
    images = max((beat.images for beat in heartbeats.values()), default=0)
    unknown = Cause(6, 0, images, f"Ray's process that watches the workers died: {otherwise}")
    # Of ranks that died the one that was heard of: by now the others may be dead because they were
    # ended.
    return min(
        (cause for cause in causes if cause),
        default=unknown,
        key=lambda cause: (cause.weight, cause.rank not in raised, cause.rank),
    )


def _cause(
    folder: RunFolder, rank: int, error: BaseException | None, beat: Heartbeat | None
) -> Cause | None:
    """Why one rank failed: an error of its own, a crash, a hang, a death or an echo."""
    images = beat.images if beat else 0
    text = one_line(error) if error else ""
    # Of a process on another machine nothing is known but what Ray says.
    gone = bool(beat and beat.machine == machine() and not beat.here)
    died = bool(DEATH.search(str(error))) if error else gone
    # By weight: 0 its own error, 1 a crash, 2 a hang in its own code, 3 a hang while it waited for
    # another rank, 4 a death without a word, 5 an echo.
    if beat and (crash := _crash(folder, beat)):
        return Cause(1, rank, images, crash)
    if beat and beat.hung:
        waits = beat.hung.startswith(WAITING)
        return Cause(3 if waits else 2, rank, images, f"no step in time, it stood in {beat.hung}")
    if error and not (ECHO.search(str(error)) or DEATH.search(str(error))):
        return Cause(0, rank, images, text)
    if died:
        return Cause(4, rank, images, LOST)
    return Cause(5, rank, images, text) if error else None


def _crash(folder: RunFolder, beat: Heartbeat) -> str:
    """The crash that a process wrote to its stacks file, such as a segmentation fault."""
    try:
        with stacks_path(folder, beat.rank).open("rb") as file:
            file.seek(beat.stacks_from)  # behind what earlier processes of this rank have written
            found = re.search(
                r"(?:Fatal Python error|No heartbeat): (.*)",
                # The cause stands at the beginning; stacks of many threads may be long.
                file.read(1 << 16).decode(errors="replace"),
            )
    except OSError:
        return ""
    return found[1] if found else ""


def one_line(error: BaseException) -> str:
    """The last line of a message, which may be a whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def as_error(exit_code: int, message: str) -> UdlError:
    """A worker's refusal, as the error class of its exit code."""
    kinds = {kind.exit_code: kind for kind in UdlError.__subclasses__()}
    return kinds.get(exit_code, TrainingError)(message)
