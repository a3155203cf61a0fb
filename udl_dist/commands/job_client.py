"""Jobs on a cluster by Ray's plain HTTP: sent, found again, followed and stopped.

A job has a name of its own; each time it is submitted again after its end, to resume, a number is
appended.

Ray's own JobSubmissionClient takes seconds to import, and sends the token through a proxy of the
environment, or replaces it by what `~/.netrc` has for that host.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from udl_dist.commands.connection import Connection
from udl_dist.commands.job import Job, JobPackage, packed
from udl_dist.errors import ClusterError, UsageError

# Lines that Ray itself writes into the log of a job.
STARTED = re.compile(
    r"^(Running entrypoint for job .*|\d{4}-\d\d-\d\d \S+\sINFO job_manager\.py.*)\n", re.MULTILINE
)
# Ray's default is 3 s, in which no checkpoint is written.
STOP_SECONDS = 120  # for a checkpoint, before Ray kills the job
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
AGENT_SECONDS = 30.0  # a cluster that has just started has no job agent yet
POLL_SECONDS = 0.5
POLL_BYTES = 2**20  # of a log per second of polling: each request returns all of it
ENDING_SECONDS = 30.0  # until Ray reports the end of a command whose output has ended
TRIES = 5  # to go on following after the connection broke


@dataclass(frozen=True)
class JobState:
    """Ray's status of a job, and the exit code of its command once it has ended."""

    name: str
    status: str
    command_code: int | None  # what the command itself ended with
    message: str
    started_ms: int

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def exit_code(self) -> int:
        """The exit code of the command; 143 if it was stopped, 5 if Ray could not start it."""
        # 128 + SIGTERM, which a stop sends.
        if self.status == "STOPPED":
            return 143
        unknown = 0 if self.status == "SUCCEEDED" else ClusterError.exit_code
        return unknown if self.command_code is None else self.command_code

    def line(self) -> str:
        code = f", exit code {self.exit_code}" if self.ended else ""
        # A command that ran has said itself why it failed; Ray's message then only repeats the log.
        silent = self.status == "FAILED" and not self.command_code
        why = f": {' '.join(self.message.split())[:200]}" if silent else ""
        return f"{self.name}  {self.status.lower()}{code}{why}"

    def as_dict(self) -> dict[str, Any]:
        code = self.exit_code if self.ended else None
        return {"id": self.name, "status": self.status, "exit_code": code}


@dataclass(frozen=True)
class Submitted:
    """A job on the cluster, and what was sent: nothing, if it was there already."""

    state: JobState
    bytes: int = 0
    files: int = 0

    def lines(self) -> list[str]:
        name, size = self.state.name, f"{self.bytes / 2**10:,.0f} KiB"
        # Sizes are known only to the client that sent it.
        if not self.files:
            return [f"{name} is already there: {self.state.status.lower()}"]
        return [f"{name}: sent {self.files} files, {size}: the package and the job"]

    def as_dict(self) -> dict[str, Any]:
        return {**self.state.as_dict(), "fresh": self.files > 0, "bytes": self.bytes}


