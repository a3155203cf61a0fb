"""udl pack, index and check; train and search: from images to a trained model."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from udl_dist.commands import Verbs, acting, conclude, listed, new_runner, new_verb, progress, show
from udl_dist.core import config_schema
from udl_dist.data.settings import CheckSettings, IndexSettings, PackSettings
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
    _add_data(verbs)


def _add_data(verbs: Verbs) -> None:
    pack = new_verb(verbs, "pack", PackSettings, help="images into tar shards with an index")
    pack.add_argument("source", help="'digits', an image folder, IDX files, or a .npy/.npz array")
    pack.add_argument("dest", help="the folder to make")
    pack.set_defaults(act=acting("pack", _pack, PackSettings))

    index = new_verb(
        verbs, "index", IndexSettings, help="where each record of existing tar shards lies"
    )
    index.add_argument(
        "shards", help="a folder of tars, a brace pattern, a list file, or s3://bucket/prefix"
    )
    index.set_defaults(act=acting("index", _index, IndexSettings))

    check = new_verb(
        verbs, "check", CheckSettings, help="whether shards are whole; copies, leaks, a clean copy"
    )
    check.add_argument(
        "source", help="a folder of shards, a packed folder, a brace pattern or a list file"
    )
    check.add_argument("--decode", action="store_true", help="decode every image too")
    check.add_argument("--fix", metavar="DEST", help="write a clean copy into a new folder")
    check.set_defaults(act=acting("check", _check, CheckSettings))


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
        return conclude(checked_plan(wanted), asked.json)
    return conclude(driver.train(wanted, sys.stderr, asked.verbose), asked.json)


def _search(asked: argparse.Namespace, flags: dict[str, str]) -> int:
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
        return conclude(session.dry_run(wanted), asked.json)
    return conclude(session.search(wanted, sys.stderr, asked.verbose), asked.json)


def _pack(asked: argparse.Namespace, wanted: PackSettings) -> Any:
    from udl_dist.data.packing import pack

    return pack.pack(asked.source, asked.dest, wanted, progress("packing"))


def _index(asked: argparse.Namespace, wanted: IndexSettings) -> Any:
    from udl_dist.data.packing import indexes

    return indexes.index(asked.shards, wanted, progress("indexing", "shards"))


def _check(asked: argparse.Namespace, wanted: CheckSettings) -> Any:
    from udl_dist.data.checking import check

    # Options, so that they need no value and --help shows them first.
    wanted = replace(wanted, decode=wanted.decode or asked.decode, fix=asked.fix or wanted.fix)
    return check.check(asked.source, wanted, progress("checking", "bytes"))
