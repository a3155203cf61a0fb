"""Submit a job, follow it, look at its state, stop it.

A job has a name of its own; each time it is submitted again after its end, to resume, a number is
appended.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from udl_dist.commands import job_package
from udl_dist.commands.job import Job
from udl_dist.commands.job_client import STOP_SECONDS, JobClient, JobState
from udl_dist.errors import ClusterError, UsageError

# Lines that Ray itself writes into the log of a job.
STARTED = re.compile(
    r"^(Running entrypoint for job .*|\d{4}-\d\d-\d\d \S+\sINFO job_manager\.py.*)\n", re.MULTILINE
)
# The state of a job follows its output with some delay.
ENDING_SECONDS = 30.0  # until Ray reports the end of a command whose output has ended


@dataclass(frozen=True)
class Submitted:
    """A job on the cluster; `fresh` if this call sent it."""

    state: JobState
    fresh: bool
    bytes: int = 0
    files: int = 0

    def lines(self) -> list[str]:
        name = self.state.name
        # Sizes are known only to the client that sent it.
        if not self.fresh:
            return [f"{name} is already there: {self.state.status.lower()}"]
        return [
            f"{name}: sent {self.files} files, {self.bytes / 2**10:,.0f} KiB: the package and"
            " the job"
        ]

    def as_dict(self) -> dict[str, Any]:
        return {**as_dict(self.state), "fresh": self.fresh, "bytes": self.bytes}


def submit(client: JobClient, job: Job, check: Callable[[], Any]) -> Submitted:
    """Send a job unless it already runs; `check` is called first and raises if it would not run."""
    attempts = _attempts(client, job.name)
    # Attached without the checks, which would take seconds and prove nothing: it runs.
    if attempts and not attempts[-1].ended:
        return Submitted(attempts[-1], False)
    check()
    # Ray refuses an id that was used before, even by a job that has ended.
    name = f"{job.name}-{len(attempts) + 1}" if attempts else job.name
    # Two clients may come to this point at once. Ray accepts one submission of an id, and the
    # other client attaches to it.
    with job_package.packed(job.toml) as made:
        try:
            client.submit(name, job.command, made.folder)
        except ClusterError:
            if not any(each.name == name for each in client.jobs()):
                raise
            return Submitted(client.look(name), False)  # another client was quicker
        return Submitted(client.look(name), True, made.bytes, made.files)


def follow(client: JobClient, name: str, write: Callable[[str], Any]) -> int:
    """Write the output of a job until it ends; returns its exit code."""
    before = ""
    for piece in client.follow(name):
        # Pieces end anywhere, and STARTED only matches whole lines: the rest of a line waits for
        # the next piece.
        *whole, before = STARTED.sub("", before + piece).split("\n")
        for line in whole:
            write(f"{line}\n")
    if before:
        write(f"{before}\n")
    return exit_code(client.wait(name, ENDING_SECONDS))


def logs(client: JobClient, name: str) -> str:
    """What the job has printed until now."""
    return STARTED.sub("", client.logs(name))


def stop(client: JobClient, name: str) -> JobState:
    """Have a job write a checkpoint and end; raise UsageError if it has ended."""
    state = client.look(name)
    if state.ended:
        raise UsageError(f"{name} has ended already: {state.status.lower()}")
    client.stop(name)
    # Until Ray would kill it, and a little longer to hear of it.
    return client.wait(name, STOP_SECONDS + ENDING_SECONDS)


def newest(client: JobClient, name: str) -> JobState:
    """The last submission of a job, or exactly the one named with its number; else UsageError."""
    known = client.jobs()
    for each in known:
        # The hash of a job (12 digits) and a number: one submission, not the newest of the job.
        if each.name == name and re.search(r"-[0-9a-f]{12}-\d+$", name):
            return each
    if found := _attempts(client, name):
        return found[-1]
    # The newest five: most likely one of them was meant.
    there = ", ".join(each.name for each in known[-5:])
    raise UsageError(
        f"no job {name} on this cluster: there {f'are {there}' if there else 'is none'}"
    )


def exit_code(state: JobState) -> int:
    """The exit code of the command; 143 if it was stopped, 5 if Ray could not start it."""
    # 128 + SIGTERM, which a stop sends.
    if state.status == "STOPPED":
        return 143
    return (
        state.exit_code if state.exit_code is not None else 0 if state.status == "SUCCEEDED" else 5
    )


def line_of(state: JobState) -> str:
    code = f", exit code {exit_code(state)}" if state.ended else ""
    # A command that ran has said itself why it failed; Ray's message then only repeats the log.
    why = (
        f": {' '.join(state.message.split())[:200]}"
        if state.status == "FAILED" and not state.exit_code
        else ""
    )
    return f"{state.name}  {state.status.lower()}{code}{why}"


def as_dict(state: JobState) -> dict[str, Any]:
    return {
        "id": state.name,
        "status": state.status,
        "exit_code": exit_code(state) if state.ended else None,
    }


def _attempts(client: JobClient, name: str) -> list[JobState]:
    """The submissions of a job in their order."""
    # The first submission has no number.
    own = re.compile(re.escape(name) + r"(-\d+)?")
    return sorted(
        (each for each in client.jobs() if own.fullmatch(each.name)),
        # By number: as text, 10 comes before 2.
        key=lambda each: int(each.name[len(name) + 1 :] or 1),
    )
