"""The verbs of the `udl` command, a file for each family: their arguments, one short function each, and no logic.

A file's `add` hands its parsers over. What a verb does is imported when it runs, so that `udl --help` stays quick.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

Verbs = Any  # what argparse's add_subparsers gives; its type has no public name


def new_verb(verbs: Verbs, name: str, settings: type | None = None, **about: Any) -> argparse.ArgumentParser:
    """A parser for the verb `name`, which takes --json; what `settings` declares is listed below its help."""
    if settings:
        from udl_dist.settings import describe

        about |= {"formatter_class": argparse.RawDescriptionHelpFormatter,
                  "epilog": "settings:\n" + listed(describe(settings))}  # fmt: skip
    verb: argparse.ArgumentParser = verbs.add_parser(name, allow_abbrev=False, **about)
    verb.add_argument("--json", action="store_true", help="print figures for machines")
    return verb


def show(lines: Sequence[str], figures: dict[str, Any], as_json: bool) -> None:
    """Print what a verb found."""
    print(json.dumps(figures) if as_json else "\n".join(lines))


def progress(what: str, unit: str = "images") -> Any:
    """A line that counts, on stderr: callable with (done, total)."""
    from udl_dist.terminal import Progress

    return Progress(what, sys.stderr, unit)


def listed(described: Iterable[tuple[str, str, Any, str]]) -> str:
    """Settings as flags with their kind, default and meaning."""
    return "\n".join(f"--{name} ({kind}; {default!r})\n      {meaning}" for name, kind, default, meaning in described)
