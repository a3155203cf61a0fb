"""udl train and udl search: one run, or many to find the best settings."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

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

    search = new_runner(
        verbs,
        "search",
        "a job file with [search], such as jobs/search_vae_digits.toml",
        "print trials, rungs and cost, and start nothing",
        help="find the best settings by trials that stop early; again: resume",
        epilog="any setting: --section.name value (udl search --settings lists those of [search])",
    )
    search.add_argument(
        "--status", type=Path, metavar="FOLDER", help="what a search folder holds now, and end"
    )
    search.set_defaults(act=_search)


def _train(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist import experiment
    from udl_dist.launch import driver
    from udl_dist.launch.plan import checked_plan

    if asked.help_settings:
        # Those of a method: without one the list of a VAE shows what the tables look like.
        print(listed(experiment.describe(flags.get("method.name", "vae"))))
        return 0
    if asked.job is None and "method.name" not in flags:
        raise UsageError(
            "udl train needs a job file, such as jobs/vae_digits.toml, or --method.name and"
            " --data.source (udl train --settings lists settings)"
        )
    wanted = experiment.load(asked.job, flags)
    if asked.dry_run:
        # Reads job file and data only; torch and Ray are not imported for it (0.5 s).
        planned = checked_plan(wanted)
        show(planned.lines(), planned.as_dict(), asked.json)
        return 0
    ended = driver.train(wanted, sys.stderr, asked.verbose)
    show(ended.lines(), ended.as_dict(), asked.json)
    return ended.exit_code


def _search(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.core import config_schema
    from udl_dist.search import config, session

    if asked.help_settings:
        print(listed(config_schema.describe(config.SearchSettings, "search.")))
        return 0
    # Of a folder alone: the job file may have changed or be gone.
    if asked.status:
        found = session.status(asked.status)
        show(found.status_lines(), found.as_dict(), asked.json)
        return 0
    if asked.job is None:
        raise UsageError(
            "udl search needs a job file with a [search] table, such as jobs/search_vae_digits.toml"
        )
    wanted = config.load(asked.job, flags)
    if asked.dry_run:
        planned = session.dry_run(wanted)
        show(planned.lines(), planned.as_dict(), asked.json)
        return 0
    ended = session.search(wanted, sys.stderr, asked.verbose)
    show(ended.lines(), ended.as_dict(), asked.json)
    return ended.exit_code
