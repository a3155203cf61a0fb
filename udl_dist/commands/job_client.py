"""Ray's job API, and here only: a job sent, looked at, followed and stopped, by plain HTTP through
the door.

Ray's own client takes seconds to import, and would send the token through a proxy of the
environment, or in its stead what `~/.netrc` has for that machine.
"""

from __future__ import annotations

import hashlib
import io
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udl_dist.commands.connection import Door
from udl_dist.errors import ClusterError

STOP_SECONDS = 120  # for a checkpoint, before Ray kills
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
AGENT_SECONDS = 30.0  # for a cluster that has just been started
POLL_SECONDS = 0.5
POLL_BYTES = 2**20  # of a log are asked for once a second at most: each time all of it comes
TRIES = 5  # to follow on after the connection broke


@dataclass(frozen=True)
class State:
    """How a job stands: Ray's word for it, and the exit code of its command once it has ended."""

    name: str
    status: str
    exit_code: int | None
    message: str
    started_ms: int

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class Client:
    """The jobs of the cluster behind a door."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def submit(self, name: str, command: str, folder: Path) -> None:
        """Start a command in a copy of `folder`; raise ClusterError if there is a job of that
        name.
        """
        environment = {
            "working_dir": self._send(folder),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
        }
        job = {"entrypoint": command, "submission_id": name, "runtime_env": environment}
        deadline = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                self._door.ask("POST", "/api/jobs/", job)
                return
            except ClusterError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)

    def _send(self, folder: Path) -> str:
        """Have the files of a folder on the cluster, as Ray packs them; how a job calls them."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                # without a time: the same files, the same name
                entry = zipfile.ZipInfo(str(file.relative_to(folder)))
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)
        package = f"_ray_pkg_{hashlib.sha256(packed.getvalue()).hexdigest()[:16]}.zip"
        place = f"/api/packages/gcs/{package}"
        if self._door.ask("GET", place, missing=False) is False:
            self._door.ask("PUT", place, packed.getvalue())
        return f"gcs://{package}"

    def jobs(self) -> list[State]:
        """All jobs of ours, the oldest first."""
        found = [_state(each) for each in self._door.ask("GET", "/api/jobs/")]
        return sorted(
            (each for each in found if each.name.startswith("udl-")),
            key=lambda state: state.started_ms,
        )

    def look(self, name: str) -> State:
        return _state(self._door.ask("GET", f"/api/jobs/{name}"))

    def stop(self, name: str) -> None:
        """Send the command SIGTERM; Ray kills it if it has not ended in time for a checkpoint."""
        self._door.ask("POST", f"/api/jobs/{name}/stop")

    def forget(self, name: str) -> None:
        """Take a job that has ended off the list."""
        self._door.ask("DELETE", f"/api/jobs/{name}")

    def logs(self, name: str) -> str:
        """All that the command has printed."""
        return str(self._door.ask("GET", f"/api/jobs/{name}/logs")["logs"])

    def follow(self, name: str) -> Iterator[str]:
        """What the command prints, until it ends; goes on where it was after a connection broke."""
        shown, tries = 0, 0
        while True:
            try:
                ended = self.look(name).ended
                text = self.logs(name)
                tries = 0
            except ClusterError as error:
                if (tries := tries + 1) == TRIES:
                    raise ClusterError(f"{error}; {name} may go on: udl status {name}") from None
                ended, text = False, ""
            if text[shown:]:
                yield text[shown:]
                shown = len(text)
            if ended:
                return
            time.sleep(POLL_SECONDS + len(text) / POLL_BYTES)

    def wait(self, name: str, seconds: float) -> State:
        """How a job ended, or how it stands after so long."""
        deadline = time.monotonic() + seconds
        while not (state := self.look(name)).ended and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return state


def _state(told: dict[str, Any]) -> State:
    code = told.get("driver_exit_code")
    return State(
        told.get("submission_id") or "",
        str(told["status"]),
        int(code) if code is not None else None,
        told.get("message") or "",
        int(told.get("start_time") or 0),
    )
