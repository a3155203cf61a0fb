"""udl submit, status, logs, stop, doctor: jobs on an existing Ray cluster."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udl_dist.commands import Verbs, new_verb, refuse_flags, show, tell
from udl_dist.errors import UsageError

if TYPE_CHECKING:
    from udl_dist.commands.job_client import JobClient, JobState


def add(verbs: Verbs) -> None:
    submit = _verb(
        verbs,
        "submit",
        _submit,
        help="check a cluster and send it a job; again: attach, or resume",
        epilog="any setting, as for udl train, udl search and udl evaluate",
    )
    submit.add_argument(
        "job", type=Path, help="a job file, of a run or a search; a run folder is evaluated"
    )
    submit.add_argument(
        "--follow", action="store_true", help="show what it prints, and end as it ends"
    )
    status = _verb(verbs, "status", _status, help="the state of the jobs on a cluster")
    status.add_argument(
        "job", nargs="?", help="a job file, a run folder or the id of a job; none: all of them"
    )
    logs = _verb(verbs, "logs", _logs, help="what a job on a cluster has printed")
    logs.add_argument("job", help="a job file or the id of a job")
    logs.add_argument(
        "--follow", action="store_true", help="go on until it ends, and end as it ends"
    )
    stop = _verb(
        verbs, "stop", _stop, help="have a job write a checkpoint and end; udl submit resumes it"
    )
    stop.add_argument("job", help="a job file or the id of a job")
    doctor = _verb(verbs, "doctor", _doctor, help="check whether a job would run on a cluster")
    doctor.add_argument("job", type=Path, help="a job file, or a run folder")


def _verb(verbs: Verbs, name: str, act: Any, **about: Any) -> argparse.ArgumentParser:
    verb = new_verb(verbs, name, **about)
    verb.add_argument(
        "--address",
        default="",
        help="the cluster's dashboard, http://HOST:8265; none: RAY_ADDRESS, "
        "else that of cluster/local.sh",
    )
    verb.add_argument(
        # One flag for both dangers, an open dashboard and a token in clear text.
        "--insecure",
        action="store_true",
        help="connect to a remote cluster without a token or encryption",
    )
    verb.set_defaults(act=act)
    return verb


def _submit(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.commands import doctor
    from udl_dist.commands import job as jobs

    job = jobs.load(asked.job, flags)
    client = _opened(asked)
    # The checks take seconds and start a job of their own, so they are left to `submit`, which
    # skips them where the job already runs.
    sent = client.submit(job, lambda: tell(doctor.refuse_bad(client, job)))
    name = sent.state.name
    if not asked.follow:
        following = f"next: udl logs {name} --follow; udl stop {name}"
        show([*sent.lines(), following], sent.as_dict(), asked.json)
        return 0
    # With --follow, stdout is the output of the job.
    tell("\n".join(sent.lines()))
    return _followed(client, name, asked.json)


def _status(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    if not asked.job:
        # Settings only identify a job together with its job file.
        refuse_flags(flags, "status")
    name = _named(asked.job, flags) if asked.job else ""
    client = _opened(asked)
    found = [client.newest(name)] if name else client.jobs()
    lines = [each.line() for each in found] or ["no job of udl on this cluster"]
    show(lines, {"jobs": [each.as_dict() for each in found]}, asked.json)
    return 0


def _logs(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    client, state = _newest(asked, flags)
    if asked.follow:
        return _followed(client, state.name, asked.json)
    text = client.logs(state.name)
    print(
        json.dumps({"id": state.name, "lines": text.splitlines()}) if asked.json else text,
        # The text ends as the job ended it.
        end="\n" if asked.json else "",
    )
    return 0


def _stop(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    client, state = _newest(asked, flags)
    state = client.stop(state)
    show([state.line()], state.as_dict(), asked.json)
    return 0


def _doctor(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.commands import doctor
    from udl_dist.commands import job as jobs
    from udl_dist.errors import ClusterError

    job = jobs.load(asked.job, flags)
    client = _opened(asked)
    checks = []
    for check in doctor.examine(client, job):
        # Printed one by one: the nodes need seconds to answer.
        checks.append(check)
        if not asked.json:
            print(check.line(), flush=True)
    if asked.json:
        print(json.dumps({"checks": [vars(check) for check in checks]}))
    return 0 if all(check.good for check in checks) else ClusterError.exit_code


def _followed(client: JobClient, name: str, as_json: bool) -> int:
    """With --json the job's output goes to stderr, and its final state to stdout."""
    # stdout must hold nothing but JSON.
    out = sys.stderr if as_json else sys.stdout
    try:
        for text in client.follow(name):
            print(text, end="", file=out, flush=True)
        state = client.wait(name)
    # Ctrl-C ends the display, not the job.
    except KeyboardInterrupt:
        tell(f"{name} still runs: udl logs {name} --follow; udl stop {name}")
        return 130
    if as_json:
        print(json.dumps(state.as_dict()))
    return state.exit_code


def _newest(asked: argparse.Namespace, flags: dict[str, str]) -> tuple[JobClient, JobState]:
    """A client, and the last submission of the job: its job file names all of them."""
    name = _named(asked.job, flags)
    client = _opened(asked)
    return client, client.newest(name)


def _named(asked: str, flags: dict[str, str]) -> str:
    """The id of a job file, or the id itself."""
    from udl_dist.commands import job as jobs

    # A job file that is missing is refused as such, not looked for among the jobs.
    if asked.endswith(".toml") or Path(asked).exists():
        return jobs.load(Path(asked), flags).name
    if flags:
        raise UsageError(f"settings belong to a job file, not to {asked}")
    return asked


def _opened(asked: argparse.Namespace) -> JobClient:
    """A client of the jobs of the cluster."""
    from udl_dist.commands.connection import opened
    from udl_dist.commands.job_client import JobClient

    # Every verb of this file first proves that cluster, token and release are right.
    return JobClient(opened(asked.address, asked.insecure))
