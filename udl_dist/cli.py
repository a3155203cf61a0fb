"""The `udl` command: from its arguments to a verb and an exit code. Nobody imports it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from udl_dist import __version__
from udl_dist.errors import UdlError, UsageError
from udl_dist.verbs import clusters, data, results, searching, training, use


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a verb and end with its exit code: 0, 2 usage, 3 data, 4 training, 5 cluster, 130 and 143 after a signal."""
    try:
        asked, rest = _parser().parse_known_args(arguments)
        sys.exit(asked.act(asked, _flags(rest)))
    except UdlError as error:
        print(f"udl: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)


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
    for family in (training, searching, clusters, data, use, results):
        family.add(verbs)
    return parser
