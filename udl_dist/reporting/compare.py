"""`udl compare`: settings that differ, metrics side by side, curves over each other.

Metrics of different protocols are not set side by side; what their protocols differ in is printed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from udl_dist.errors import UsageError
from udl_dist.evaluation.io import aligned, clean
from udl_dist.reporting import curves
from udl_dist.reporting.run_reader import RunRecord, read_run

# Two runs of one job differ in these, and their results do not.
OWN = ("run.folder", "data.cache", "track.", "run.address")  # settings that change no training
# Everything else a method measures may have another definition in the next method.
SHARED = {"val/mse"}  # per pixel in [0, 1], whatever the method
# Of a protocol, what is compared rather than a condition of the comparison.
MODEL = {
    "checkpoint",
    "model",
    "images_trained",
    "weights",
    "sampled_from",
    "device",
    "seconds",
}


@dataclass(frozen=True)
class Compared:
    """What was found, by run: each name stands for one."""

    names: list[str]
    folders: list[str]
    settings: dict[str, list[Any]]  # that differ
    figures: dict[str, list[float | None]] = field(default_factory=dict)  # metrics
    refused: dict[str, str] = field(default_factory=dict)  # metrics not comparable, and why
    picture: str = ""

    def as_dict(self) -> dict[str, Any]:
        return vars(self)

    def lines(self) -> list[str]:
        """Tables for a person."""
        lines = [f"{name}: {folder}" for name, folder in zip(self.names, self.folders, strict=True)]
        lines.append("")
        if self.settings:
            rows = {name: [_shown(one) for one in row] for name, row in self.settings.items()}
            lines += table("settings that differ", self.names, rows)
        else:
            lines.append("no setting differs")
        if self.figures:
            cells = {
                name: ["–" if value is None else f"{value:.6g}" for value in values]
                for name, values in self.figures.items()
            }
            lines += ["", *table("metrics", self.names, cells)]
        if self.refused:
            lines += ["", *(f"not compared: {name}: {why}" for name, why in self.refused.items())]
        return [*lines, "", f"curves: {self.picture}"] if self.picture else lines


def compare(folders: Sequence[str], out: Path) -> Compared:
    """Compare two runs or more; raise UsageError if they cannot be read or compared."""
    if len(folders) < 2:
        raise UsageError("udl compare needs two runs or more")
    runs = [read_run(folder) for folder in folders]
    names = _names(runs)
    metrics, refused = _held_out(runs)
    # Only curves whose last values may be compared; training loss if nothing is held out.
    # `metrics` has a row for the last value of each curve that may be compared.
    drawn = [name.removesuffix(" (last)") for name in metrics if name.endswith(" (last)")]
    drawn = [name for name in drawn if name.startswith("val/")] or ["train/loss"] * bool(drawn)
    panels = {}
    for curve in drawn:
        found = {name: run.curve(curve) for name, run in zip(names, runs, strict=True)}
        # A run that was stopped before its first validation has no such curve.
        if plotted := {name: points for name, points in found.items() if points[0]}:
            panels[_plain(curve)] = plotted
    # After the curves: metrics of `udl evaluate` have one value, not a curve.
    _add_evaluations(runs, metrics, refused)
    if panels:
        curves.as_png(panels, out)
    paths = [str(run.folder) for run in runs]
    return Compared(names, paths, _differing(runs), metrics, refused, str(out) if panels else "")


def table(title: str, heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Aligned columns: names to the left, values to the right."""
    return aligned([[title, *heads], *([name, *values] for name, values in rows.items())])


def _names(runs: Sequence[RunRecord]) -> list[str]:
    """The last parts of the folders, as many as tell them apart."""
    # runs/a and runs/b are a and b; one/vae and two/vae need the parent.
    for parts in range(1, 8):
        names = ["/".join(run.folder.parts[-parts:]) for run in runs]
        if len(set(names)) == len(names):
            return [_plain(name) for name in names]
    raise UsageError(f"{runs[0].folder} is named twice: name each run once")


def _differing(runs: Sequence[RunRecord]) -> dict[str, list[Any]]:
    names = sorted(set().union(*(run.settings for run in runs)))
    rows = {name: [run.settings.get(name) for run in runs] for name in names}
    return _unequal({name: row for name, row in rows.items() if not name.startswith(OWN)})


def _held_out(
    runs: Sequence[RunRecord],
) -> tuple[dict[str, list[float | None]], dict[str, str]]:
    """Last and best metrics of the runs' own validations, if all have the same protocol."""
    protocols = [run.protocol() for run in runs]
    # Methods add settings of their own to a protocol: only common entries can differ.
    shared = sorted(set.intersection(*(set(protocol) for protocol in protocols)))
    differing = _unequal({name: [one[name] for one in protocols] for name in shared})
    if differing:
        return {}, {"held-out metrics": _refusal(differing)}
    found = [run.held_out() for run in runs]
    # A metric that only one run has stays, with a dash for the others.
    names, refused = sorted(set().union(*found)), {}
    if len({run.method for run in runs}) > 1:
        if own := [name for name in names if name not in SHARED]:
            refused[", ".join(own)] = "each method defines them in another way"
        names = [name for name in names if name in SHARED]
    rows: dict[str, list[float | None]] = {}
    for name in names:
        values = [one.get(name) for one in found]
        rows[f"{name} (last)"] = [value.last if value else None for value in values]
        rows[f"{name} (best)"] = [value.best if value else None for value in values]
    # How long each run trained belongs next to its last values.
    rows["images (last)"] = [run.images for run in runs]
    return rows, refused


def _add_evaluations(
    runs: Sequence[RunRecord], rows: dict[str, list[float | None]], refused: dict[str, str]
) -> None:
    """Add metrics of `udl evaluate`, each if its protocol is the same in all runs that have it."""
    for name in sorted(set().union(*(run.evaluation for run in runs))):
        every = [run.evaluation.get(name) for run in runs]
        protocols = [metric.protocol for metric in every if metric]
        # An entry that only one protocol has makes them differ as well.
        keys = sorted(set().union(*protocols) - MODEL)
        differing = _unequal({key: [of.get(key) for of in protocols] for key in keys})
        if differing:
            refused[_plain(name)] = _refusal(differing)
        else:
            rows[_plain(name)] = [metric.value if metric else None for metric in every]


def _unequal(rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row)}


def _refusal(differing: Mapping[str, Sequence[Any]]) -> str:
    rows = {_plain(name): ", ".join(map(_shown, values)) for name, values in differing.items()}
    return "their protocols differ: " + "; ".join(f"{name} is {row}" for name, row in rows.items())


def _shown(value: Any) -> str:
    return "–" if value is None or value == "" else _plain(str(value))


def _plain(text: str) -> str:
    """A name from a file, safe in a line of a terminal."""
    # Names of runs, settings and metrics come from files that anyone may have written.
    return clean(text, breaks="")[:200]
