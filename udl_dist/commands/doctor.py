"""udl doctor: would a job run on a cluster? One line a check, each failure with its cure."""

from __future__ import annotations

import json
import platform
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from udl_dist.commands.job import Job, packed
from udl_dist.commands.job_client import JobClient
from udl_dist.commands.probe import HEAD, MARK
from udl_dist.errors import ClusterError

# On a free cluster a probe takes about 5 s, most of it the start of its job.
PROBE_SECONDS = 120.0
LEAST_BYTES = 2**30  # a few checkpoints and their pictures
CLOCK_SECONDS = 30.0  # storage rejects signatures that are minutes off; the probe takes some


@dataclass(frozen=True)
class Check:
    """One line: what was checked, its state, and what to do if it is bad."""

    what: str
    found: str
    good: bool = True
    cure: str = ""

    def line(self) -> str:
        return (
            # Of equal length, so that what was checked stands in one column.
            f"{'ok  ' if self.good else 'BAD '} {self.what:<10}"
            f" {self.found}{f': {self.cure}' if self.cure else ''}"
        )


def examine(client: JobClient, job: Job) -> Iterator[Check]:
    """All checks in order, for `udl doctor` and, before a job is sent, `udl submit`."""
    # The first two were answered when the connection was opened.
    yield Check("address", f"{client.connection.address} answers")
    yield Check(
        "token",
        "accepted" if client.connection.closed else "none required, on loopback or by --insecure",
    )
    # Wall time, not monotonic: it is compared with the clocks of other machines.
    began = time.time()
    found = _probed(client, job)
    if error := found.get("error"):
        # Everything below is read from the answers, so there is nothing more to check.
        yield Check("nodes", "did not answer", False, error)
        return
    yield from judged(job, found, began)


def refuse_bad(client: JobClient, job: Job) -> str:
    """Raise ClusterError for the first failed check; otherwise return a line that all passed."""
    # All of them, not up to the first failure: the line says how many more there are.
    began, checks = time.monotonic(), list(examine(client, job))
    if bad := [check for check in checks if not check.good]:
        # One line, as every refusal of the command.
        more = f"; {len(bad) - 1} more: udl doctor names them" if len(bad) > 1 else ""
        raise ClusterError(f"nothing is sent: {bad[0].what} {bad[0].found}: {bad[0].cure}{more}")
    return f"checked: {len(checks)} of {len(checks)} passed ({time.monotonic() - began:.1f} s)"


def judged(job: Job, found: dict[str, Any], began: float) -> Iterator[Check]:
    """Checks of the nodes' answers; `began` is the time here before the probe."""
    nodes: dict[str, dict[str, Any]] = found["nodes"]
    yield from _versions(nodes)
    yield _workers(job, found["places"])
    # All nodes were asked the same, so the head's answer names every folder.
    for folder in nodes[HEAD]["folders"]:
        yield _on_all(
            "folder",
            folder,
            {name: node["folders"][folder] for name, node in nodes.items()},
            "choose one on a disk that all nodes share and can write to, or s3://…",
        )
    for source in nodes[HEAD]["sources"]:
        # Images that are packed at their first use are looked for on the head alone, which packs
        # them.
        seen = {
            name: node["sources"][source]
            for name, node in nodes.items()
            if source in node["sources"]
        }
        yield _on_all(
            "data",
            source,
            seen,
            "put the shards where all nodes see them, under the same name",
        )
    # Not a failure: an index is made once, at the start of the job, and takes time there.
    if unindexed := [source for source in found["sources"] if source not in found["indexed"]]:
        yield Check(
            "index", f"none for {unindexed[0]}: the job makes it first; or make it with udl index"
        )
    else:
        yield Check("index", "is there, or is made with the packed images")
    # A rank may be placed on any node, so the fullest disk decides.
    free = min(node["free_bytes"] for node in nodes.values())
    yield Check(
        "space",
        f"{free / 2**30:.1f} GiB free at least",
        free >= LEAST_BYTES,
        "" if free >= LEAST_BYTES else "make room for checkpoints",
    )
    yield _clock(nodes, began)
    if file := job.experiment.track.key_file:
        yield _on_all(
            "W&B key",
            file,
            {name: node["key"] for name, node in nodes.items()},
            "put the file with the key there, mode 0600",
        )


