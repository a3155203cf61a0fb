"""udl search: which settings are best."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from udl_dist.commands import Verbs, listed, new_runner, show
from udl_dist.errors import UsageError


def add(verbs: Verbs) -> None:
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


def _search(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.core import config_schema
    from udl_dist.search import config, session

    if asked.help_settings:
        print(listed(config_schema.describe(config.SearchSettings, "search.")))
        return 0
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
