"""The `udl` command: one short function a verb, no logic. Nobody imports it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from udl_dist import __version__, settings
from udl_dist.checking.settings import CheckSettings
from udl_dist.errors import UdlError, UsageError
from udl_dist.packing.settings import IndexSettings, PackSettings


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a verb and end with its exit code: 0, 2 usage, 3 data, 4 training, 5 cluster, 130 and 143 after a signal."""
    try:
        parser = _parser()
        asked, rest = parser.parse_known_args(arguments)
        sys.exit(asked.act(asked, _flags(rest)))
    except UdlError as error:
        print(f"udl: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)


def _train(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist import experiment, plan

    if asked.help_settings:
        return _print_settings(flags.get("method.name", "vae"))
    if asked.job is None:
        raise UsageError(
            "udl train needs a job file, such as jobs/vae_digits.toml (udl train --settings lists settings)"
        )
    wanted = experiment.load(asked.job, flags)
    if asked.dry_run:
        _print(plan.plan(wanted).lines(), plan.plan(wanted).as_dict(), asked.json)
        return 0
    return _run(wanted, asked)


def _run(wanted: Any, asked: argparse.Namespace) -> int:
    from udl_dist import session

    ended = session.train(wanted, sys.stderr, asked.verbose, asked.faults)
    _print(ended.lines(), ended.as_dict(), asked.json)
    return ended.exit_code


def _pack(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.packing import pack

    wanted = settings.from_flags(PackSettings, flags)
    summary = pack.pack(asked.source, asked.dest, wanted, _progress("packing"))
    _print(summary.lines(), summary.as_dict(), asked.json)
    return 0


def _index(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.packing import indexes

    indexed = indexes.index(asked.shards, settings.from_flags(IndexSettings, flags), _progress("indexing", "shards"))
    _print(indexed.lines(), indexed.as_dict(), asked.json)
    return 0


def _check(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.checking import check

    flags |= {"decode": "true"} if asked.decode else {}
    flags |= {"fix": asked.fix} if asked.fix else {}
    wanted = settings.from_flags(CheckSettings, flags)
    findings = check.check(asked.source, wanted, _progress("checking", "bytes"))
    _print(findings.lines(), findings.as_dict(), asked.json)
    return findings.exit_code


def _progress(what: str, unit: str = "images") -> Any:
    from udl_dist.terminal import Progress

    return Progress(what, sys.stderr, unit)


def _print(lines: Sequence[str], figures: dict[str, Any], as_json: bool) -> None:
    print(json.dumps(figures) if as_json else "\n".join(lines))


def _print_settings(method: str) -> int:
    from udl_dist import experiment

    print(_listed(experiment.describe(method)))
    return 0


def _listed(described: Iterable[tuple[str, str, Any, str]]) -> str:
    return "\n".join(f"--{name} ({kind}; {default!r})\n      {meaning}" for name, kind, default, meaning in described)


def _flags(rest: Sequence[str]) -> dict[str, str]:
    """`--section.name value` and `--section.name=value` by dotted name; dashes within a name are underscores."""
    flags: dict[str, str] = {}
    waiting = list(rest)
    while waiting:
        token = waiting.pop(0)
        if not token.startswith("--"):
            raise UsageError(f"what is {token!r}? settings are given as --section.name value")
        name, equals, value = token[2:].partition("=")
        if not equals:
            value = waiting.pop(0) if waiting and not waiting[0].startswith("--") else "true"
        flags[name.replace("-", "_")] = value
    return flags


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("udl", description="Images to trained AE, VAE and GAN, on one machine or a Ray cluster.",
                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("--version", action="version", version=f"udl-dist {__version__}")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    train = verbs.add_parser("train", allow_abbrev=False, help="train what a job file says; again: resume",
                             epilog="any setting: --section.name value (udl train --settings lists them)")  # fmt: skip
    train.add_argument("job", type=Path, nargs="?", help="a job file, such as jobs/vae_digits.toml")
    train.add_argument("--dry-run", action="store_true", help="print the plan and start nothing")
    train.add_argument("--settings", dest="help_settings", action="store_true", help="list every setting and end")
    train.add_argument("--verbose", action="store_true", help="show what Ray says")
    train.add_argument("--faults", default="", help="break the run on purpose; asks for UDL_FAULTS=1 too (faults.py)")
    train.set_defaults(act=_train)

    pack = verbs.add_parser("pack", allow_abbrev=False, help="images into tar shards with an index",
                            formatter_class=argparse.RawDescriptionHelpFormatter,
                            epilog="settings:\n" + _listed(settings.describe(PackSettings)))  # fmt: skip
    pack.add_argument("source", help="'digits', an image folder, IDX files, or a .npy/.npz array")
    pack.add_argument("dest", help="the folder to make")
    pack.set_defaults(act=_pack)

    index = verbs.add_parser("index", allow_abbrev=False, help="where each record of existing tar shards lies",
                             formatter_class=argparse.RawDescriptionHelpFormatter,
                             epilog="settings:\n" + _listed(settings.describe(IndexSettings)))  # fmt: skip
    index.add_argument("shards", help="a folder of tars, a brace pattern, a list file, or s3://bucket/prefix")
    index.set_defaults(act=_index)

    check = verbs.add_parser("check", allow_abbrev=False, help="whether shards are whole; copies, leaks, a clean copy",
                             formatter_class=argparse.RawDescriptionHelpFormatter,
                             epilog="settings:\n" + _listed(settings.describe(CheckSettings)))  # fmt: skip
    check.add_argument("source", help="a folder of shards, a packed folder, a brace pattern or a list file")
    check.add_argument("--decode", action="store_true", help="decode every image too")
    check.add_argument("--fix", metavar="DEST", help="write a clean copy into a new folder")
    check.set_defaults(act=_check)

    for verb in (train, pack, index, check):
        verb.add_argument("--json", action="store_true", help="print figures for machines")
    return parser
