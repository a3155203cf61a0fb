"""The `udl` command: parses the arguments, runs a verb, ends with its exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from udl_dist import __version__
from udl_dist.commands import jobs, results, training, use
from udl_dist.core.config_schema import NoValue
from udl_dist.errors import UdlError, UsageError

REMOVED = {
    "plan": (
        "udl plan was removed: udl train JOB --dry-run prints networks, FLOPs and memory, and a run"
        " says images/s, time to go and peak memory after its first 200 steps"
    ),
    "--faults": "--faults was removed: to see a run recover, kill one of its processes",
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a verb; exit code 0, 2 usage, 3 data, 4 training, 5 cluster, 130 and 143 for a signal."""
    try:
        parser, verbs = _parser()
        # argparse sees the own arguments alone: which settings there are depends on the method and
        # the job file, so no parser can list them.
        own, flags = _split(sys.argv[1:] if arguments is None else arguments, verbs)
        asked = _asked(parser, own, flags)
        sys.exit(asked.act(asked, flags))
    except UdlError as error:
        # One line, whatever the message quotes: names from data may hold line breaks.
        print(f"udl: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        # 128 + SIGINT, as a shell counts.
        sys.exit(130)
    except BrokenPipeError:
        # 128 + SIGPIPE: the reader of a pipe, such as head, has ended.
        sys.exit(141)


def _split(
    arguments: Sequence[str], verbs: Mapping[str, _Parser]
) -> tuple[list[str], dict[str, str]]:
    """The verb's own arguments, and settings by dotted name: each `--flag` that is no option of it.

    `--section.name value`, `--section.name=value` and, for a boolean, `--section.name` may stand
    anywhere after the verb; dashes in a name are underscores.
    """
    own: list[str] = []
    flags: dict[str, str] = {}
    verb, waiting = None, list(arguments)
    while waiting:
        token = waiting.pop(0)
        option, equals, value = token.partition("=")
        # Settings stand anywhere after the verb, even before its job file, so a flag is a setting
        # unless the verb declares it.
        if verb is None or not option.startswith("--") or option in verb.options:
            # What an unset variable of the shell leaves: `udl train "$JOB"`, `--out=$DIR`. Read as
            # a path, an empty name would mean the working folder.
            if not token or (equals and not value and option.startswith("--")):
                before = f" after {own[-1]}" if own else ""
                raise UsageError(
                    f"{token or 'an argument'} is empty{before}: is a variable of the shell not"
                    " set?"
                )
            if not own and token in REMOVED:
                raise UsageError(REMOVED[token])
            own.append(token)
            verb = verb or verbs.get(token)
            continue
        if not equals:
            missing = not waiting or waiting[0].startswith("--")
            # Only a boolean setting may stand without a value; NoValue lets its parser refuse the
            # others.
            value = NoValue("true") if missing else waiting.pop(0)
        name = option[2:].replace("-", "_")
        if not value and "." not in name:
            raise UsageError(f"{option} is empty: is a variable of the shell not set?")
        if option in REMOVED:
            raise UsageError(REMOVED[option])
        flags[name] = value
    return own, flags


def _asked(parser: _Parser, own: Sequence[str], flags: Mapping[str, str]) -> argparse.Namespace:
    """The verb's own arguments, parsed; if one is missing, a setting may have consumed it."""
    try:
        asked, rest = parser.parse_known_args(own)
    except UsageError as error:
        # `--run.workers job.toml`, whose number was forgotten: argparse only says that the job
        # file is missing.
        consumed = [
            f"{value!r} is the value of --{name}"
            for name, value in flags.items()
            if not isinstance(value, NoValue)
        ]
        raise UsageError("; ".join([str(error), *consumed])) from None
    if rest:
        raise UsageError(
            f"unexpected argument {rest[0]!r}: settings are given as --section.name value"
        )
    return asked


class _Parser(argparse.ArgumentParser):
    """A parser that reports errors in one line and has a list of its options."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        # Before super().__init__, which adds --help through add_argument.
        self.options: set[str] = set()
        super().__init__(*arguments, **named)

    def add_argument(self, *names: Any, **about: Any) -> argparse.Action:
        self.options.update(names)
        return super().add_argument(*names, **about)

    # argparse would print its usage, several lines, and exit by itself.
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def _parser() -> tuple[_Parser, Mapping[str, _Parser]]:
    """The parser of the whole command, and the parsers of its verbs by name."""
    parser = _Parser(
        "udl",
        description="Images to trained AE, VAE and GAN, on one machine or a Ray cluster.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"udl-dist {__version__}")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    # The order of the verbs in `udl --help`.
    for family in (training, jobs, use, results):
        family.add(verbs)
    return parser, verbs.choices
