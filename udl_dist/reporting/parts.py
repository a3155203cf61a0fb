"""What the page of a run and that of a search have in common: figures, settings in words, the
file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udl_dist import experiment
from udl_dist.errors import UdlError, UsageError
from udl_dist.evaluation.io import shared_protocols
from udl_dist.reporting.page import clean
from udl_dist.reporting.run_reader import Figure

NAME = "report.html"
MOST_BYTES = 5_000_000


@dataclass(frozen=True)
class Reported:
    """Where the page is, and what is wrong with what it is of."""

    path: str
    total_bytes: int
    faults: list[str]

    def lines(self) -> list[str]:
        return [
            f"{self.path}: {self.total_bytes / 1e6:.2f} MB, open it in any browser",
            *map(clean, self.faults),
        ]

    def as_dict(self) -> dict[str, Any]:
        return vars(self)


def written(text: str, path: Path, faults: Sequence[str]) -> Reported:
    """Write a page; raise UsageError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot write {str(path)!r} ({error.strerror}): name another place with --out"
        ) from None
    return Reported(str(path), len(text.encode()), list(faults))


def evaluated(figures: Mapping[str, Figure]) -> list[tuple[str, str, str, str]]:
    """Each figure of an evaluation with its spread, what to hold it against, and its protocol
    beside what all share.

    What several figures have alike is named here, and told with its value in `shared`.
    """
    of_all, of_some = shared_protocols(figure.protocol for figure in figures.values())
    rows = []
    for name, figure in figures.items():
        spread = f" ± {figure.deviation:.3g}" if figure.deviation is not None else ""
        own = [
            key if key in of_some else joined({key: value})
            for key, value in figure.protocol.items()
            if key not in of_all
        ]
        rows.append((name, f"{figure.value:.6g}{spread}", joined(figure.floor), ", ".join(own)))
    return rows


def shared(figures: Mapping[str, Figure]) -> list[str]:
    """What the protocols of all figures have in common, told once, and then what those of several
    have.
    """
    return [
        joined(told) for told in shared_protocols(figure.protocol for figure in figures.values())
    ]


def tables(
    method: str, settings: Mapping[str, Any]
) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """The settings by table, with whether each was changed."""
    try:
        defaults = {name: default for name, _, default, _ in experiment.describe(method)}
    except UdlError:
        defaults = {}
    found: dict[str, list[tuple[str, str, bool]]] = {}
    for name, value in settings.items():
        default = defaults.get(name, value)
        plain = list(default) if isinstance(default, tuple) else default
        found.setdefault(name.split(".")[0], []).append((name, in_words(value), plain != value))
    return list(found.items())


def joined(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {in_words(value)}" for name, value in values.items())


def in_words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "empty" if value == "" else str(value)
