"""A run is a folder: its lock, what was asked, its curves, its messages, its result. Knows no
torch, Ray or method.

The folder is the only channel between the process that trains and whoever watches: a terminal, a
status command and a report read the same files, so nothing is shown that is not kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from udl_dist.core import files
from udl_dist.core.config_schema import setting
from udl_dist.errors import UdlError, UsageError


@dataclass(frozen=True)
class RunSettings:
    folder: str = setting(
        "",
        "where everything of the run lies, a path or s3://…; empty: runs/ and the job file's name",
    )
    workers: int | str = setting(
        1,
        "DDP workers, one a GPU, or one a CPU core where there is no GPU; '2..8': as many "
        "of these as can be had, more or fewer as nodes come and go",
        low=1,
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto: GPUs if the cluster has any")
    cpus_per_worker: int = setting(1, "CPU cores that each worker takes", low=1)
    address: str = setting(
        "", "a Ray cluster to join; empty: a private Ray on this machine, ended with the run"
    )
    place_seconds: float = setting(
        0.0,
        "seconds that the start waits for nodes, which an autoscaler is asked for; "
        "with GPUs say run.device = 'cuda' too",
        low=0,
    )
    max_failures: int = setting(3, "times that Ray starts the workers again after one dies", low=0)
    hang_seconds: float = setting(
        60.0,
        "seconds without a step after which a worker hangs, and all start again; 0: never",
        low=0,
    )
    checkpoint_images: int = setting(
        0,
        "images between checkpoints beside those of validations; 0: ten times a run, "
        "or evaluate.every_images",
        low=0,
    )
    checkpoint_seconds: float = setting(
        600.0, "seconds between checkpoints at most; 0: by images alone", low=0
    )
    keep_checkpoints: int = setting(
        2, "newest checkpoints that are kept, beside the best one", low=1
    )
    best: str = setting(
        "", "held-out figure whose least value marks the best checkpoint; empty: the method's own"
    )
    determinism: Literal["none", "world", "elastic"] = setting(
        "world",
        "weights are the same to the bit with the same workers; elastic: with 1, 2, 3, 4, 6 or 12,"
        " slower; none: a GPU takes its fastest algorithms, which differ in their last bits each"
        " time",
    )
    fresh: bool = setting(False, "put aside whatever the folder holds, and start again")

    def __post_init__(self) -> None:
        if not 1 <= self.least_workers <= self.most_workers:
            raise UsageError(
                f"run.workers = {self.workers!r}: say a number, or a range such as '2..8'"
            )

    @property
    def least_workers(self) -> int:
        return self._range()[0]

    @property
    def most_workers(self) -> int:
        return self._range()[1]

    def _range(self) -> tuple[int, int]:
        if isinstance(self.workers, int):
            return self.workers, self.workers
        found = re.fullmatch(r"(\d{1,6})\.\.(\d{1,6})", self.workers.replace(" ", ""))
        return (int(found[1]), int(found[2])) if found else (0, 0)


class RunFolder:
    """The paths of a run and the acts on them."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()
        self.experiment = self.path / "experiment.toml"
        self.curves = self.path / "curves.jsonl"
        self.messages = self.path / "messages.log"
        self.result = self.path / "result.json"
        self.damaged = self.path / "damaged.txt"
        self.non_finite = self.path / "non_finite.jsonl"
        self.data = self.path / "data.json"
        self.environment = self.path / "environment.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.pictures = self.path / "pictures"
        self.followed = self.path / "followed"  # figures of checkpoints by `udl evaluate --follow`
        self.ranks = self.path / "ranks"
        self._restarts = self.path / "restarts.jsonl"
        self._lock = self.path / "lock"
        self._stop = self.path / "stop"
        self._resize = self.path / "resize"
        self._failure = self.path / "failure.json"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Create the folder and hold it as long as this process lives; raise UsageError if another
        run does.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = self._lock.open("a+")
        except OSError as error:
            raise UsageError(
                f"cannot write the run folder {self.path}: {error.strerror}; choose another"
                " --run.folder"
            ) from None
        with file:
            try:
                # let go by the system, however this process ends
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise UsageError(
                    f"{self.path} is in use by {owner}: wait, stop it, or choose another"
                    " --run.folder"
                ) from None
            with files.errors_named(self.path):
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
                for left in (self._stop, self._resize, self._failure, self._restarts):
                    left.unlink(missing_ok=True)
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # the lock itself goes with the file
                    os.ftruncate(file.fileno(), 0)

    def in_use(self) -> bool:
        """Whether a run holds the folder now; looked at without waiting."""
        try:
            with self._lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def set_aside(self) -> Path | None:
        """Move all of a run but its lock into `before-…` in the folder; say where, or None if there
        was nothing.
        """
        kept = [
            path
            for path in self.path.iterdir()
            if path != self._lock and not path.name.startswith("before-")
        ]
        if not kept:
            return None
        before = sum(path.name.startswith("before-") for path in self.path.iterdir())
        aside = self.path / f"before-{before + 1}"
        aside.mkdir()
        for path in kept:
            path.rename(aside / path.name)
        return aside

    def ask_stop(self) -> None:
        """Ask the run to write a checkpoint and end; heard by rank 0 wherever the folder is
        seen.
        """
        self._stop.touch()

    def stop_asked(self) -> bool:
        return self._stop.exists()

    def end_asked(self) -> bool:
        """Whether the workers are to end, for good or for others."""
        return self.stop_asked() or self.resize_asked()

    def ask_resize(self) -> None:
        """Ask the workers to write a checkpoint and end, so that more of them can go on."""
        self._resize.touch()

    def resize_asked(self) -> bool:
        return self._resize.exists()

    def resize_done(self) -> None:
        self._resize.unlink(missing_ok=True)

    def say(self, line: str) -> None:
        """Keep one line for people; on a full disk it goes to stderr."""
        stamped = f"{time.strftime('%H:%M:%S')} {line}\n"
        try:
            with self.messages.open("a", encoding="utf-8") as file:
                file.write(stamped)
        except OSError:
            sys.stderr.write(stamped)

    def add_point(self, images: int, figures: dict[str, float]) -> None:
        """Append one point to the curves; raise OSError with nothing of it left in them."""
        files.append_line(self.curves, json.dumps({"images": images, **figures}))

    def sync_curves(self) -> None:
        """Make the points last a power cut: called before a checkpoint that must not be ahead of
        them.
        """
        for path in (self.curves, self.path, self.path.parent):
            if path.exists():
                files.sync(path)

    def add_damaged(self, lines: list[str]) -> None:
        """List damaged records, each once; any rank may."""
        files.append_new(self.damaged, lines)

    def add_non_finite(self, rejected: dict[str, Any]) -> None:
        """Keep what a step saw that was not taken; once, however often a resumed run comes by."""
        files.append_new(self.non_finite, [json.dumps(rejected)])

    def points(self) -> list[dict[str, float]]:
        """Every point of the curves; a last line torn by a kill is left out."""
        if not self.curves.exists():
            return []
        points = []
        for line in self.curves.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                points.append(json.loads(line))
        return points

    def rewind(self, images: int) -> int:
        """Forget the points after `images`, which will come again; return the images of the last
        point there was.
        """
        points = self.points()
        kept = [json.dumps(point) + "\n" for point in points if point["images"] <= images]
        if self.curves.exists():
            files.write_whole(self.curves, "".join(kept))
        return max((int(point["images"]) for point in points), default=0)

    def fail(self, error: UdlError) -> None:
        """Keep why the run cannot go on; the first refusal stands, those that follow are its
        echoes.
        """
        # also on a full disk
        with contextlib.suppress(OSError), self._failure.open("x", encoding="utf-8") as file:
            json.dump({"exit_code": error.exit_code, "message": str(error)}, file)

    def failure(self) -> tuple[int, str] | None:
        """The exit code and message of `fail`, if the run has failed and they can be read."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            kept = json.loads(self._failure.read_text(encoding="utf-8"))
            return int(kept["exit_code"]), str(kept["message"])
        return None

    def add_restart(self, images: int, rank: int, why: str) -> list[dict[str, Any]]:
        """Keep why the workers are started again; return all of that since the run folder was
        taken.
        """
        with self._restarts.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"images": images, "rank": rank, "why": why}) + "\n")
        return [
            json.loads(line) for line in self._restarts.read_text(encoding="utf-8").splitlines()
        ]

    def finish(self, result: dict[str, Any]) -> None:
        files.write_whole(self.result, json.dumps(result, indent=1))

    def finished(self) -> dict[str, Any] | None:
        """What the run ended with, or None while it has not."""
        return dict(json.loads(self.result.read_text())) if self.result.exists() else None


def winner_of(folder: Path) -> Path:
    """`folder` itself; of a search, the best run of its winner. Raises UsageError where that is not
    trained yet.
    """
    if not (folder / "search.toml").is_file():
        return folder
    ended = [run for run in sorted(folder.glob("winner/seed-*")) if (run / "result.json").is_file()]
    if not ended:
        trials = ", ".join(str(trial) for trial in sorted(folder.glob("trials/*"))[:3])
        named = trials or "there is none yet"
        raise UsageError(
            f"{folder} is a search without a trained winner: let it go on, or name a run of it"
            f" ({named})"
        )
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        best = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["model"]
        return next((run for run in ended if run.name == best), ended[0])
    return ended[0]
