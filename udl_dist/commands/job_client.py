"""Ray's job API by plain HTTP: jobs are sent, listed, followed and stopped.

Ray's own JobSubmissionClient takes seconds to import, and sends the token through a proxy of the
environment, or replaces it by what `~/.netrc` has for that host.
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

from udl_dist.commands.connection import Connection
from udl_dist.errors import ClusterError

# Ray's default is 3 s, in which no checkpoint is written.
STOP_SECONDS = 120  # for a checkpoint, before Ray kills the job
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
AGENT_SECONDS = 30.0  # a cluster that has just started has no job agent yet
POLL_SECONDS = 0.5
POLL_BYTES = 2**20  # of a log per second of polling: each request returns all of it
TRIES = 5  # to go on following after the connection broke


@dataclass(frozen=True)
class JobState:
    """Ray's status of a job, and the exit code of its command once it has ended."""

    name: str
    status: str
    exit_code: int | None
    message: str
    started_ms: int

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class JobClient:
    """The jobs of one cluster."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def submit(self, name: str, command: str, folder: Path) -> None:
        """Run `command` in a copy of `folder`; raises ClusterError if the job name is in use."""
        environment = {
            "working_dir": self._send(folder),
            # Anyone who reaches the dashboard can read these variables: no secret belongs here.
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
        }
        job = {"entrypoint": command, "submission_id": name, "runtime_env": environment}
        deadline = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                self._connection.ask("POST", "/api/jobs/", job)
                return
            except ClusterError as error:
                # Every other refusal is final. A second submission of the same id is one of them.
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)

    def _send(self, folder: Path) -> str:
        """Upload a folder as Ray packs it; returns the URI by which a job names it."""
        # In memory: the package is limited to 16 MiB before it comes here.
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            # Sorted, for the same reason: the order of rglob depends on the disk.
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                # Without a time: equal files give an equal name.
                entry = zipfile.ZipInfo(str(file.relative_to(folder)))
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)
        # A name as Ray forms them, from the content: a package that is there is not sent again.
        package = f"_ray_pkg_{hashlib.sha256(packed.getvalue()).hexdigest()[:16]}.zip"
        place = f"/api/packages/gcs/{package}"
        # `missing` is False, not None, because None does not stand for an answer.
        if self._connection.ask("GET", place, missing=False) is False:
            self._connection.ask("PUT", place, packed.getvalue())
        return f"gcs://{package}"

    def jobs(self) -> list[JobState]:
        """The jobs that udl submitted, oldest first."""
        # Other users' jobs, and drivers that joined by ray.init, are listed there too.
        found = [_state(each) for each in self._connection.ask("GET", "/api/jobs/")]
        return sorted(
            (job for job in found if job.name.startswith("udl-")),
            key=lambda job: job.started_ms,
        )

    def look(self, name: str) -> JobState:
        return _state(self._connection.ask("GET", f"/api/jobs/{name}"))

    def stop(self, name: str) -> None:
        """Send the command SIGTERM; after STOP_SECONDS Ray kills it."""
        self._connection.ask("POST", f"/api/jobs/{name}/stop")

    def forget(self, name: str) -> None:
        """Delete a job that has ended from the list."""
        self._connection.ask("DELETE", f"/api/jobs/{name}")

    def logs(self, name: str) -> str:
        """Everything the command has printed."""
        # Not /logs/tail, which Ray has too: when it fails, the dashboard logs the headers of the
        # request, and with them the token.
        return str(self._connection.ask("GET", f"/api/jobs/{name}/logs")["logs"])

    def follow(self, name: str) -> Iterator[str]:
        """The output until the job ends; resumes where it was after the connection broke."""
        shown, tries = 0, 0
        while True:
            try:
                # Before the log is read: what a job prints until its end is then in the log that
                # follows.
                ended = self.look(name).ended
                text = self.logs(name)
                tries = 0
            except ClusterError as error:
                # Failures in a row; any answer starts the count again.
                if (tries := tries + 1) == TRIES:
                    raise ClusterError(
                        f"{error}; {name} may still run: udl status {name}"
                    ) from None
                # Nothing is lost: each answer is the whole log, and `shown` says how much of it
                # was printed.
                ended, text = False, ""
            if text[shown:]:
                yield text[shown:]
                shown = len(text)
            if ended:
                return
            # Long logs are asked for less often, since each answer repeats all of it.
            time.sleep(POLL_SECONDS + len(text) / POLL_BYTES)

    def wait(self, name: str, seconds: float) -> JobState:
        """The state when the job has ended, or after `seconds`."""
        deadline = time.monotonic() + seconds
        # At least one look, even with no time left.
        while not (state := self.look(name)).ended and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return state


def _state(answer: dict[str, Any]) -> JobState:
    # None while it runs, and where Ray could not start the command.
    code = answer.get("driver_exit_code")
    return JobState(
        # A driver that joined by itself has no submission id.
        answer.get("submission_id") or "",
        str(answer["status"]),
        int(code) if code is not None else None,
        answer.get("message") or "",
        int(answer.get("start_time") or 0),
    )
