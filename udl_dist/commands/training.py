"""udl train: one run of a job, or its plan (--dry-run)."""

from __future__ import annotations

import argparse
import sys

from udl_dist.commands import Verbs, listed, new_runner, show
from udl_dist.errors import UsageError


def add(verbs: Verbs) -> None:
    train = new_runner(
        verbs,
        "train",
        "a job file, such as jobs/vae_digits.toml, or a run folder; none: --method.name and"
        " --data.source",
        "print the plan and start nothing",
        help="train what a job file says; again: resume",
        epilog="any setting: --section.name value (udl train --settings lists them)",
    )
    train.set_defaults(act=_train)


def _train(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist import experiment
    from udl_dist.launch import driver
    from udl_dist.launch.plan import checked_plan

    if asked.help_settings:
        print(listed(experiment.describe(flags.get("method.name", "vae"))))
        return 0
    if asked.job is None and "method.name" not in flags:
        raise UsageError(
            "udl train needs a job file, such as jobs/vae_digits.toml, or --method.name and"
            " --data.source (udl train --settings lists settings)"
        )
    wanted = experiment.load(asked.job, flags)
    if asked.dry_run:
        planned = checked_plan(wanted)
        show(planned.lines(), planned.as_dict(), asked.json)
        return 0
    ended = driver.train(wanted, sys.stderr, asked.verbose)
    show(ended.lines(), ended.as_dict(), asked.json)
    return ended.exit_code