def _workers(job: Job, problem: str) -> Check:
    run = job.experiment.run
    # An autoscaler starts nodes only once workers ask for them: what is missing now is no failure.
    if problem and run.place_seconds:
        return Check(
            "workers",
            f"not yet: {problem}; the start waits {run.place_seconds:g} s for an autoscaler",
        )
    if problem:
        return Check(
            "workers",
            "do not fit",
            False,
            f"{problem}; nodes that an autoscaler starts: run.place_seconds",
        )
    return Check("workers", f"run.workers = {run.workers} can be placed")


def _probed(client: JobClient, job: Job) -> dict[str, Any]:
    """Run a probe on every node as a job of its own, which is deleted afterwards."""
    # Not "udl-…": `udl status` lists the jobs that have that prefix.
    name = f"doctor-{uuid.uuid4().hex[:12]}"
    # The package is imported from the files that were sent, as a job does it.
    command = 'exec python -c "from udl_dist.commands.probe import main; main()"'
    # With the job file, from which each node learns what to look for.
    client.run(name, command, packed(job.toml))
    state = client.wait(name, PROBE_SECONDS)
    # Read before the job is deleted, which deletes its log.
    text = client.logs(name)
    if not state.ended:
        client.kill(name)
        raise ClusterError(
            f"the nodes did not answer within {PROBE_SECONDS:g} s: is the cluster busy?"
        )
    # Ray deletes a job only after its end, so not one that did not answer.
    client.forget(name)
    for line in text.splitlines():
        # Ray and other libraries print to the same output.
        if line.startswith(MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(MARK))
            return found
    # Without an answer the package could not be imported there: a traceback, whose last line is
    # the error.
    last = (text.strip().splitlines() or [state.message])[-1]
    return {
        "error": f"the package does not run there ({last[:200]}): install what it needs on the head"
    }


def _versions(nodes: dict[str, dict[str, Any]]) -> Iterator[Check]:
    ours = {
        "python": platform.python_version(),
        "ray": version("ray"),
        # Behind + stands the build, as cpu or cu128: one release has several.
        "torch": version("torch").partition("+")[0],
    }
    for library, here in ours.items():
        there = {name: str(node[library]) for name, node in nodes.items()}
        unlike = {name: found for name, found in there.items() if not _alike(library, found, here)}
        if unlike:
            name, found = next(iter(unlike.items()))
            yield Check(
                library, f"{found} on {name}, {here} here", False, "install the same on all of them"
            )
        else:
            yield Check(library, f"{here} on all {len(nodes)} nodes")


def _alike(library: str, there: str, here: str) -> bool:
    """The same release; of Python the same minor release."""
    # 9: all there are.
    parts = 2 if library == "python" else 9
    return there.split(".")[:parts] == here.split(".")[:parts]


def _on_all(what: str, place: str, problems: dict[str, str], cure: str) -> Check:
    # An empty text is no problem (see probe.survey).
    bad = {name: problem for name, problem in problems.items() if problem}
    if not bad:
        # What follows ? in a place is its endpoint or a signature, and is not shown.
        where = f"all {len(problems)} nodes" if len(problems) > 1 else next(iter(problems))
        return Check(what, f"{place.partition('?')[0]} on {where}")
    name, problem = next(iter(bad.items()))
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return Check(what, f"{place.partition('?')[0]} on {name}{more}: {problem}", False, cure)


def _clock(nodes: dict[str, dict[str, Any]], began: float) -> Check:
    """The nodes were asked between `began` and now, so their clocks must show a time between."""
    now = time.time()
    # Both differences are negative for a clock that agrees: only what exceeds the interval counts.
    off = {name: max(began - node["time"], node["time"] - now, 0.0) for name, node in nodes.items()}
    worst = max(off, key=lambda name: off[name])
    if off[worst] > CLOCK_SECONDS:
        return Check(
            "clock",
            f"of {worst} is {off[worst]:,.0f} s off",
            False,
            "set it: object storage refuses it",
        )
    return Check("clock", "the nodes' clocks agree with this one")
