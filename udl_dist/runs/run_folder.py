"""A run folder: its lock, settings, curves, messages and result. Imports no torch, Ray or method.

The processes that train and those that watch share nothing but these files, so a terminal, a status
command and a report all show what is recorded.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from udl_dist.core import files
from udl_dist.errors import UdlError, UsageError


class RunFolder:
    """The paths of a run, and what is done with them."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()
        # The record of the run, which stays.
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
        self.followed = self.path / "followed"  # metrics of checkpoints by `udl evaluate --follow`
        # What processes say to each other while it runs; `held` removes what a kill has left.
        self.ranks = self.path / "ranks"
        self._restarts = self.path / "restarts.jsonl"
        self._lock = self.path / "lock"
        self._stop = self.path / "stop"
        self._resize = self.path / "resize"
        self._failure = self.path / "failure.json"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Create the folder and lock it for this process; raises UsageError if it is locked."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # Not "w": until the lock is ours, the file names the process that has it.
            file = self._lock.open("a+")
        except OSError as error:
            raise UsageError(
                f"cannot write the run folder {self.path}: {error.strerror}; choose another"
                " --run.folder"
            ) from None
        with file:
            try:
                # The system releases the lock, however this process ends.
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
                # Of an earlier command: a stop asked of that one must not end this one.
                for left in (self._stop, self._resize, self._failure, self._restarts):
                    left.unlink(missing_ok=True)
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # the lock itself ends with the open file
                    os.ftruncate(file.fileno(), 0)

    def in_use(self) -> bool:
        """Whether a run holds the folder now; does not wait."""
        try:
            with self._lock.open() as file:
                # Shared, so that two that ask at the same time do not find each other.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def set_aside(self) -> Path | None:
        """Move everything but the lock into `before-…`; returns it, None if there was nothing."""
        former = [
            path
            for path in self.path.iterdir()
            if path != self._lock and not path.name.startswith("before-")
        ]
        if not former:
            return None
        # Folders that were set aside earlier stay where they are.
        before = sum(path.name.startswith("before-") for path in self.path.iterdir())
        aside = self.path / f"before-{before + 1}"
        aside.mkdir()
        for path in former:
            path.rename(aside / path.name)
        return aside

    def ask_stop(self) -> None:
        """Request a checkpoint and the end of the run; rank 0 sees it wherever it is."""
        # A file, because workers on other machines share nothing with the driver but this folder.
        self._stop.touch()

    def stop_asked(self) -> bool:
        return self._stop.exists()

    def end_asked(self) -> bool:
        """Whether the workers must end, for good or for a larger group."""
        return self.stop_asked() or self.resize_asked()

    def ask_resize(self) -> None:
        """Request a checkpoint and the end of the workers, so that a larger group can start."""
        self._resize.touch()

    def resize_asked(self) -> bool:
        return self._resize.exists()

    def resize_done(self) -> None:
        self._resize.unlink(missing_ok=True)

    def say(self, line: str) -> None:
        """Append a line to the messages; on a full disk it goes to stderr."""
        # Opened for each line, in append mode: driver and ranks write to it at the same time.
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
        """Flush the points to the disk; called before a checkpoint, which must not be ahead."""
        # The points, the name of their file in the folder, and that of the folder itself.
        for path in (self.curves, self.path, self.path.parent):
            if path.exists():
                files.sync(path)

    def add_damaged(self, lines: list[str]) -> None:
        """List damaged records, each once; any rank may."""
        files.append_new(self.damaged, lines)

    def add_non_finite(self, rejected: dict[str, Any]) -> None:
        """Append a rejected step, once even if a resumed run meets it again."""
        files.append_new(self.non_finite, [json.dumps(rejected)])

    def points(self) -> list[dict[str, float]]:
        """Every point of the curves; a last line cut off by a kill is skipped."""
        if not self.curves.exists():
            return []
        points = []
        for line in self.curves.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                points.append(json.loads(line))
        return points

    def rewind(self, images: int) -> int:
        """Delete the points after `images`; returns the images of the last point there was."""
        # Curves are written before checkpoints, so after a kill they may be ahead of the newest
        # one. Training makes these points again, and none may appear twice.
        points = self.points()
        lines = [json.dumps(point) + "\n" for point in points if point["images"] <= images]
        if self.curves.exists():
            files.write_whole(self.curves, "".join(lines))
        return max((int(point["images"]) for point in points), default=0)

    def fail(self, error: UdlError) -> None:
        """Record why the run cannot go on; only the first error counts, later ones are echoes."""
        # "x" succeeds once, also among processes. A full disk must not hide the error itself.
        with contextlib.suppress(OSError), self._failure.open("x", encoding="utf-8") as file:
            json.dump({"exit_code": error.exit_code, "message": str(error)}, file)

    def failure(self) -> tuple[int, str] | None:
        """The exit code and message of `fail`, if the run has failed and they can be read."""
        # On a full disk the file may be empty.
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            saved = json.loads(self._failure.read_text(encoding="utf-8"))
            return int(saved["exit_code"]), str(saved["message"])
        return None

    def add_restart(self, images: int, rank: int, why: str) -> list[dict[str, Any]]:
        """Record why the workers restart; returns all restarts since the folder was locked."""
        # Not synced, as it matters only as long as this driver lives.
        with self._restarts.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"images": images, "rank": rank, "why": why}) + "\n")
        return [
            json.loads(line) for line in self._restarts.read_text(encoding="utf-8").splitlines()
        ]

    def finish(self, result: dict[str, Any]) -> None:
        # The mark of a complete run: Ray has none, it would train the last part again.
        files.write_whole(self.result, json.dumps(result, indent=1))

    def finished(self) -> dict[str, Any] | None:
        """The result of the run, or None before its end."""
        return dict(json.loads(self.result.read_text())) if self.result.exists() else None


def held_out(point: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a validation among all of a point or a run."""
    return {name: value for name, value in point.items() if name.startswith("val/")}


def winner_of(folder: Path) -> Path:
    """`folder` itself, or the best run of a search's winner; UsageError if that is not trained."""
    if not (folder / "search.toml").is_file():
        return folder
    # Several seeds of the winner are trained; `udl evaluate` names the best of them.
    ended = [run for run in sorted(folder.glob("winner/seed-*")) if (run / "result.json").is_file()]
    if not ended:
        trials = ", ".join(str(trial) for trial in sorted(folder.glob("trials/*"))[:3])
        named = trials or "there is none yet"
        raise UsageError(
            f"{folder} is a search without a trained winner: let it finish, or name one of its runs"
            f" ({named})"
        )
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        best = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["model"]
        return next((run for run in ended if run.name == best), ended[0])
    return ended[0]