class JobClient:
    """The jobs of one cluster."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def submit(self, job: Job, check: Callable[[], Any]) -> Submitted:
        """Send a job unless it already runs; `check` is called first and raises if it would not."""
        attempts = self._attempts(job.name)
        # Attached without the checks, which would take seconds and prove nothing: it runs.
        if attempts and not attempts[-1].ended:
            return Submitted(attempts[-1])
        check()
        # Ray refuses an id that was used before, even by a job that has ended.
        name = f"{job.name}-{len(attempts) + 1}" if attempts else job.name
        # Two clients may come to this point at once. Ray accepts one submission of an id, and the
        # other client attaches to it.
        package = packed(job.toml)
        try:
            self.run(name, job.command, package)
        except ClusterError:
            if not any(each.name == name for each in self.jobs()):
                raise
            return Submitted(self.look(name))  # another client was quicker
        return Submitted(self.look(name), package.bytes, package.files)

    def run(self, name: str, command: str, package: JobPackage) -> None:
        """Run `command` in an unpacked package; raises ClusterError if the job name is in use."""
        # `missing` is False, not None, because None does not stand for an answer.
        place = f"/api/packages/gcs/{package.name}"
        if self.connection.ask("GET", place, missing=False) is False:
            self.connection.ask("PUT", place, package.content)
        environment = {
            "working_dir": f"gcs://{package.name}",
            # Anyone who reaches the dashboard can read these variables: no secret belongs here.
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
        }
        job = {"entrypoint": command, "submission_id": name, "runtime_env": environment}
        deadline = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                self.connection.ask("POST", "/api/jobs/", job)
                return
            except ClusterError as error:
                # Every other refusal is final. A second submission of the same id is one of them.
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)

    def jobs(self) -> list[JobState]:
        """The jobs that udl submitted, oldest first."""
        # Other users' jobs, and drivers that joined by ray.init, are listed there too.
        found = [_state(each) for each in self.connection.ask("GET", "/api/jobs/")]
        return sorted(
            (job for job in found if job.name.startswith("udl-")),
            key=lambda job: job.started_ms,
        )

    def look(self, name: str) -> JobState:
        return _state(self.connection.ask("GET", f"/api/jobs/{name}"))

    def newest(self, name: str) -> JobState:
        """The last submission of a job, or exactly the one named with its number."""
        known = self.jobs()
        for each in known:
            # The hash of a job (12 digits) and a number: one submission, not the newest of the job.
            if each.name == name and re.search(r"-[0-9a-f]{12}-\d+$", name):
                return each
        if found := self._attempts(name):
            return found[-1]
        # The newest five: most likely one of them was meant.
        there = ", ".join(each.name for each in known[-5:])
        raise UsageError(
            f"no job {name} on this cluster: there {f'are {there}' if there else 'is none'}"
        )

    def _attempts(self, name: str) -> list[JobState]:
        """The submissions of a job in their order."""
        # The first submission has no number.
        own = re.compile(re.escape(name) + r"(-\d+)?")
        return sorted(
            (each for each in self.jobs() if own.fullmatch(each.name)),
            # By number: as text, 10 comes before 2.
            key=lambda each: int(each.name[len(name) + 1 :] or 1),
        )

    def stop(self, state: JobState) -> JobState:
        """Have a job write a checkpoint and end; raise UsageError if it has ended."""
        if state.ended:
            raise UsageError(f"{state.name} has ended already: {state.status.lower()}")
        self.kill(state.name)
        # Until Ray would kill it, and a little longer to hear of it.
        return self.wait(state.name, STOP_SECONDS + ENDING_SECONDS)

    def kill(self, name: str) -> None:
        """Send the command SIGTERM; after STOP_SECONDS Ray kills it."""
        self.connection.ask("POST", f"/api/jobs/{name}/stop")

    def forget(self, name: str) -> None:
        """Delete a job that has ended from the list."""
        self.connection.ask("DELETE", f"/api/jobs/{name}")

    def logs(self, name: str) -> str:
        """Everything the command has printed, without the lines of Ray itself."""
        # Not /logs/tail, which Ray has too: when it fails, the dashboard logs the headers of the
        # request, and with them the token.
        return STARTED.sub("", str(self.connection.ask("GET", f"/api/jobs/{name}/logs")["logs"]))

    def follow(self, name: str) -> Iterator[str]:
        """Whole lines of output until the job ends, also after the connection broke."""
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
            # A line without its end may be one of Ray's, which `logs` knows by whole lines.
            whole = text[: text.rfind("\n") + 1]
            text = f"{text}\n" if ended and text != whole else whole
            if text[shown:]:
                yield text[shown:]
                shown = len(text)
            if ended:
                return
            # Long logs are asked for less often, since each answer repeats all of it.
            time.sleep(POLL_SECONDS + len(text) / POLL_BYTES)

    def wait(self, name: str, seconds: float = ENDING_SECONDS) -> JobState:
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
