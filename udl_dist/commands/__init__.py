"""The verbs of the `udl` command: argument parsers and one short function each.

A verb imports what it needs when it runs, so that `udl --help` stays quick.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from udl_dist.core import config_schema
from udl_dist.errors import UsageError

# argparse calls it _SubParsersAction.
Verbs = Any  # what argparse's add_subparsers gives; its type has no public name


def new_verb(
    verbs: Verbs, name: str, settings: type | None = None, **about: Any
) -> argparse.ArgumentParser:
    """A parser for the verb `name`, with --json; lists the settings that `settings` declares."""
    if settings:
        about |= {
            "formatter_class": argparse.RawDescriptionHelpFormatter,
            "epilog": "settings:\n" + listed(config_schema.describe(settings)),
        }
    # No abbreviations: `cli` knows options by their whole names, and would pass on a short one as
    # a setting.
    verb: argparse.ArgumentParser = verbs.add_parser(name, allow_abbrev=False, **about)
    verb.add_argument("--json", action="store_true", help="print figures for machines")
    return verb


def new_runner(
    verbs: Verbs, name: str, job: str, dry: str, **about: Any
) -> argparse.ArgumentParser:
    """A parser for a verb that runs a job file; `job` and `dry` are the help of these arguments."""
    verb = new_verb(verbs, name, **about)
    verb.add_argument("job", type=Path, nargs="?", help=job)
    verb.add_argument("--dry-run", action="store_true", help=dry)
    verb.add_argument(
        # Not argparse's own --help, which cannot list them: they depend on the method.
        "--settings",
        dest="help_settings",
        action="store_true",
        help="list every setting and end",
    )
    verb.add_argument("--verbose", action="store_true", help="show what Ray says")
    return verb


def acting(
    name: str, use: Callable[[argparse.Namespace, Any], Any], declared: type | None = None
) -> Callable[[argparse.Namespace, dict[str, str]], int]:
    """The action of a verb: `use` gets its arguments and its settings, and its result is shown."""

    def act(asked: argparse.Namespace, flags: dict[str, str]) -> int:
        if declared is None:
            # A verb without settings would ignore a misspelt option silently.
            refuse_flags(flags, name)
        done = use(asked, config_schema.from_flags(declared, flags) if declared else None)
        return conclude(done, asked.json)

    return act


def conclude(done: Any, as_json: bool) -> int:
    """Show the result of a verb; the exit code is its own, 0 for a result that has none."""
    show(done.lines(), done.as_dict(), as_json)
    return int(getattr(done, "exit_code", 0))


def refuse_flags(flags: Mapping[str, str], verb: str) -> None:
    """Raise UsageError for flags of a verb that has no settings."""
    if flags:
        raise UsageError(f"unknown flag --{next(iter(flags))} (see udl {verb} --help)")


def show(lines: Sequence[str], figures: dict[str, Any], as_json: bool) -> None:
    """Print the result of a verb; a terminal closed meanwhile changes no exit code."""
    try:
        print(json.dumps(figures) if as_json else "\n".join(lines), flush=True)
    except OSError as error:
        # A terminal that was closed gives EIO, not a broken pipe. The verb has done its work by
        # now, so its exit code holds.
        if error.errno != errno.EIO:
            raise
        # Python flushes stdout again when it exits, and would fail there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(line: str) -> None:
    """Print a line on stderr; stdout is for the result."""
    # Flushed: into a pipe it would otherwise come out only at the end.
    print(line, file=sys.stderr, flush=True)


def progress(what: str, unit: str = "images") -> Any:
    """A line that counts, on stderr: callable with (done, total)."""
    from udl_dist.runs.terminal import Progress

    return Progress(what, sys.stderr, unit)


def listed(described: Iterable[tuple[str, str, Any, str]]) -> str:
    """Settings as flags with their kind, default and meaning."""
    return "\n".join(
        f"--{name} ({kind}; {default!r})\n      {meaning}"
        for name, kind, default, meaning in described
    )
