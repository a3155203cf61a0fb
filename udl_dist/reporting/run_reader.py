"""What can be read of a run folder, for pages and comparisons; what cannot is named in words.

A run may have been cut short anywhere, so nothing is assumed to be complete. Imports no torch, no
Ray, no method by name.
"""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udl_dist import methods
from udl_dist.core import config_schema as settings
from udl_dist.errors import UdlError, UsageError
from udl_dist.evaluation import io
from udl_dist.methods.method import Method
from udl_dist.reporting.curves import Curve
from udl_dist.runs import environment
from udl_dist.runs.run_folder import RunFolder, held_out, winner_of
from udl_dist.storage.uris import public


@dataclass(frozen=True)
class CheckpointRecord:
    """One checkpoint: the images before it, and the fingerprint of its data."""

    images: int
    data: str
    held_out: int  # images that its held-out metrics are means over; 0: not known


@dataclass(frozen=True)
class HeldOutMetric:
    """A held-out metric at the end of a run, and at its best point."""

    last: float
    best: float
    best_images: int


@dataclass
class RunRecord:
    """Everything that was read; what is missing or damaged is empty and named in `faults`."""

    folder: Path
    settings: dict[str, Any]  # by dotted name
    points: list[dict[str, float]]
    checkpoints: list[CheckpointRecord]
    pictures: dict[str, list[tuple[int, Path]]]
    evaluation: dict[str, io.Metric]
    followed: dict[int, dict[str, io.Metric]]  # by images trained on
    messages: list[str]
    shards: dict[str, str]
    environments: list[tuple[int, str]]  # images before, in words
    complete: bool
    faults: list[str]
    failure: str = ""  # why the run ended before its end, if it refused to go on

    @property
    def images(self) -> int:
        # The curve may be ahead of the last checkpoint, or be missing altogether.
        last = [int(point["images"]) for point in self.points[-1:]]
        return max([*last, *(one.images for one in self.checkpoints), 0])

    @property
    def method(self) -> str:
        return str(self.settings.get("method.name", "unknown"))

    @property
    def kind(self) -> type[Method]:
        """The class of its method; the bare contract if that is not installed here."""
        try:
            return methods.find(self.method)
        except UdlError:
            # Its class attributes are empty, so nothing is claimed about the metrics.
            return Method

    @property
    def best_by(self) -> str:
        """The held-out metric whose least value is best; "" if there is none."""
        own = f"val/{self.kind.best}" if self.kind.best else ""
        return str(self.settings.get("run.best") or own)

    @property
    def last(self) -> CheckpointRecord:
        return self.checkpoints[-1] if self.checkpoints else CheckpointRecord(0, "", 0)

    def curve(self, name: str) -> Curve:
        """The images and finite values of one curve."""
        points = [point for point in self.points if io.is_number(point.get(name))]
        return [float(point["images"]) for point in points], [
            float(point[name]) for point in points
        ]

    def followed_curve(self, name: str) -> Curve:
        """The images and values of a metric of `udl evaluate --follow`."""
        found = {images: of[name].value for images, of in self.followed.items() if name in of}
        return [float(images) for images in found], list(found.values())

    def held_out(self) -> dict[str, HeldOutMetric]:
        """Each held-out metric, last and at the point that `best_by` chooses."""
        # Points of training and of validation are lines of one file.
        validated = [point for point in self.points if held_out(point)]
        if not validated:
            return {}
        last = validated[-1]
        scored = [point for point in validated if io.is_number(point.get(self.best_by))]
        sign = self.kind.sign(self.best_by)
        best = min(scored, key=lambda point: sign * point[self.best_by], default=last)
        return {
            name: HeldOutMetric(last[name], best.get(name, math.nan), int(best["images"]))
            for name in sorted(held_out(last))
        }

    def protocol(self) -> dict[str, Any]:
        """What held-out metrics depend on besides weights: data, and settings that change them."""
        # Of the last checkpoint: data and held-out images are the same for all of a run.
        found = {"data": self.last.data, "n": self.last.held_out}
        own = {f"method.{name}" for names in self.kind.incomparable.values() for name in names}
        for name in ("data.held_out", "data.held_out_fraction", *sorted(own)):
            found[name] = self.settings.get(name)
        return found


def read_run(folder: Path | str) -> RunRecord:
    """Read a run, or that of a search's winner; raise UsageError for a folder that is not one."""
    run = RunFolder(winner_of(settings.as_path(str(folder))))
    if not any(
        path.exists() for path in (run.experiment, run.curves, run.checkpoints, run.pictures)
    ):
        raise UsageError(
            f"{run.path} is not a run folder: it has no experiment.toml, curves or checkpoints"
        )
    # One of them is enough: of a broken run whatever is left is shown.
    faults: list[str] = []
    environments = environment.recorded(run.environment)[-environment.MOST_LISTED :]
    record = RunRecord(
        folder=run.path,
        # Without signatures of URLs: pages and comparisons are passed on.
        settings=public(settings.flatten(_toml(run.experiment, faults))),
        points=_points(run.curves, faults),
        checkpoints=_checkpoints(run, faults),
        pictures=_pictures(run),
        evaluation=io.metrics_in(run.path / io.NAME, faults),
        followed=io.followed_in(run.followed, faults),
        messages=io.read_text(run.messages).splitlines(),
        shards={name: str(about) for name, about in io.read_json(run.data, faults).items()},
        environments=[(one["images"], environment.in_words(one)) for one in environments],
        # result.json is written last, once.
        complete=bool(io.read_json(run.result, faults)),
        faults=faults,
    )
    # The file stays when a run is resumed, so it counts only for one that has not ended.
    if not record.complete and (failure := run.failure()):
        record.failure = failure[1]
    return record


def _toml(path: Path, faults: list[str]) -> dict[str, Any]:
    if not path.exists():
        faults.append(f"{path.name} is missing: the settings are not known")
        return {}
    try:
        return tomllib.loads(io.read_text(path))
    except tomllib.TOMLDecodeError as error:
        faults.append(f"{path.name} cannot be read ({error})")
        return {}


def _points(path: Path, faults: list[str]) -> list[dict[str, float]]:
    points, torn = [], 0
    for line in io.read_text(path).splitlines():
        try:
            point = json.loads(line)
        # A line is torn where a machine lost power while it was written.
        except (ValueError, RecursionError):
            point = None
        if isinstance(point, dict) and io.is_number(point.get("images")):
            points.append(point)
        else:
            torn += 1
    if torn:
        faults.append(f"{path.name}: {torn} lines are not valid points")
    if not points:
        faults.append("there are no curves")
    return points


def _checkpoints(run: RunFolder, faults: list[str]) -> list[CheckpointRecord]:
    found = []
    for path in sorted(run.checkpoints.glob("[0-9]*")):
        state = io.read_json(path / "state.json", faults)
        # The name is the number of images; "figures" holds the held-out metrics, even if empty.
        if not path.name.isdecimal() or not isinstance(state.get("figures"), dict):
            faults.append(f"checkpoint {path.name} is damaged")
            continue
        held_out: Any = state.get("held_out")
        count = held_out if isinstance(held_out, int) else 0
        found.append(CheckpointRecord(int(path.name), str(state.get("data", "")), count))
    if not found:
        faults.append("there is no checkpoint")
    return found


def _pictures(run: RunFolder) -> dict[str, list[tuple[int, Path]]]:
    """The pictures by kind, in the order of images: `samples-000000001234.png`."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in sorted(run.pictures.glob("*-*.png")):
        kind, _, images = path.stem.rpartition("-")
        if images.isdecimal():
            found.setdefault(kind, []).append((int(images), path))
    return found
