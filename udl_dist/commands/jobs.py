"""udl submit, status, logs, stop, doctor: jobs on an existing Ray cluster."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from udl_dist.commands import Verbs, new_verb, refuse_flags, show
from udl_dist.errors import UsageError


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
    from udl_dist.commands import doctor, submit
    from udl_dist.commands import job as jobs

    job = jobs.load(asked.job, flags)
    connection, client = _opened(asked)
    # The checks take seconds and start a job of their own, so they are left to `submit`, which
    # skips them where the job already runs.
    sent = submit.submit(
        client, job, lambda: print(doctor.refuse_bad(connection, client, job), file=sys.stderr)
    )
    if not asked.follow:
        show(
            [
                *sent.lines(),
                f"next: udl logs {sent.state.name} --follow; udl stop {sent.state.name}",
            ],
            sent.as_dict(),
            asked.json,
        )
        return 0
    # With --follow, stdout is the output of the job.
    print("\n".join(sent.lines()), file=sys.stderr)
    return _followed(client, sent.state.name, asked.json)


def _status(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.commands import submit

    if not asked.job:
        # Settings only identify a job together with its job file.
        refuse_flags(flags, "status")
    name = _named(asked.job, flags) if asked.job else ""
    _, client = _opened(asked)
    found = [submit.newest(client, name)] if name else client.jobs()
    show(
        [submit.line_of(each) for each in found] or ["no job of udl on this cluster"],
        {"jobs": [submit.as_dict(each) for each in found]},
        asked.json,
    )
    return 0


def _logs(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.commands import submit

    name = _named(asked.job, flags)
    _, client = _opened(asked)
    # A job file names all its submissions; the log of the last one is meant.
    name = submit.newest(client, name).name
    if asked.follow:
        return _followed(client, name, asked.json)
    text = submit.logs(client, name)
    print(
        json.dumps({"id": name, "lines": text.splitlines()}) if asked.json else text,
        # The text ends as the job ended it.
        end="\n" if asked.json else "",
    )
    return 0


def _stop(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.commands import submit

    name = _named(asked.job, flags)
    _, client = _opened(asked)
    state = submit.stop(client, submit.newest(client, name).name)
    show([submit.line_of(state)], submit.as_dict(state), asked.json)
    return 0


def _doctor(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.commands import doctor
    from udl_dist.commands import job as jobs
    from udl_dist.errors import ClusterError

    job = jobs.load(asked.job, flags)
    connection, client = _opened(asked)
    checks = []
    for check in doctor.examine(connection, client, job):
        # Printed one by one: the nodes need seconds to answer.
        checks.append(check)
        if not asked.json:
            print(check.line(), flush=True)
    if asked.json:
        print(json.dumps({"checks": [vars(check) for check in checks]}))
    return 0 if all(check.good for check in checks) else ClusterError.exit_code


def _followed(client: Any, name: str, as_json: bool) -> int:
    """With --json the job's output goes to stderr, and its final state to stdout."""
    from udl_dist.commands import submit

    # stdout must hold nothing but JSON.
    out = sys.stderr if as_json else sys.stdout
    try:
        code = submit.follow(client, name, lambda line: print(line, end="", file=out, flush=True))
    # Ctrl-C ends the display, not the job.
    except KeyboardInterrupt:
        print(f"{name} still runs: udl logs {name} --follow; udl stop {name}", file=sys.stderr)
        return 130
    if as_json:
        print(json.dumps(submit.as_dict(client.look(name))))
    return code


def _named(asked: str, flags: dict[str, str]) -> str:
    """The id of a job file, or the id itself."""
    from udl_dist.commands import job as jobs

    # A job file that is missing is refused as such, not looked for among the jobs.
    if asked.endswith(".toml") or Path(asked).exists():
        return jobs.load(Path(asked), flags).name
    if flags:
        raise UsageError(f"settings belong to a job file, not to {asked}")
    return asked


def _opened(asked: argparse.Namespace) -> Any:
    """The connection to the cluster, and a client of its jobs."""
    from udl_dist.commands.connection import opened
    from udl_dist.commands.job_client import JobClient

    # Every verb of this file first proves that cluster, token and release are right.
    connection = opened(asked.address, asked.insecure)
    return connection, JobClient(connection)
