"""The winner handed over: its runs measured as `udl evaluate` does, the best exported as `udl
export` does.

What is there already, of these very weights, is not made again: the same command goes on after a
kill. What cannot be had is left out with the reason; neither costs the search what it has found.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from udl_dist.core import files
from udl_dist.errors import UdlError, UsageError
from udl_dist.evaluation import io as written
from udl_dist.runs.terminal import Progress, Screen
from udl_dist.search.config import Search
from udl_dist.search.objective import Objective
from udl_dist.search.winner import Finals, spread

if TYPE_CHECKING:
    from udl_dist.inference.model import Model

MODEL = "model"
Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Handed:
    """What there is: figures over the final runs, the weights of each, what is left out, the run in
    `model`.
    """

    figures: Mapping[str, Entry] = field(default_factory=dict)
    runs: Mapping[str, str] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()  # families of figures that cannot be had
    failed: tuple[str, ...] = ()
    model: str = ""

    @property
    def left_out(self) -> list[str]:
        return [*self.lacking, *self.failed]

    def as_dict(self, folder: Path) -> dict[str, Any]:
        return {
            "figures": {
                name: {"mean": entry["value"], "sd": entry["sd"]}
                for name, entry in self.figures.items()
            },
            "left_out": self.left_out,
            "model": str(folder / MODEL) if self.model else None,
        }


def kept(folder: Path) -> Handed:
    """What was handed over in a search folder; nothing where its file is not there or makes no
    sense.
    """
    try:
        found = json.loads((folder / written.NAME).read_text(encoding="utf-8"))
        return Handed(
            dict(found["figures"]),
            dict(found["runs"]),
            tuple(found["lacking"]),
            tuple(found["failed"]),
            str(found["model"]),
        )
    except (OSError, ValueError, TypeError, KeyError):
        return Handed()


def hand_over(wanted: Search, finals: Finals, out: TextIO) -> Handed:
    """Measure and export what was not yet; keep it in the search folder and return it."""
    before = kept(wanted.folder)
    runs, failed = _opened(wanted, finals)
    measured: dict[str, Mapping[str, Entry]] = {}
    lacking: dict[str, None] = {}
    for name, model in runs.items() if wanted.settings.evaluate else ():
        try:
            figures, cannot = _measured(name, model, before, out)
            measured[name] = figures
            lacking |= dict.fromkeys(cannot)
        except UdlError as error:
            failed.append(f"{name} is not evaluated: {error}")
    weights = {name: runs[name].origin.weights for name in measured}
    exported = _exported(wanted, runs, failed, out) if wanted.settings.export and runs else ""
    handed = Handed(_over_runs(measured), weights, tuple(lacking), tuple(failed), exported)
    if handed != before:
        files.write_whole(
            wanted.folder / written.NAME, json.dumps(vars(handed), indent=1, ensure_ascii=False)
        )
    return handed


def _opened(wanted: Search, finals: Finals) -> tuple[dict[str, Model], list[str]]:
    """The final runs that ended, the best of them first, by the objective where they ended."""
    from udl_dist.inference.model import load

    loss, failed = Objective(wanted), list[str]()
    found: dict[str, tuple[float, Model]] = {}
    for seed in range(wanted.settings.final_seeds):
        folder, ended = finals.folder(seed), finals.finished(seed)
        if ended is None:
            failed.append(f"{folder.name}: it was not trained to its end")
            continue
        try:
            model = load(folder, "cpu" if wanted.base.run.device == "cpu" else "auto")
            found[folder.name] = loss.loss(loss.of(ended["figures"], {})), model
        except UdlError as error:
            failed.append(f"{folder.name}: {error}")
    ranked = sorted(found.items(), key=lambda item: item[1][0])
    return {name: model for name, (_, model) in ranked}, failed


def _measured(
    name: str, model: Model, before: Handed, out: TextIO
) -> tuple[Mapping[str, Entry], list[str]]:
    """The figures of one run, and what it cannot have; measured anew only if more can be had than
    before.
    """
    from udl_dist.evaluation.settings import MetricSettings
    from udl_dist.inference import evaluating
    from udl_dist.inference.measuring import Measuring

    lacking = Measuring(model, MetricSettings()).notes
    same = before.runs.get(name) == model.origin.weights and {*before.lacking} <= {*lacking}
    if not (same and _figures_of(model)):
        evaluating.evaluate(
            model, MetricSettings(), None, Progress(f"evaluating the winner, {name}", out, "parts")
        )
    return _figures_of(model), lacking


def _figures_of(model: Model) -> Mapping[str, Entry]:
    """The figures beside a run that are of its weights."""
    return written.of_weights(model.origin.folder / written.NAME, model.origin.weights)


def _over_runs(measured: Mapping[str, Mapping[str, Entry]]) -> dict[str, Entry]:
    """Each figure's mean and deviation over runs (of one run: its own), beside what it is held
    against.
    """
    found: dict[str, Entry] = {}
    for name in next(iter(measured.values()), {}):
        entries = [figures[name] for figures in measured.values() if name in figures]
        mean, deviation, runs = spread([entry["value"] for entry in entries])
        first = entries[0]
        floor = {
            what: spread([entry["floor"][what] for entry in entries])[0]
            for what in first["floor"] or ()
        }
        same = {
            what: value
            for what, value in first["protocol"].items()
            if all(entry["protocol"].get(what) == value for entry in entries)
        }
        protocol = {
            **same,
            "runs": runs,
            "sd_over": "runs" if runs > 1 else "seeds of the evaluation",
        }
        found[name] = {
            "value": mean,
            "sd": deviation if runs > 1 else first["sd"],
            "floor": floor or None,
            "protocol": protocol,
        }
    return found


def _exported(wanted: Search, runs: Mapping[str, Model], failed: list[str], out: TextIO) -> str:
    """Export the best run, unless it lies there already; give its name, or "" and tell why it
    failed.
    """
    from udl_dist.inference.export import ExportSettings, export

    best, dest = next(iter(runs)), wanted.folder / MODEL
    try:
        if (there := _there(dest)) != runs[best].origin.weights:
            if there:  # of another winner, before there were more trials
                shutil.rmtree(dest)
            Screen(out).say(f"exporting the winner, {best}")
            export(runs[best], dest, ExportSettings(title=wanted.folder.name))
        return best
    except UdlError as error:
        failed.append(f"no model is exported: {error}")
        return ""


def _there(dest: Path) -> str:
    """The weights that an exported model is of; "" where there is none that can be read."""
    from udl_dist.inference import layout

    try:
        return str(layout.read_config(dest).get("checkpoint", "")) if layout.is_model(dest) else ""
    except UdlError as error:
        raise UsageError(f"{error}, or remove {dest}") from None
