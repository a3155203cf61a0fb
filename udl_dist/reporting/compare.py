"""`udl compare`: what differs between runs, their figures side by side where they may be, their
curves over each other.

Figures of different protocols are no rivals: what their protocols differ in is said instead of a
table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udl_dist.errors import UsageError
from udl_dist.reporting import curves
from udl_dist.reporting import run_reader as account
from udl_dist.reporting.run_reader import Account

OWN = ("run.folder", "data.cache", "track.", "run.address")  # settings that tell nothing of a run
SHARED = {"val/mse"}  # per pixel in [0, 1], whatever the method
MODEL = (
    "checkpoint",
    "model",
    "images_trained",
    "weights",
    "sampled_from",
    "device",
    "seconds",
)  # of a protocol: what is compared


@dataclass(frozen=True)
class Compared:
    """What was found, by run: each name stands for one."""

    names: list[str]
    folders: list[str]
    settings: dict[str, list[Any]]  # that differ
    figures: dict[str, list[float | None]]  # last and best held-out ones, and those of evaluations
    refused: dict[str, str]  # figures that must not stand side by side, and why
    picture: str

    def as_dict(self) -> dict[str, Any]:
        return vars(self)

    def lines(self) -> list[str]:
        """Tables for a person."""
        lines = [f"{name}: {folder}" for name, folder in zip(self.names, self.folders, strict=True)]
        if self.settings:
            rows = {
                name: [_shown(value) for value in values] for name, values in self.settings.items()
            }
            lines += ["", *table("settings that differ", self.names, rows)]
        else:
            lines += ["", "no setting differs"]
        if self.figures:
            rows = {
                name: ["–" if value is None else f"{value:.6g}" for value in values]
                for name, values in self.figures.items()
            }
            lines += ["", *table("figures", self.names, rows)]
        lines += (
            ["", *(f"not compared: {name}: {why}" for name, why in self.refused.items())]
            if self.refused
            else []
        )
        return [*lines, "", f"curves: {self.picture}"] if self.picture else lines


def compare(folders: Sequence[str], out: Path) -> Compared:
    """Compare two runs or more; raise UsageError if there is nothing that may be compared."""
    if len(folders) < 2:
        raise UsageError("udl compare needs two runs or more")
    accounts = [account.read(folder) for folder in folders]
    names = _names(accounts)
    figures, refused = _held_out(accounts)
    evaluated, not_evaluated = _evaluations(accounts, names)
    panels = _panels(accounts, names, {row.removesuffix(" (last)") for row in figures})
    if panels:
        curves.as_png(panels, out)
    return Compared(
        names,
        [str(one.folder) for one in accounts],
        _differing(accounts),
        figures | evaluated,
        refused | not_evaluated,
        str(out) if panels else "",
    )


def table(title: str, heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Columns that stand under each other."""
    cells = [[title, *heads], *([name, *values] for name, values in rows.items())]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return [
        "  ".join(
            cell.ljust(width) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _names(accounts: Sequence[Account]) -> list[str]:
    """The last parts of the folders, as many as keep them apart."""
    for parts in range(1, 8):
        names = ["/".join(one.folder.parts[-parts:]) for one in accounts]
        if len(set(names)) == len(names):
            return [_plain(name) for name in names]
    raise UsageError(f"{accounts[0].folder} is named twice: name each run once")


def _differing(accounts: Sequence[Account]) -> dict[str, list[Any]]:
    names = sorted(set().union(*(one.settings for one in accounts)))
    rows = {
        name: [one.settings.get(name) for one in accounts]
        for name in names
        if not name.startswith(OWN)
    }
    return {
        name: values for name, values in rows.items() if any(value != values[0] for value in values)
    }


def _held_out(accounts: Sequence[Account]) -> tuple[dict[str, list[float | None]], dict[str, str]]:
    """Last and best figures of the runs' own validations, if all are of one protocol."""
    protocols = [one.protocol() for one in accounts]
    shared = set.intersection(*(set(one) for one in protocols))
    odd = {
        name: [one[name] for one in protocols]
        for name in sorted(shared)
        if any(one[name] != protocols[0][name] for one in protocols)
    }
    if odd:
        return {}, {"held-out figures": f"their protocols differ: {_said(odd)}"}
    found = [one.held_out() for one in accounts]
    names = sorted(set().union(*found))
    one_method = len({one.method for one in accounts}) == 1
    refused = (
        {}
        if one_method
        else {
            ", ".join(own): "each method means something else by it"
            for own in [[name for name in names if name not in SHARED]]
            if own
        }
    )
    rows: dict[str, list[float | None]] = {}
    for name in names if one_method else sorted(SHARED & set(names)):
        rows[f"{name} (last)"] = [of[name][0] if name in of else None for of in found]
        rows[f"{name} (best)"] = [of[name][1] if name in of else None for of in found]
    rows["images (last)"] = [one.images for one in accounts]
    return rows, refused


def _evaluations(
    accounts: Sequence[Account], runs: Sequence[str]
) -> tuple[dict[str, list[float | None]], dict[str, str]]:
    """Figures of `udl evaluate`, each compared if its protocol is the same wherever it was
    measured.
    """
    rows: dict[str, list[float | None]] = {}
    refused = {}
    for name in sorted(set().union(*(one.evaluation for one in accounts))):
        measured = {
            run: one.evaluation[name]
            for run, one in zip(runs, accounts, strict=True)
            if name in one.evaluation
        }
        keys = set().union(*(figure.protocol for figure in measured.values())) - set(MODEL)
        protocols = {
            key: [of.protocol.get(key) for of in measured.values()] for key in sorted(keys)
        }
        odd = {
            key: values
            for key, values in protocols.items()
            if any(value != values[0] for value in values)
        }
        if odd:
            refused[_plain(name)] = f"its protocols differ: {_said(odd)}"
        else:
            rows[_plain(name)] = [measured[run].value if run in measured else None for run in runs]
    return rows, refused


def _panels(
    accounts: Sequence[Account], names: Sequence[str], allowed: set[str]
) -> dict[str, dict[str, curves.Curve]]:
    """The held-out curves that may be compared; of training, where nothing was held out and the
    data is the same.
    """
    drawn = sorted(name for name in allowed if name.startswith("val/")) or ["train/loss"] * (
        "images" in allowed
    )
    panels: dict[str, dict[str, curves.Curve]] = {}
    for name in drawn:
        found = {run: one.curve(name) for run, one in zip(names, accounts, strict=True)}
        if kept := {run: curve for run, curve in found.items() if curve[0]}:
            panels[_plain(name)] = dict(kept)
    return panels


def _said(odd: Mapping[str, Sequence[Any]]) -> str:
    return "; ".join(
        f"{_plain(name)} is {', '.join(_shown(value) for value in values)}"
        for name, values in odd.items()
    )


def _shown(value: Any) -> str:
    return "–" if value is None or value == "" else _plain(str(value))


def _plain(text: str) -> str:
    """A name from a file, safe in a line of a terminal."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)[:200]
