"""What one asks of a job on a cluster: submit, follow, see how it stands, stop. Prints nothing but
what a job printed.

A job has a name of its own; each time it is submitted again after it ended, to resume, it gets a
number behind it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from udl_dist.commands import job_package
from udl_dist.commands.job import Job
from udl_dist.commands.job_client import STOP_SECONDS, Client, State
from udl_dist.errors import ClusterError, UsageError

# What Ray itself writes into the log of a job.
STARTED = re.compile(
    r"^(Running entrypoint for job .*|\d{4}-\d\d-\d\d \S+\sINFO job_manager\.py.*)\n", re.MULTILINE
)
ENDING_SECONDS = 30.0  # until Ray says how a command ended that prints no more


@dataclass(frozen=True)
class Submitted:
    """A job that is on the cluster; `fresh` if it was not before."""

    state: State
    fresh: bool
    bytes: int = 0
    files: int = 0

    def lines(self) -> list[str]:
        name = self.state.name
        if not self.fresh:
            return [f"{name} is there already: {self.state.status.lower()}"]
        return [
            f"{name}: sent {self.files} files, {self.bytes / 2**10:,.0f} KiB: the package and"
            " the job"
        ]

    def as_dict(self) -> dict[str, Any]:
        return {**as_dict(self.state), "fresh": self.fresh, "bytes": self.bytes}


def submit(
    client: Client, job: Job, check: Callable[[], Any], limit_bytes: int = job_package.LIMIT_BYTES
) -> Submitted:
    """Send a job, unless it is there and has not ended; `check` comes before and raises where it
    would not run.
    """
    attempts = _attempts(client, job.name)
    if attempts and not attempts[-1].ended:
        return Submitted(attempts[-1], False)
    check()
    name = f"{job.name}-{len(attempts) + 1}" if attempts else job.name
    with job_package.packed(job.toml, limit_bytes) as made:
        try:
            client.submit(name, job.command, made.folder)
        except ClusterError:
            if not any(each.name == name for each in client.jobs()):
                raise
            return Submitted(client.look(name), False)  # somebody was quicker
        return Submitted(client.look(name), True, made.bytes, made.files)


def follow(client: Client, name: str, write: Callable[[str], Any]) -> int:
    """Pass on what the job prints until it ends; return its exit code."""
    before = ""
    for piece in client.follow(name):
        *whole, before = STARTED.sub("", before + piece).split("\n")
        for line in whole:
            write(f"{line}\n")
    if before:
        write(f"{before}\n")
    return exit_code(client.wait(name, ENDING_SECONDS))


def logs(client: Client, name: str) -> str:
    """What the job has printed so far."""
    return STARTED.sub("", client.logs(name))


def stop(client: Client, name: str) -> State:
    """Have a job write a checkpoint and end; raise UsageError if it has ended."""
    state = client.look(name)
    if state.ended:
        raise UsageError(f"{name} has ended already: {state.status.lower()}")
    client.stop(name)
    return client.wait(name, STOP_SECONDS + ENDING_SECONDS)


def newest(client: Client, name: str) -> State:
    """The last job of that name; a name with a number is meant as it stands. Raise UsageError for
    an unknown one.
    """
    known = client.jobs()
    for each in known:
        if each.name == name and re.search(r"-[0-9a-f]{12}-\d+$", name):
            return each
    if found := _attempts(client, name):
        return found[-1]
    there = ", ".join(each.name for each in known[-5:])
    raise UsageError(
        f"no job {name} on this cluster: there {f'are {there}' if there else 'is none'}"
    )


def exit_code(state: State) -> int:
    """What the command ended with: 143 where it was stopped, 5 where Ray could not start it."""
    if state.status == "STOPPED":
        return 143
    return (
        state.exit_code if state.exit_code is not None else 0 if state.status == "SUCCEEDED" else 5
    )


def line_of(state: State) -> str:
    code = f", exit code {exit_code(state)}" if state.ended else ""
    why = (
        f": {' '.join(state.message.split())[:200]}"
        if state.status == "FAILED" and not state.exit_code
        else ""
    )
    return f"{state.name}  {state.status.lower()}{code}{why}"


def as_dict(state: State) -> dict[str, Any]:
    return {
        "id": state.name,
        "status": state.status,
        "exit_code": exit_code(state) if state.ended else None,
    }


def _attempts(client: Client, name: str) -> list[State]:
    """The submissions of a job in their order."""
    own = re.compile(re.escape(name) + r"(-\d+)?")
    return sorted(
        (each for each in client.jobs() if own.fullmatch(each.name)),
        key=lambda each: _number(each, name),
    )


def _number(state: State, name: str) -> int:
    return int(state.name[len(name) + 1 :] or 1)
