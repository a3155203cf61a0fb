"""Publishes the winner: evaluates its runs like `udl evaluate`, exports the best like `udl export`.

Results that exist for the same weights are reused, so a killed search resumes here too. What cannot
be evaluated or exported is left out, with the reason.
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
from udl_dist.search.final_runs import FinalRuns
from udl_dist.search.objective import Objective, Spread

if TYPE_CHECKING:
    from udl_dist.inference.model import Model

# The name of the exported folder is part of what users load: udl_dist.load("FOLDER/model").
MODEL = "model"
Entry = Mapping[str, Any]  # of one metric in an evaluation.json


@dataclass(frozen=True)
# Written last. Without it the program does not know what the runs' evaluations lack, so a search
# that was killed earlier measures them again.
class Published:
    """The evaluation.json of a search: metrics over final runs, and the weights of each run.

    `lacking` and `failed` say in words what is left out, and why; `model` is the exported run.
    """

    figures: Mapping[str, Entry] = field(default_factory=dict)
    runs: Mapping[str, str] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()  # metric groups that cannot be measured
    failed: tuple[str, ...] = ()
    model: str = ""

    @property
    def left_out(self) -> list[str]:
        return [*self.lacking, *self.failed]

    def as_dict(self, folder: Path) -> dict[str, Any]:
        figures = self.figures.items()
        return {
            "figures": {name: {"mean": each["value"], "sd": each["sd"]} for name, each in figures},
            "left_out": self.left_out,
            "model": str(folder / MODEL) if self.model else None,
        }


def read_published(folder: Path) -> Published:
    """The published results of a search folder; empty if its file is missing or invalid."""
    try:
        found = json.loads((folder / written.NAME).read_text(encoding="utf-8"))
        return Published(
            dict(found["figures"]),
            dict(found["runs"]),
            tuple(found["lacking"]),
            tuple(found["failed"]),
            str(found["model"]),
        )
    # A torn or foreign file costs a second evaluation, not an error.
    except (OSError, ValueError, TypeError, KeyError):
        return Published()


def publish(final: FinalRuns, out: TextIO) -> Published:
    """Evaluate and export what is missing; write evaluation.json into the search folder."""
    wanted, before = final.search, read_published(final.search.folder)
    # Each step below may fail for itself: a metric that cannot be measured must not cost the
    # model, nor one broken run the metrics of the others.
    runs, failed = _loaded(final)
    measured: dict[str, Mapping[str, Entry]] = {}
    lacking: dict[str, None] = {}
    for name, model in runs.items() if wanted.settings.evaluate else ():
        try:
            notes = _evaluate(name, model, before, out)
            measured[name] = _metrics_of(model)
            # A dict as an ordered set: every run lacks the same groups, which are named once.
            lacking |= dict.fromkeys(notes)
        except UdlError as error:
            failed.append(f"{name} is not evaluated: {error}")
    exported = ""
    if wanted.settings.export and runs:
        exported = next(iter(runs))  # the best
        try:
            _export(runs[exported], wanted.folder / MODEL, out)
        except UdlError as error:
            failed.append(f"no model is exported: {error}")
            exported = ""
    # The hash of the weights says which evaluation is of which run: the file is reused only for it.
    weights = {name: runs[name].origin.weights for name in measured}
    # Each metric of the best run, over all runs.
    figures = {
        name: _entry([run[name] for run in measured.values() if name in run])
        for name in next(iter(measured.values()), {})
    }
    published = Published(figures, weights, tuple(lacking), tuple(failed), exported)
    # An unchanged file keeps its time, and a repeated command writes nothing.
    if published != before:
        text = json.dumps(vars(published), indent=1, ensure_ascii=False)
        files.write_whole(wanted.folder / written.NAME, text)
    return published


def _loaded(final: FinalRuns) -> tuple[dict[str, Model], list[str]]:
    """The models of complete final runs, the best first, and why others are missing."""
    from udl_dist.inference.model import load

    objective, failed = Objective(final.search), list[str]()
    # auto also for cuda: this machine need not have the GPU of the workers.
    device = "cpu" if final.search.base.run.device == "cpu" else "auto"
    losses: dict[str, float] = {}
    models: dict[str, Model] = {}
    for seed in final.seeds:
        folder, result = final.folder(seed), final.finished(seed)
        if result is None:
            failed.append(f"{folder.name}: its training did not end")
            continue
        try:
            models[folder.name] = load(folder, device)
            # Without settings: the first objective, which ranks, is always a metric.
            losses[folder.name] = objective.loss(objective.of(result["figures"], {}))
        except UdlError as error:
            failed.append(f"{folder.name}: {error}")
    # By objective, not by seed: the first one is exported.
    return {name: models[name] for name in sorted(models, key=losses.__getitem__)}, failed


def _evaluate(name: str, model: Model, before: Published, out: TextIO) -> list[str]:
    """Evaluate a run, unless an earlier evaluation has as much; return what it cannot have."""
    from udl_dist.evaluation.settings import MetricSettings
    from udl_dist.inference import evaluating
    from udl_dist.inference.measuring import Measuring

    notes = Measuring(model, MetricSettings()).notes
    same_weights = before.runs.get(name) == model.origin.weights
    # Measured again for other weights, if the run's own file is lost, or if something that was
    # lacking then can be measured now.
    if not (same_weights and {*before.lacking} <= {*notes} and _metrics_of(model)):
        progress = Progress(f"evaluating the winner, {name}", out, "parts")
        evaluating.evaluate(model, MetricSettings(), None, progress)
    return notes


def _metrics_of(model: Model) -> Mapping[str, Entry]:
    """The evaluation in a run folder, if it is of these weights."""
    return written.of_weights(model.origin.folder / written.NAME, model.origin.weights)


def _entry(entries: list[Entry]) -> Entry:
    first, spread = entries[0], Spread.of([entry["value"] for entry in entries])
    several = spread.runs > 1
    floor = {
        what: Spread.of([entry["floor"][what] for entry in entries]).mean
        for what in first["floor"] or ()
    }
    # Entries that differ between runs, such as their weights, are left out.
    shared = {
        what: value
        for what, value in first["protocol"].items()
        if all(entry["protocol"].get(what) == value for entry in entries)
    }
    # Of a single run the std is that over the seeds of its evaluation.
    sd_over = "runs" if several else "seeds of the evaluation"
    return {
        "value": spread.mean,
        "sd": spread.sd if several else first["sd"],
        "floor": floor or None,
        "protocol": {**shared, "runs": spread.runs, "sd_over": sd_over},
    }


def _export(model: Model, dest: Path, out: TextIO) -> None:
    """Export a run, in place of an older winner's model, unless that has the same weights."""
    from udl_dist.inference import layout
    from udl_dist.inference.export import ExportSettings, export

    try:
        config = layout.read_config(dest) if layout.is_model(dest) else {}
    except UdlError as error:
        raise UsageError(f"{error}, or remove {dest}") from None
    exported = str(config.get("checkpoint", ""))
    if exported == model.origin.weights:
        return
    if exported:  # of an earlier winner, before more trials were requested
        shutil.rmtree(dest)
    Screen(out).say(f"exporting the winner, {model.origin.folder.name}")
    export(model, dest, ExportSettings(title=dest.parent.name))
