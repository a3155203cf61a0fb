"""udl pack, index and check: what is seen."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from udl_dist.commands import Verbs, new_verb, progress, show
from udl_dist.core import config_schema
from udl_dist.data.settings import CheckSettings, IndexSettings, PackSettings


def add(verbs: Verbs) -> None:
    pack = new_verb(verbs, "pack", PackSettings, help="images into tar shards with an index")
    pack.add_argument("source", help="'digits', an image folder, IDX files, or a .npy/.npz array")
    pack.add_argument("dest", help="the folder to make")
    pack.set_defaults(act=_pack)

    index = new_verb(
        verbs, "index", IndexSettings, help="where each record of existing tar shards lies"
    )
    index.add_argument(
        "shards", help="a folder of tars, a brace pattern, a list file, or s3://bucket/prefix"
    )
    index.set_defaults(act=_index)

    check = new_verb(
        verbs, "check", CheckSettings, help="whether shards are whole; copies, leaks, a clean copy"
    )
    check.add_argument(
        "source", help="a folder of shards, a packed folder, a brace pattern or a list file"
    )
    check.add_argument("--decode", action="store_true", help="decode every image too")
    check.add_argument("--fix", metavar="DEST", help="write a clean copy into a new folder")
    check.set_defaults(act=_check)


def _pack(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.data.packing import pack

    summary = pack.pack(
        asked.source, asked.dest, config_schema.from_flags(PackSettings, flags), progress("packing")
    )
    show(summary.lines(), asdict(summary), asked.json)
    return 0


def _index(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.data.packing import indexes

    indexed = indexes.index(
        asked.shards, config_schema.from_flags(IndexSettings, flags), progress("indexing", "shards")
    )
    show(indexed.lines(), asdict(indexed), asked.json)
    return 0


def _check(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.data.checking import check

    # Options, so that they need no value and --help shows them first; checked as settings are.
    flags |= {"decode": "true"} if asked.decode else {}
    flags |= {"fix": asked.fix} if asked.fix else {}
    findings = check.check(
        asked.source, config_schema.from_flags(CheckSettings, flags), progress("checking", "bytes")
    )
    show(findings.lines(), findings.as_dict(), asked.json)
    # 3 where damage was found, so that a script notices it.
    return findings.exit_code
